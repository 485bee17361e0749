"""The reward along the ladder: one `RewardFn` for each step, blending two rungs while one hands over to the next.

Rungs differ in what their numbers mean: a global score near 1 spreads less than a fused reward with a map. So that the reward
does not jump where a rung hands over, the next one is put on its scale first: gain and offset give both the same mean and
deviation over the images of that moment, clean ones and the policy's. A group-relative advantage does not see any of this; a
gradient through the reward does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from finpercep.curriculum.schedule import RungBlend
from finpercep.errors import ConfigError
from finpercep.reward import RewardFn, Rewards, RewardSource, RewardWeights, beside, score_with_map, weights_on

LARGEST_GAIN = 10.0
"""A rung that hardly tells the images apart is not magnified beyond this, nor one that tells them apart well diminished."""


@dataclass(frozen=True)
class RungScale:
    """A rung's reward on the scale of the first: ``gain``·R + ``offset``."""

    gain: float = 1.0
    offset: float = 0.0

    @classmethod
    def matching(cls, values: torch.Tensor, target: torch.Tensor) -> RungScale:
        """Gives ``values`` (N,) the mean of ``target`` (N,) and its deviation, as far as `LARGEST_GAIN` allows."""
        own, wanted = values.double(), target.double()
        gain = float(wanted.std(correction=0) / own.std(correction=0).clamp_min(1e-12))
        gain = min(max(gain, 1 / LARGEST_GAIN), LARGEST_GAIN)
        return cls(gain, float(wanted.mean() - gain * own.mean()))


class LadderReward:
    """The rewards of a source's rungs, by index.

    Args:
        source: where they come from.
        weights: of R_k.
        rungs: those to use, in this order; None for all.

    Attributes:
        rungs: names of the rungs in use.

    Raises:
        ConfigError: a rung that the source does not have.
    """

    def __init__(self, source: RewardSource, weights: RewardWeights, rungs: Sequence[str] | None = None) -> None:
        there = tuple(source.rungs())
        self.rungs = there if rungs is None else tuple(rungs)
        unknown = [rung for rung in self.rungs if rung not in there]
        if unknown or not self.rungs:
            raise ConfigError(f"rungs must name some of {', '.join(there)}, got {', '.join(unknown) or 'none'}")
        self._source, self._weights = source, weights
        self._plain = [self._from_source(rung) for rung in self.rungs]
        self._first = self._plain[0] if self.rungs[0] == there[0] else self._from_source(there[0])
        self._scales: list[RungScale | None] = [None] * len(self.rungs)
        if self.rungs[0] == there[0]:
            self._scales[0] = RungScale()

    def _from_source(self, rung: str) -> RewardFn:
        return self._source.reward_fn(rung, weights_on(self._source, rung, self._weights))

    def unreached(self, blend: RungBlend) -> int | None:
        """Index of the next rung that was never used and that ``blend`` needs."""
        last = blend.rung if blend.next is None else blend.next
        return next((rung for rung in range(last + 1) if self._scales[rung] is None), None)

    def renew(self, rung: int) -> None:
        """Take a rung's reward from the source again: it serves another model there now."""
        self._plain[rung] = self._from_source(self.rungs[rung])

    @torch.no_grad()
    def reach(self, rung: int, images: torch.Tensor | None, lr: torch.Tensor | None = None) -> RungScale:
        """Begin to use a rung: on the scale of the one before it over ``images`` (N, 3, H, W) in [0, 1], or for None its own.

        ``lr`` (N, 3, h, w): what they were made from, if rewards are shown it.

        The first in use comes after RM_0: so every rung has one scale, with whichever a run begins.
        """
        scale = RungScale()
        if images is not None:
            before = self._on(rung - 1) if rung else self._first
            both = (self._plain[rung], before)
            own, target = ((reward if lr is None else beside(reward, lr))(images).reward for reward in both)
            scale = RungScale.matching(own, target)
        self._scales[rung] = scale
        return scale

    def at(self, blend: RungBlend) -> RewardFn:
        """The reward of a blend; a rung that was not `reach`ed is on its own scale."""
        if blend.next is None:
            return self._on(blend.rung)
        return BlendedReward(self._on(blend.rung), self._on(blend.next), blend.weight)

    def _on(self, rung: int) -> RewardFn:
        scale = self._scales[rung]
        return self._plain[rung] if scale in (None, RungScale()) else ScaledReward(self._plain[rung], scale)

    def state_dict(self) -> dict[str, Any]:
        """The scales, plain data that `load_state_dict` goes on from."""
        return {"scales": [None if scale is None else dataclasses.asdict(scale) for scale in self._scales]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._scales = [None if scale is None else RungScale(**scale) for scale in state["scales"]]


@dataclass(frozen=True)
class ScaledReward:
    """gain·R + offset; score and degradation stay as they are."""

    plain: RewardFn
    scale: RungScale

    def __call__(self, images: torch.Tensor) -> Rewards:
        """See `RewardFn`."""
        return self._scaled(self.plain(images))

    def beside(self, lr: torch.Tensor) -> RewardFn:
        """See `LRRewardFn`."""
        return ScaledReward(beside(self.plain, lr), self.scale)

    def with_map(self, images: torch.Tensor) -> tuple[Rewards, torch.Tensor | None]:
        """See `MapRewardFn`."""
        rewards, degradation = score_with_map(self.plain, images)
        return self._scaled(rewards), degradation

    def _scaled(self, rewards: Rewards) -> Rewards:
        return dataclasses.replace(rewards, reward=self.scale.gain * rewards.reward + self.scale.offset)


@dataclass(frozen=True)
class BlendedReward:
    """(1 − weight)·``current`` + weight·``upcoming``, for every field of the rewards."""

    current: RewardFn
    upcoming: RewardFn
    weight: float

    def __call__(self, images: torch.Tensor) -> Rewards:
        """See `RewardFn`."""
        return self._mixed(self.current(images), self.upcoming(images))

    def beside(self, lr: torch.Tensor) -> RewardFn:
        """See `LRRewardFn`."""
        return BlendedReward(beside(self.current, lr), beside(self.upcoming, lr), self.weight)

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
