"""GRPO on denoising steps: Flow-GRPO (arXiv 2505.05470) and DanceGRPO (arXiv 2505.07818), by the policy's noise form; and spatial
credit, which is new.

A step's density is a product over positions. With ``credit`` "global" every position is told how the picture did; with "map" also
how the place it became did, by the reward's degradation map. Derivation and conditions: ``docs/finetuning.md``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch

from finpercep.rl import ranges
from finpercep.rl.advantages import Spread, group_advantages
from finpercep.rl.algorithm import Trainee
from finpercep.rl.clipped_ratio import clipped_share, clipped_surrogate
from finpercep.rl.credit import map_advantages
from finpercep.rl.groups import Rollout
from finpercep.rl.policy_gradient import Judged, Piece, PolicyGradient, PolicyGradientConfig, StepLoss, own_advantages, pieces_of

Credit = Literal["global", "map"]


@dataclass(frozen=True)
class GrpoConfig(PolicyGradientConfig):
    """Settings of GRPO, beside `PolicyGradientConfig`'s.

    Flow-GRPO: noise flow-grpo, eta 0.7, num_steps 10, group_size 24, kl_weight 0.01 to 0.04, spread batch, lr 3e-4 with LoRA.
    DanceGRPO: noise dance, eta 0.3, num_steps 16, group_size 12, shared_noise, train_share 0.6, kl_weight 0, lr 1e-5.

    Attributes:
        kl_weight: β of the KL to the frozen reference; 0 switches it off.
        spread: what an advantage is divided by: the std of its ``group``, or that within the groups of the ``batch``.
        credit: ``global``, or ``map``, which needs a reward with maps; on a rung without one it is ``global``.
        map_weight: of the map's advantage beside the global one; 0.5 to 2.
        map_blur: how far a position's noise reaches in the picture, a standard deviation in positions: about 1 for states in
            pixels, 1 to 2 for a VAE's latents; 0 for none.
    """

    name: ClassVar[str] = "grpo"

    kl_weight: float = 0.01
    spread: Spread = "group"
    credit: Credit = "global"
    map_weight: float = 1.0
    map_blur: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.at_least(self, 0, "kl_weight", "map_weight", "map_blur")
        ranges.one_of(self, "spread", "group", "batch")
        ranges.one_of(self, "credit", "global", "map")

    def build(self, trainee: Trainee) -> Grpo:
        """The algorithm. Raises `ConfigError` when no step of the policy has noise."""
        return Grpo(trainee, self)


def grpo_objective(log_ratio: torch.Tensor, advantages: torch.Tensor, clip: float) -> torch.Tensor:
    """L = mean max(−A·ρ, −A·clip(ρ, 1 ± ε)).

    With advantages (n,), ρ is the sample's ratio, exp of the mean of ``log_ratio`` over its P positions. With advantages
    (n, h, w), every position has its own ratio, clipped at ε·√P: a mean of P terms varies √P times less than one of them.
    Where all positions have the same advantage, both have the same gradient at ρ = 1.

    Args:
        log_ratio: ℓ − ℓ_old at every position, (n, h, w) float32.
        advantages: (n,) or (n, h, w).
        clip: ε.
    """
    return clipped_surrogate(_like(advantages, log_ratio), advantages, clip_of(advantages, clip)).mean()


def clip_of(advantages: torch.Tensor, clip: float) -> float:
    """ε of a sample's ratio; ε·√P of a position's."""
    return clip * math.sqrt(advantages[0].numel())


def _like(advantages: torch.Tensor, log_ratio: torch.Tensor) -> torch.Tensor:
    return log_ratio if advantages.ndim == 3 else log_ratio.flatten(1).mean(dim=1)


class Grpo(PolicyGradient):
    """`Algorithm`: GRPO."""

    config: GrpoConfig

    def __init__(self, trainee: Trainee, config: GrpoConfig) -> None:
        super().__init__(trainee, config)
        self.wants_maps = config.credit == "map"

    def judge(self, rollout: Rollout, seeds: Sequence[int]) -> Judged:
        """See `PolicyGradient`."""
        advantages = partial(group_advantages, spread=self.config.spread, clip=self.config.advantage_clip)
        found = own_advantages(rollout, self.world, advantages)
        values = found.values
        if rollout.groups[0].scored.maps is not None:
            values = values[..., None, None] + self.config.map_weight * self._map_advantages(rollout, found.kept)
        pieces = pieces_of(rollout.groups, values, found.kept, self.config.parts(), seeds)
        return Judged(pieces, found.dropped(self.world))

    def _map_advantages(self, rollout: Rollout, kept: torch.Tensor) -> torch.Tensor:
        """(G, K, h, w); 0 in groups that are not kept."""
        found = []
        for group, keep in zip(rollout.groups, kept.tolist(), strict=True):
            (height, width), maps = group.parts[0].clean.shape[-2:], group.scored.maps
            if keep and maps is not None:
                found.append(map_advantages(maps, (height, width), blur=self.config.map_blur, clip=self.config.advantage_clip))
            else:
                found.append(torch.zeros(self.config.group_size, height, width, device=self.policy.device))
        return torch.stack(found)

    def step_loss(self, piece: Piece, index: int) -> StepLoss:
        """See `PolicyGradient`."""
        step, condition = piece.trajectory.steps[index], piece.trajectory.condition
        transition = self.policy.transition(step.before, index, condition)
        log_ratio = transition.log_prob(step.after) - step.log_prob
        surrogate = grpo_objective(log_ratio, piece.advantages, self.config.clip)
        kl = torch.zeros_like(surrogate)
        if self.config.kl_weight:
            with torch.no_grad():
                reference = self.reference.transition(step.before, index, condition)
            kl = transition.kl(reference).mean()
        clipped = clipped_share(_like(piece.advantages, log_ratio), clip_of(piece.advantages, self.config.clip))
        return StepLoss(surrogate, self.config.kl_weight * kl, clipped, kl.item())
