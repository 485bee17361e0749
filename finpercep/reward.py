"""The reward R_k: how a score and a degradation map become one number, and what every reward function looks like.

Plain data and pure functions on tensors; knows nothing about models, files or HTTP. A fine-tuning loop sees only
`RewardFn`, so it cannot tell a reward computed in its own process from one served over a network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from finpercep.errors import ConfigError

DEFAULT_TOP_FRACTION = 0.01

LARGEST_WEIGHT = 1e6
"""A reward of larger weights could leave float32, in itself or in its gradient."""

_BLOCK = 4 * 1024 * 1024
"""Pixels whose largest are looked for at a time."""


@dataclass(frozen=True)
class RewardWeights:
    """Weights of R_k = λ_score·S + λ_max·(1 − max^(M)) + λ_mean·(1 − mean(M))   (FinPercep-RM, arXiv 2512.22647; method §5).

    The mean term is this project's; 0 gives the paper's form. The default weights sum to 1, so that R lies in [0, 1].
    Rungs without a map ignore both map terms.

    Attributes:
        score: λ_score, weight of the global score S in [0, 1].
        max: λ_max, weight of 1 − max^(M).
        mean: λ_mean, weight of 1 − mean(M).
        top_fraction: share of pixels whose mean estimates the maximum max^, in (0, 1].
    """

    score: float = 0.5
    max: float = 0.25
    mean: float = 0.25
    top_fraction: float = DEFAULT_TOP_FRACTION

    def __post_init__(self) -> None:
        for name in ("score", "max", "mean"):
            if not 0 <= getattr(self, name) <= LARGEST_WEIGHT:
                raise ConfigError(f"reward weight {name} must lie in [0, {LARGEST_WEIGHT:g}], got {getattr(self, name)}")
        if not 0 < self.top_fraction <= 1:
            raise ConfigError(f"top_fraction must lie in (0, 1], got {self.top_fraction}")


@dataclass(frozen=True)
class Rewards:
    """Rewards of a batch, one entry an image; differentiable wherever the images were.

    Attributes:
        reward: float32 (N,), the fused R_k; higher is better.
        score: float32 (N,), global score S in [0, 1]; higher is better.
        max_degradation: float32 (N,), max^(M) in [0, 1]; 0 for a rung without a map.
        mean_degradation: float32 (N,), mean of M in [0, 1]; 0 for a rung without a map.
        parts: where several rewards are added up, each one's own number, (N,) by name; else empty.
    """

    reward: torch.Tensor
    score: torch.Tensor
    max_degradation: torch.Tensor
    mean_degradation: torch.Tensor
    parts: Mapping[str, torch.Tensor] = field(default_factory=dict)


class RewardFn(Protocol):
    """images → rewards. Raises `RewardError` when a reward cannot be had; a failure is never a number."""

    def __call__(self, images: torch.Tensor) -> Rewards:
        """Score ``images`` (N×3×H×W float RGB in [0, 1]); gradients flow to them from ``reward`` alone.

        The other three are for monitoring: over a wire only ∂R/∂image travels, so a local reward detaches them too.
        """
        ...


@runtime_checkable
class MapRewardFn(RewardFn, Protocol):
    """A `RewardFn` that can also show where an image is broken."""

    def with_map(self, images: torch.Tensor) -> tuple[Rewards, torch.Tensor | None]:
        """The rewards, and the degradation maps (N, H, W) in [0, 1], 1 = degraded, or None for a rung without a map; no gradient.

        The map of an image that has no reward is NaN.
        """
        ...


def score_with_map(reward: RewardFn, images: torch.Tensor) -> tuple[Rewards, torch.Tensor | None]:
    """`MapRewardFn.with_map` of a reward.

    Raises:
        ConfigError: it is a reward without maps.
    """
    if not isinstance(reward, MapRewardFn):
        raise ConfigError(f"expected a reward with degradation maps, got {type(reward).__name__}, which has none")
    return reward.with_map(images)


@runtime_checkable
class LRRewardFn(RewardFn, Protocol):
    """A `RewardFn` that can be shown what the images were made from."""

    def beside(self, lr: torch.Tensor) -> RewardFn:
        """The reward of images made from ``lr``, one LR picture (3, h, w) in [0, 1] for each image, in their order."""
        ...


def beside(reward: RewardFn, lr: torch.Tensor) -> RewardFn:
    """The reward of images made from ``lr`` (N, 3, h, w); one that cannot be shown it stays as it is."""
    return reward.beside(lr) if isinstance(reward, LRRewardFn) else reward


class RewardSource(Protocol):
    """The rungs a reward can be read from: a local ladder or a server."""

    def rungs(self) -> Sequence[str]:
        """Names of the rungs, RM_0 first."""
        ...

    def has_map(self, rung: str) -> bool:
        """Whether a rung has a degradation map; without one its reward is λ_score·S."""
        ...

    def reward_fn(self, rung: str, weights: RewardWeights) -> RewardFn:
        """The reward of one rung."""
        ...


SCORE_ONLY = RewardWeights(score=1.0, max=0.0, mean=0.0)
"""Weights under which R is the score S."""


def weights_on(source: RewardSource, rung: str, weights: RewardWeights) -> RewardWeights:
    """``weights``, or on a rung without a map those of R = S, on the same [0, 1] as the other rungs' R."""
    return weights if source.has_map(rung) else SCORE_ONLY


def top_fraction_mean(degradation_map: torch.Tensor, fraction: float) -> torch.Tensor:
    """max^(M): the mean of the top ``fraction`` of pixels, a maximum that one hot pixel cannot set.

    Args:
        degradation_map: (N, H, W), in [0, 1].
        fraction: in (0, 1]; at least one pixel is taken.

    Returns:
        (N,), between mean(M) and max(M).
    """
    flat = degradation_map.flatten(1)
    count = max(1, round(flat.shape[1] * fraction))
    return _largest(flat, count).mean(dim=1)


def _largest(flat: torch.Tensor, count: int) -> torch.Tensor:
    """The ``count`` largest of every row, (N, count); of long rows, block by block, because `topk` takes 16 bytes an element."""
    if torch.compiler.is_compiling() or flat.shape[1] <= _BLOCK:  # in this order: a traced size must not be compared
        return flat.topk(count, dim=1).values
    first, *others = flat.split(_BLOCK, dim=1)
    largest = first.topk(min(count, first.shape[1]), dim=1).values
    for block in others:
        largest = torch.cat([largest, block], dim=1)
        largest = largest.topk(min(count, largest.shape[1]), dim=1).values
    return largest


def fuse(score: torch.Tensor, degradation_map: torch.Tensor | None, weights: RewardWeights) -> Rewards:
    """R_k from a score and a map (method §5).

    Args:
        score: (N,) in [0, 1].
        degradation_map: (N, H, W) in [0, 1], or None for RM_0, whose R is λ_score·S (λ2 = 0).
    """
    if degradation_map is None:
        zero = torch.zeros_like(score)
        return Rewards(weights.score * score, score, zero, zero)
    worst = top_fraction_mean(degradation_map, weights.top_fraction)
    mean = degradation_map.flatten(1).mean(dim=1)
    reward = weights.score * score + weights.max * (1 - worst) + weights.mean * (1 - mean)
    return Rewards(reward, score, worst, mean)
