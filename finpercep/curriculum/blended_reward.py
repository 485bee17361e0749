"""The reward along the ladder: one `RewardFn` for each step, blending two rungs while one hands over to the next."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from finpercep.curriculum.schedule import RungBlend
from finpercep.reward import RewardFn, Rewards, RewardSource, RewardWeights, score_with_map

SCORE_ONLY = RewardWeights(score=1.0, max=0.0, mean=0.0)
"""RM_0 has no map, so its R is the score alone (λ2 = 0), on the same [0, 1] scale as the later rungs' R."""


class LadderReward:
    """The rewards of a source's rungs, by index."""

    def __init__(self, source: RewardSource, weights: RewardWeights) -> None:
        self.rungs = tuple(source.rungs())
        self._rewards = [source.reward_fn(rung, SCORE_ONLY if k == 0 else weights) for k, rung in enumerate(self.rungs)]

    def at(self, blend: RungBlend) -> RewardFn:
        """The reward of a blend."""
        if blend.next is None:
            return self._rewards[blend.rung]
        return BlendedReward(self._rewards[blend.rung], self._rewards[blend.next], blend.weight)


@dataclass(frozen=True)
class BlendedReward:
    """(1 − weight)·``current`` + weight·``upcoming``, for every field of the rewards."""

    current: RewardFn
    upcoming: RewardFn
    weight: float

    def __call__(self, images: torch.Tensor) -> Rewards:
        """See `RewardFn`."""
        return self._mixed(self.current(images), self.upcoming(images))

    def with_map(self, images: torch.Tensor) -> tuple[Rewards, torch.Tensor | None]:
        """See `MapRewardFn`; a rung without a map counts as one that finds nothing, as it does in the rewards."""
        (a, map_a), (b, map_b) = score_with_map(self.current, images), score_with_map(self.upcoming, images)
        if map_a is None and map_b is None:
            return self._mixed(a, b), None
        nothing = torch.zeros(len(images), *images.shape[-2:], device=images.device)
        degradation = torch.lerp(nothing if map_a is None else map_a, nothing if map_b is None else map_b, self.weight)
        return self._mixed(a, b), degradation

    def _mixed(self, a: Rewards, b: Rewards) -> Rewards:
        names = ("reward", "score", "max_degradation", "mean_degradation")
        mixed = {name: torch.lerp(getattr(a, name), getattr(b, name), self.weight) for name in names}
        parts = {name: torch.lerp(value, b.parts[name], self.weight) for name, value in a.parts.items()}
        return Rewards(**mixed, parts=parts)
