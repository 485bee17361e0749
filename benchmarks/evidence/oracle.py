"""A reward that knows the ground truth: what a perfect reward model could give. Tells a weak reward from a weak loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torchvision.transforms.v2.functional import gaussian_blur

from data_synth.ground_truth import GroundTruthConfig
from finpercep.errors import RewardRejected
from finpercep.reward import Rewards, RewardWeights, fuse

Pair = tuple[torch.Tensor, torch.Tensor]


class Oracle:
    """`RewardSource` and `DrawPair` in one: it remembers the photos that were drawn last, and compares with those.

    S is SSIM, which the panel does not contain, and M the pixel term of M_gt (method §3, α = 1), both differentiable.

    Args:
        draw_pair: what draws.
        batch_size: photos of a step.
    """

    def __init__(self, draw_pair: Callable[[np.random.Generator], Pair], batch_size: int) -> None:
        import pyiqa

        self._draw, self._size = draw_pair, batch_size
        self._photos: list[torch.Tensor] = []
        self._ssim: Any = pyiqa.create_metric("ssim", as_loss=True)

    def __call__(self, rng: np.random.Generator) -> Pair:
        """Draw a pair and remember its photo."""
        hr, lr = self._draw(rng)
        self._photos = [*self._photos, hr][-self._size :]
        return hr, lr

    def rungs(self) -> Sequence[str]:
        """One."""
        return ("GT",)

    def has_map(self, rung: str) -> bool:  # noqa: ARG002
        """It has one."""
        return True

    def reward_fn(self, rung: str, weights: RewardWeights) -> Callable[[torch.Tensor], Rewards]:  # noqa: ARG002
        """R of images (N, 3, H, W) in the order in which their photos were drawn."""

        def reward(images: torch.Tensor) -> Rewards:
            if len(images) != len(self._photos):
                raise RewardRejected(f"the oracle knows {len(self._photos)} photos, and was asked about {len(images)} images")
            photos = torch.stack(self._photos)
            score = torch.stack(
                [self._ssim(image[None], photo[None]).mean() for image, photo in zip(images, photos, strict=True)]
            )
            rewards = fuse(score, pixel_map(images, photos, GroundTruthConfig()), weights)
            seen = (rewards.score.detach(), rewards.max_degradation.detach(), rewards.mean_degradation.detach())
            return Rewards(rewards.reward, *seen)

        return reward


def pixel_map(images: torch.Tensor, photos: torch.Tensor, config: GroundTruthConfig) -> torch.Tensor:
    """clip((gain·pooled |image − photo| − floor) / (scale − floor), 0, 1), (N, H, W), differentiable."""
    absolute = (images - photos).abs().mean(1)
    difference = config.pixel_gain * gaussian_blur(absolute, [7, 7], [config.pixel_pooling] * 2)
    return ((difference - config.floor) / (config.scale - config.floor)).clamp(0, 1)
