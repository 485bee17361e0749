"""The reward computed in this process: the same `RewardSource` as a server's, over a dict of predictors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from finpercep.errors import RewardError, RewardRejected
from finpercep.reward import RewardFn, Rewards, RewardWeights, fuse
from finpercep.wire import WireError, check_images

if TYPE_CHECKING:
    from finpercep.predictor import Predictor


def side_fault(height: int, width: int, min_side: int) -> str | None:
    """What is wrong with an image's size for a model, or None. Servers and local rewards say the same sentence."""
    if min(height, width) >= min_side:
        return None
    return f"image must be at least {min_side} px on each side, got {width}x{height}"


def as_pixels(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Images of any wire dtype as float32 in [0, 1] on ``device``; gradients flow back to float images."""
    images = images.to(device)
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def score_batch(
    predictor: Predictor, pixels: torch.Tensor, weights: RewardWeights, lr: torch.Tensor | None = None
) -> tuple[Rewards, torch.Tensor | None]:
    """Fused rewards and maps of one batch.

    Args:
        pixels: N×3×H×W float32 RGB in [0, 1], on the predictor's device; gradients flow to it.
        weights: of the reward.
        lr: N×3×h×w the same, what they were made from, for a rung that takes it.

    Returns:
        Rewards, and the maps (N, H, W) or None for a rung without a map.
    """
    batch = predictor.score(pixels) if lr is None else predictor.score(pixels, lr)
    return fuse(batch.score, batch.map, weights), batch.map


class LocalReward:
    """`RewardFn` of one predictor. As with a remote reward, gradients flow from ``reward`` alone."""

    def __init__(self, predictor: Predictor, weights: RewardWeights, lr: torch.Tensor | None = None) -> None:
        self.predictor = predictor
        self.weights = weights
        self.lr = lr

    def beside(self, lr: torch.Tensor) -> LocalReward:
        """See `LRRewardFn`."""
        return LocalReward(self.predictor, self.weights, lr) if self.predictor.takes_lr else self

    def __call__(self, images: torch.Tensor) -> Rewards:
        """Score ``images``, N×3×H×W float RGB in [0, 1].

        Raises:
            RewardRejected: the images are not what a reward can be had of.
            RewardError: the model's result is not finite.
        """
        return self._score(images)[0]

    @torch.no_grad()
    def with_map(self, images: torch.Tensor) -> tuple[Rewards, torch.Tensor | None]:
        """See `MapRewardFn`; raises as a call does."""
        return self._score(images)

    def _score(self, images: torch.Tensor) -> tuple[Rewards, torch.Tensor | None]:
        try:
            check_images(images)
            if self.lr is not None:
                check_images(self.lr, "lr", "lr")
        except WireError as error:
            raise RewardRejected(str(error)) from error
        if fault := side_fault(images.shape[-2], images.shape[-1], self.predictor.min_side):
            raise RewardRejected(fault)
        lr = None if self.lr is None else as_pixels(self.lr, self.predictor.device)
        if lr is not None and len(lr) != len(images):
            raise RewardRejected(f"expected one LR picture for each of {len(images)} images, got {len(lr)}")
        if lr is not None and (lr.shape[-2] > images.shape[-2] or lr.shape[-1] > images.shape[-1]):
            own, theirs = (f"{shape[-1]}x{shape[-2]}" for shape in (lr.shape, images.shape))
            raise RewardRejected(f"LR pictures must not be larger than their images, {theirs}, got {own}")
        rewards, maps = score_batch(self.predictor, as_pixels(images, self.predictor.device), self.weights, lr)
        numbers = (rewards.reward, rewards.score, rewards.max_degradation, rewards.mean_degradation)
        if not all(number.isfinite().all() for number in numbers):
            raise RewardError(f"{self.predictor.rung} (digest {self.predictor.digest}): the reward is not finite")
        reward, score, worst, mean = (number.to(images.device) for number in numbers)
        return Rewards(reward, score.detach(), worst.detach(), mean.detach()), None if maps is None else maps.to(images.device)


class LocalSource:
    """`RewardSource` over predictors in this process.

    Args:
        predictors: rung → predictor, RM_0 first (`finpercep.predictor.load_predictors`).
    """

    def __init__(self, predictors: Mapping[str, Predictor]) -> None:
        self._predictors = dict(predictors)

    def rungs(self) -> Sequence[str]:
        """Names of the rungs, RM_0 first."""
        return tuple(self._predictors)

    def has_map(self, rung: str) -> bool:
        """Whether a rung has a degradation map. Raises as `reward_fn` does."""
        return self._predictor(rung).has_map

    def reward_fn(self, rung: str, weights: RewardWeights) -> RewardFn:
        """The reward of one rung.

        Raises:
            RewardRejected: there is no such rung.
        """
        return LocalReward(self._predictor(rung), weights)

    def digests(self) -> dict[str, str]:
        """Rung → digest."""
        return {rung: predictor.digest for rung, predictor in self._predictors.items()}

    def replace(self, rung: str, predictor: Predictor) -> None:
        """Answer with ``predictor`` for ``rung`` from now on; a `reward_fn` that was asked for before keeps the old one."""
        self._predictor(rung)
        self._predictors[rung] = predictor

    def _predictor(self, rung: str) -> Predictor:
        if rung not in self._predictors:
            raise RewardRejected(f"unknown rung {rung!r}; there are {', '.join(self._predictors)}")
        return self._predictors[rung]
