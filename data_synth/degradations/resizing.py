"""Resizing as a degradation: up, down or not at all, by one of several interpolations, anti-aliased or not.

Probabilities and ranges are Real-ESRGAN's (Wang et al. 2021, arXiv 2107.10833, §3.1, and its published option values), and so is
that bilinear and bicubic reductions alias; the floor under the size is this project's (`ResizeConfig.floor`). Area is not theirs:
PyTorch's pools whole pixels in windows rounded outwards, which moves content by up to half an LR px where ratios are not whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from data_synth.draws import DrawError, Range, between, check_probabilities, check_probability, check_range, choose
from data_synth.images import FloatImage

Interpolation = Literal["area", "bilinear", "bicubic"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)


@dataclass(frozen=True)
class InterpolationConfig:
    """How pixels are interpolated.

    Attributes:
        kinds: interpolations, equally likely.
        antialias_probability: chance that a bilinear or bicubic reduction widens its kernel to average all pixels it drops. Area
            always averages. 0 is the published recipe: such reductions alias.
    """

    kinds: tuple[Interpolation, ...] = INTERPOLATIONS
    antialias_probability: float = 0.0

    def __post_init__(self) -> None:
        if not self.kinds or not set(self.kinds) <= set(INTERPOLATIONS):
            raise DrawError(f"interpolations must be some of {INTERPOLATIONS}, got {self.kinds}")
        check_probability("antialias_probability", self.antialias_probability)


@dataclass(frozen=True)
class ResizeConfig:
    """Ranges of a stage's resize.

    Attributes:
        probabilities: of enlarging, reducing, and keeping the size (factor 1); they sum to 1.
        factor: (smallest, largest) factor: enlarging draws uniformly from [1, largest], reducing from [smallest, 1].
        of: what the factor multiplies: the sides of the HR image, or of the final LR image. Published: the first stage's HR, the
            second's LR.
        floor: least side the stage leaves, in units of the final LR image's, in [0, 1]; smaller draws are raised to it. 0 is the
            published recipe, made for HR images of 400 px: there a x4 LR image may hold no more than 30 % of its side's detail,
            from which an SR model can only invent.
        interpolation: how.
    """

    probabilities: tuple[float, float, float] = (0.2, 0.7, 0.1)
    factor: Range = (0.15, 1.5)
    of: Literal["hr", "lr"] = "hr"
    floor: float = 0.5
    interpolation: InterpolationConfig = field(default_factory=InterpolationConfig)

    def __post_init__(self) -> None:
        check_probabilities("resize probabilities (up, down, keep)", self.probabilities, 3)
        check_range("factor", self.factor, least=0.01)
        if not self.factor[0] <= 1 <= self.factor[1]:
            raise DrawError(f"factor must hold 1 (reductions below, enlargements above), got {self.factor}")
        check_probability("floor", self.floor)


@dataclass(frozen=True)
class ResizeStyle:
    """A drawn way to interpolate, as plain data; ``antialias`` is unused by area."""

    interpolation: Interpolation
    antialias: bool


@dataclass(frozen=True)
class Resize:
    """A drawn resize, as plain data: the new sides in units of the HR image's sides, and how."""

    factor: float
    style: ResizeStyle

    def __post_init__(self) -> None:
        check_range("factor", (self.factor, self.factor), least=1e-6)


def sample_style(rng: np.random.Generator, config: InterpolationConfig) -> ResizeStyle:
    """Draw a way to interpolate."""
    u_kind, u_antialias = rng.uniform(size=2)
    return ResizeStyle(choose(u_kind, config.kinds), bool(u_antialias < config.antialias_probability))


def sample_resize(rng: np.random.Generator, config: ResizeConfig, scale: int) -> Resize:
    """Draw a resize for a degradation that reduces by ``scale`` in all."""
    u_mode, u_factor = rng.uniform(size=2)
    low, high = config.factor
    bounds = choose(u_mode, ((1.0, high), (low, 1.0), (1.0, 1.0)), config.probabilities)
    factor = between(u_factor, bounds) / (scale if config.of == "lr" else 1)
    return Resize(max(factor, config.floor / scale), sample_style(rng, config.interpolation))


def resized_size(hr_size: tuple[int, int], factor: float) -> tuple[int, int]:
    """(height, width) of ``factor`` times the HR image's, rounded, at least 1 px."""
    return max(1, round(hr_size[0] * factor)), max(1, round(hr_size[1] * factor))


def resize_image(image: FloatImage, size: tuple[int, int], interpolation: Interpolation, *, antialias: bool = True) -> FloatImage:
    """Resize H×W×3 float32 to ``size`` (height, width). Returns float32, not clipped for bicubic overshoot.

    Area weighs each input pixel by its overlap with the output pixel, parts of pixels included, so it moves nothing at any ratio;
    enlarging, it copies pixels and blends two where an output pixel lies across their border. ``antialias`` makes the others
    average when they reduce.
    """
    if interpolation == "area":
        return _average_rows(_average_rows(image, size[0]).swapaxes(0, 1), size[1]).swapaxes(0, 1).copy()
    tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    resized = F.interpolate(tensor, size, mode=interpolation, antialias=antialias, align_corners=False)
    return resized[0].permute(1, 2, 0).contiguous().numpy()


def _average_rows(image: FloatImage, count: int) -> FloatImage:
    """``image`` with ``count`` rows, each the mean of the input rows under it. Sums, not a matrix product: see `images.luma`."""
    overlaps = _overlaps(len(image), count)
    total = np.zeros((count, *image.shape[1:]), dtype=np.float32)
    for rows, weights in zip(overlaps.rows, overlaps.weights, strict=True):
        total += weights[:, None, None] * image[rows]
    return total


@dataclass(frozen=True)
class _Overlaps:
    """Non-zero weights of the matrix that averages input pixels to output pixels along one axis, K×out each.

    ``rows[k, i]`` is the k-th input pixel under output pixel i, ``weights[k, i]`` (float32) its share; a column sums to 1.
    """

    rows: npt.NDArray[np.intp]
    weights: npt.NDArray[np.float32]


@lru_cache(maxsize=256)
def _overlaps(before: int, after: int) -> _Overlaps:
    # in units in which an input pixel is `after` long and an output pixel `before`: all borders are whole numbers
    starts = np.arange(after) * before
    rows = starts // after + np.arange(-(-before // after) + 1)[:, None]
    shares = np.minimum((rows + 1) * after, starts + before) - np.maximum(rows * after, starts)
    weights = np.clip(shares, 0, None) / before
    used = weights.any(axis=1)
    return _Overlaps(np.minimum(rows, before - 1)[used], weights[used].astype(np.float32))
