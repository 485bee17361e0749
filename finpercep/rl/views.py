"""Views: a reward with a gradient is asked about an image as another crop would hold it, so that its pixel grid cannot be fitted.

The gradient of a network with strides finds patterns that it takes for quality only where they lie on its grid: moved by a pixel,
turned or mirrored they are worth nothing. Drawn anew for every update, views leave the gradient of the expectation over them
(Athalye et al., arXiv 1707.07397, §2). The fine-tuned policy's images are seen in one piece by everybody else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from finpercep.reward import RewardFn, Rewards, beside
from finpercep.windows import Window

SHARE, MOST = 8, 16
"""An eighth of each side is left out, at most 16 px: what the window is moved by."""

LEAST = 32
"""Side of the smallest image that a reward model takes."""


class View(Window):
    """A window of images, mirrored and turned."""

    def of(self, images: torch.Tensor, scale: int = 1) -> torch.Tensor:
        """The same place of images (…, H/scale, W/scale); gradients flow. ``scale`` must divide the window."""
        turned = torch.rot90(images[(..., *self.crop(scale))], self.turns, (-2, -1))
        return turned.flip(-1) if self.flip else turned


def draw_view(rng: np.random.Generator, size: tuple[int, int], grid: int = 1) -> View:
    """Draw a view of images of (height, width) ``size``, its corner and its sides on multiples of ``grid`` px."""
    spare = [grid * (max(0, min(side // SHARE, MOST, side - LEAST)) // grid) for side in size]
    top, left = (grid * int(rng.integers(room // grid + 1)) for room in spare)
    height, width = (side - room for side, room in zip(size, spare, strict=True))
    return View(top, left, height, width, turns=int(rng.integers(4)), flip=bool(rng.integers(2)))


@dataclass(frozen=True)
class ViewedReward:
    """`RewardFn`: the reward of a view of the images."""

    reward: RewardFn
    view: View

    def __call__(self, images: torch.Tensor) -> Rewards:
        """See `RewardFn`."""
        return self.reward(self.view.of(images))


def seen(reward: RewardFn, lr: torch.Tensor, scale: int, view: int | None) -> RewardFn:
    """``reward``, shown the LR pictures if it takes them, and asked about a view of the images.

    Args:
        reward: of images (N, 3, H, W).
        lr: (N, 3, H/scale, W/scale), what they are made from.
        scale: of the policy.
        view: seed that draws it; None: the images as they are.
    """
    plain = beside(reward, lr)
    if view is None:
        return plain
    shows_lr = plain is not reward
    size = (scale * lr.shape[-2], scale * lr.shape[-1])
    drawn = draw_view(np.random.default_rng(view), size, grid=scale if shows_lr else 1)
    return ViewedReward(beside(reward, drawn.of(lr, scale)) if shows_lr else reward, drawn)
