"""Several rewards as one: each on a scale of its own, weighted, and logged beside the sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from finpercep.errors import ConfigError, RewardRejected
from finpercep.reward import RewardFn, Rewards, RewardSource, RewardWeights, beside, score_with_map, weights_on


@dataclass(frozen=True)
class Scale:
    """What a reward typically is, so that rewards of different ranges can be added: (r − mean) / std."""

    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def of(cls, values: torch.Tensor) -> Scale:
        """Mean and standard deviation of ``values`` (N,). Raises `ConfigError` when they are all the same."""
        std = float(values.double().std(correction=0))
        if not std > 0:
            raise ConfigError("a reward that gives every image the same number cannot be one of several")
        return cls(float(values.double().mean()), std)


@dataclass(frozen=True)
class Part:
    """One of several rewards: its name in the log, its weight, and where it comes from."""

    name: str
    weight: float
    source: RewardSource


class WeightedSource:
    """`RewardSource` of R = Σ wᵢ·(Rᵢ − meanᵢ)/stdᵢ. The rungs are the ladder's, if one part is one; the others stay as they are.

    Args:
        parts: at least one; at most one with several rungs.

    Attributes:
        ladder: the part with several rungs; else the first that has a map, and else the first.

    Raises:
        ConfigError: several ladders, or two parts of one name.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        ladders = [part for part in parts if len(part.source.rungs()) > 1]
        if len(ladders) > 1:
            raise ConfigError(f"at most one reward can be a ladder, got {', '.join(part.name for part in ladders)}")
        if len({part.name for part in parts}) < len(parts):
            raise ConfigError(f"each reward can be given once, got {', '.join(part.name for part in parts)}")
        self.parts = tuple(parts)
        shown = ladders or [part for part in parts if part.source.has_map(part.source.rungs()[0])] or parts
        self.ladder = shown[0]
        self._scales: dict[tuple[str, str], Scale] = {}

    def rungs(self) -> Sequence[str]:
        """The ladder's rungs."""
        return self.ladder.source.rungs()

    def has_map(self, rung: str) -> bool:
        """Whether the ladder's rung has a map."""
        return self.ladder.source.has_map(rung)

    def measure(self, images: torch.Tensor, weights: RewardWeights, lr: torch.Tensor | None = None) -> None:
        """Set the scale of every part, on every rung, to what it gives to ``images`` (N, 3, H, W), shown ``lr`` (N, 3, h, w)."""
        with torch.no_grad():
            for part in self.parts:
                for rung in part.source.rungs():
                    reward = part.source.reward_fn(rung, weights_on(part.source, rung, weights))
                    shown = reward if lr is None else beside(reward, lr)
                    self._scales[part.name, rung] = Scale.of(shown(images).reward)

    def scales(self) -> dict[str, dict[str, list[float]]]:
        """The scales as plain data, part → rung → (mean, std)."""
        found: dict[str, dict[str, list[float]]] = {}
        for (part, rung), scale in self._scales.items():
            found.setdefault(part, {})[rung] = [scale.mean, scale.std]
        return found

    def set_scales(self, scales: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        """Set what `scales` gave. Raises `ConfigError` when it was of other rewards."""
        given = {(part, rung): Scale(*pair) for part, own in scales.items() for rung, pair in own.items()}
        if given.keys() != (own := {(part.name, rung) for part in self.parts for rung in part.source.rungs()}):
            told = ", ".join(sorted({f"{part} {rung}" for part, rung in given.keys() ^ own}))
            raise ConfigError(f"the scales that were kept are those of other rewards; they differ in {told}")
        self._scales.update(given)

    def _scale(self, part: str, rung: str) -> Scale:
        return self._scales.get((part, rung), Scale())

    def reward_fn(self, rung: str, weights: RewardWeights) -> RewardFn:
        """The sum on one rung of the ladder, on the scales of the moment it is asked."""
        terms = []
        for part in self.parts:
            own = rung if part is self.ladder else part.source.rungs()[0]
            terms.append((part, partial(self._scale, part.name, own), part.source.reward_fn(own, weights)))
        return WeightedReward(terms, self.parts.index(self.ladder))


@dataclass(frozen=True)
class WeightedReward:
    """`RewardFn` of the sum; score and degradation are those of the part at ``shown``."""

    terms: Sequence[tuple[Part, Callable[[], Scale], RewardFn]]
    shown: int

    def __call__(self, images: torch.Tensor) -> Rewards:
        """See `RewardFn`. ``parts`` of the result holds every part's own number, before scale and weight.

        Raises:
            RewardRejected: a gradient is needed and a part has none; without it the others alone would be followed.
        """
        each = [reward(images) for _, _, reward in self.terms]
        without = [part.name for (part, _, _), one in zip(self.terms, each, strict=True) if not one.reward.requires_grad]
        if images.requires_grad and without:
            names = ", ".join(without)
            raise RewardRejected(f"the algorithm goes through every reward's gradient, and {names} has none; leave it out")
        return self._summed(each)

    def beside(self, lr: torch.Tensor) -> RewardFn:
        """See `LRRewardFn`."""
        return WeightedReward([(part, scale, beside(reward, lr)) for part, scale, reward in self.terms], self.shown)

    def with_map(self, images: torch.Tensor) -> tuple[Rewards, torch.Tensor | None]:
        """See `MapRewardFn`; the map is that of the part whose degradation is shown. Raises `ConfigError` when it has none."""
        shown, degradation = score_with_map(self.terms[self.shown][2], images)
        with torch.no_grad():
            each = [shown if k == self.shown else reward(images) for k, (_, _, reward) in enumerate(self.terms)]
        return self._summed(each), degradation

    def _summed(self, each: Sequence[Rewards]) -> Rewards:
        pairs = list(zip(self.terms, each, strict=True))
        terms = [(part.weight, scale(), rewards.reward) for (part, scale, _), rewards in pairs]
        total = torch.stack([weight * (reward - scale.mean) / scale.std for weight, scale, reward in terms]).sum(0)
        shown = each[self.shown]
        parts = {part.name: rewards.reward.detach() for (part, _, _), rewards in pairs}
        return Rewards(total, shown.score, shown.max_degradation, shown.mean_degradation, parts)
