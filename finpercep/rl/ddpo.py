"""DDPO: denoising as a decision process, its steps' densities followed with a clipped ratio (arXiv 2305.13301, §4.3, DDPO-IS).

Departs from the paper where super-resolution differs from text-to-image: a photo hardly comes twice, so the mean and spread of
its rewards come from K samples of it drawn now, not from a history of its prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from finpercep.rl import ranges
from finpercep.rl.advantages import Advantages, group_advantages
from finpercep.rl.algorithm import Trainee
from finpercep.rl.clipped_ratio import clipped_share, clipped_surrogate
from finpercep.rl.groups import Rollout
from finpercep.rl.policy_gradient import Judged, Piece, PolicyGradient, PolicyGradientConfig, StepLoss, own_advantages, pieces_of
from finpercep.sr.transition import NoiseForm


@dataclass(frozen=True)
class DdpoConfig(PolicyGradientConfig):
    """Settings of DDPO, beside `PolicyGradientConfig`'s. Learning rate in the paper: 3e-4 with LoRA.

    Attributes:
        noise: ``ddim``, which every policy takes.
        eta: 1, DDIM with as much noise as DDPM.
        baseline: an advantage compares with the other samples of the ``photo``, or with all of the ``batch``: then the group
            size may be 1, and easy photos look good.
    """

    name: ClassVar[str] = "ddpo"
    smallest_group: ClassVar[int] = 1

    noise: NoiseForm | None = "ddim"
    eta: float | None = 1.0
    baseline: Literal["photo", "batch"] = "photo"

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.one_of(self, "baseline", "photo", "batch")
        if self.baseline == "photo":
            ranges.at_least(self, 2, "group_size")

    def build(self, trainee: Trainee) -> Ddpo:
        """The algorithm. Raises `ConfigError` when no step of the policy has noise."""
        return Ddpo(trainee, self)


def ddpo_objective(log_ratio: torch.Tensor, advantages: torch.Tensor, clip: float) -> torch.Tensor:
    """L = mean max(−A·ρ, −A·clip(ρ, 1 ± ε)) over samples, ρ = exp(ℓ − ℓ_old), ℓ the mean log-density over dimensions.

    Args:
        log_ratio: ℓ − ℓ_old, (n,) float32.
        advantages: (n,).
        clip: ε.
    """
    return clipped_surrogate(log_ratio, advantages, clip).mean()


class Ddpo(PolicyGradient):
    """`Algorithm`: DDPO."""

    config: DdpoConfig

    def judge(self, rollout: Rollout, seeds: Sequence[int]) -> Judged:
        """See `PolicyGradient`."""
        found = own_advantages(rollout, self.world, self._advantages)
        pieces = pieces_of(rollout.groups, found.values, found.kept, self.config.parts(), seeds)
        return Judged(pieces, found.dropped(self.world))

    def _advantages(self, rewards: torch.Tensor) -> Advantages:
        """Of (G, K) rewards; with a baseline of the batch, groups without a reward are left out of it."""
        clip = self.config.advantage_clip
        if self.config.baseline == "photo":
            return group_advantages(rewards, clip=clip)
        finite = rewards.isfinite().all(dim=1)
        together = group_advantages(rewards[finite].reshape(1, -1), clip=clip)
        values = torch.zeros_like(rewards)
        values[finite] = together.values.view(-1, rewards.shape[1])
        return Advantages(values, finite, finite & together.kept)

    def step_loss(self, piece: Piece, index: int) -> StepLoss:
        """See `PolicyGradient`."""
        step = piece.trajectory.steps[index]
        log_prob = self.policy.transition(step.before, index, piece.trajectory.condition).log_prob(step.after)
        log_ratio = (log_prob - step.log_prob).flatten(1).mean(dim=1)
        loss = ddpo_objective(log_ratio, piece.advantages, self.config.clip)
        return StepLoss(loss, torch.zeros_like(loss), clipped_share(log_ratio, self.config.clip), 0.0)
