"""How much better a sample did than the others of its photo: the group-relative advantage (GRPO, arXiv 2402.03300, eq. 8).

Departs from the field's A = (r − mean) / (std + 1e-4): a group without spread teaches nothing and is dropped, so that no small
number is needed in the denominator, and A does not depend on the rewards' scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from finpercep.rl.world import World

MIN_STD = 1e-6
"""Rewards of a group that spread less than this are taken to be equal: it is the rounding of float32 rewards."""

Spread = Literal["group", "batch"]


@dataclass(frozen=True)
class Advantages:
    """Of G groups of K samples.

    Attributes:
        values: float32 (G, K); 0 in groups that are not kept.
        finite: (G,), whether every reward of the group is a number.
        kept: (G,), whether the group is finite and its rewards differ.
    """

    values: torch.Tensor
    finite: torch.Tensor
    kept: torch.Tensor

    def dropped(self, world: World) -> dict[str, float]:
        """How many groups of all processes are not kept, by reason, for the log."""
        without = {"reward": ~self.finite, "spread": self.finite & ~self.kept}
        return {f"groups without {what}": world.total(float(groups.sum())) for what, groups in without.items()}


def group_advantages(rewards: torch.Tensor, *, spread: Spread = "group", clip: float = 5.0) -> Advantages:
    """A = clip((r − mean_group) / std, ±clip), in float64 inside.

    Args:
        rewards: (G, K); a group with a non-finite reward is dropped, never given a number.
        spread: std of the group's rewards, or of the deviations from the group means over all kept groups of the batch: then
            photos on which nothing is at stake count less.
        clip: largest |A|. Of K samples none can exceed √(K − 1) with ``spread`` "group".
    """
    exact = rewards.double()
    finite = exact.isfinite().all(dim=1)
    centred = torch.where(finite[:, None], exact - exact.mean(dim=1, keepdim=True), 0.0)
    std = centred.square().mean(dim=1, keepdim=True).sqrt()
    kept = finite & (std[:, 0] > MIN_STD)
    if spread == "batch":
        std = centred[kept].square().mean().sqrt().expand_as(std)
    values = torch.where(kept[:, None], centred / torch.where(kept[:, None], std, 1.0), 0.0)
    return Advantages(values.clamp(-clip, clip).float(), finite, kept)
