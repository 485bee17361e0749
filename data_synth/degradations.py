"""I_LR: a clean photo made worse by a blind degradation, as plain parameters first, then their pure effect.

`sample_degradation` draws a `Degradation` (numbers only); `degrade` applies it and gives the same pixels every time.
The order blur → resize → noise → JPEG, applied twice, is Real-ESRGAN's (Wang et al., 2021, §3). Knows nothing about files.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy.signal import fftconvolve
from torch.nn import functional as F

FloatImage = npt.NDArray[np.float32]
"""H×W×3 float32 RGB in [0, 1]."""

Interpolation = Literal["area", "bilinear", "bicubic"]
INTERPOLATIONS: tuple[Interpolation, ...] = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class StageRange:
    """Ranges one degradation stage is drawn from; every range is (low, high), inclusive.

    Attributes:
        blur_probability: chance of a Gaussian blur.
        blur_sigma: its standard deviation along either axis, in px of the stage's input.
        resize: factor of the stage's resize, log-uniform; (1, 1) for none.
        noise_probability: chance of additive noise.
        noise_sigma: its standard deviation, in units of [0, 1] intensity.
        grey_noise_probability: chance, given noise, that the three channels share it.
        jpeg_probability: chance of a JPEG round trip.
        jpeg_quality: its quality setting.
    """

    blur_probability: float = 0.8
    blur_sigma: tuple[float, float] = (0.2, 3.0)
    resize: tuple[float, float] = (0.5, 1.5)
    noise_probability: float = 0.8
    noise_sigma: tuple[float, float] = (1 / 255, 15 / 255)
    grey_noise_probability: float = 0.4
    jpeg_probability: float = 1.0
    jpeg_quality: tuple[int, int] = (30, 95)


@dataclass(frozen=True)
class DegradationConfig:
    """What `sample_degradation` draws from.

    Attributes:
        scale: the whole degradation's reduction factor (LR = H/scale × W/scale).
        stages: ranges of each stage, in order.
    """

    scale: int = 4
    stages: tuple[StageRange, ...] = (StageRange(), StageRange(resize=(0.6, 1.2), noise_sigma=(1 / 255, 12 / 255)))

    @classmethod
    def light(cls, scale: int = 4) -> DegradationConfig:
        """A camera's mild faults: slight blur and noise before the reduction; what the packaged SR model is trained on."""
        stage = StageRange(
            blur_probability=0.5,
            blur_sigma=(0.2, 1.2),
            resize=(1.0, 1.0),
            noise_probability=0.5,
            noise_sigma=(0.5 / 255, 2 / 255),
            jpeg_probability=0.0,
        )
        return cls(scale=scale, stages=(stage,))


@dataclass(frozen=True)
class Stage:
    """One drawn stage; None switches the step off. Units as in `StageRange`; ``blur_angle`` in radians."""

    blur_sigma: tuple[float, float] | None
    blur_angle: float
    resize: float
    interpolation: Interpolation
    noise_sigma: float | None
    noise_is_grey: bool
    noise_seed: int
    jpeg_quality: int | None


@dataclass(frozen=True)
class Degradation:
    """A drawn degradation: plain data, stored in the sample's recipe and replayed exactly by `degrade`."""

    scale: int
    stages: tuple[Stage, ...]
    interpolation: Interpolation = field(default="bicubic")


def sample_degradation(rng: np.random.Generator, config: DegradationConfig) -> Degradation:
    """Draw one degradation. Consumes a fixed number of draws per stage, so configs stay comparable under one seed."""
    stages = tuple(_sample_stage(rng, ranges) for ranges in config.stages)
    return Degradation(config.scale, stages, INTERPOLATIONS[rng.integers(len(INTERPOLATIONS))])


def _sample_stage(rng: np.random.Generator, ranges: StageRange) -> Stage:
    sigma = rng.uniform(*ranges.blur_sigma, size=2)
    angle = float(rng.uniform(0, math.pi))
    resize = float(np.exp(rng.uniform(*np.log(ranges.resize))))
    interpolation = INTERPOLATIONS[rng.integers(len(INTERPOLATIONS))]
    noise_sigma = float(rng.uniform(*ranges.noise_sigma))
    quality = int(rng.integers(ranges.jpeg_quality[0], ranges.jpeg_quality[1] + 1))
    has_blur, has_noise, has_grey, has_jpeg = rng.uniform(size=4) < (
        ranges.blur_probability,
        ranges.noise_probability,
        ranges.grey_noise_probability,
        ranges.jpeg_probability,
    )
    return Stage(
        blur_sigma=(float(sigma[0]), float(sigma[1])) if has_blur else None,
        blur_angle=angle,
        resize=resize,
        interpolation=interpolation,
        noise_sigma=noise_sigma if has_noise else None,
        noise_is_grey=bool(has_grey),
        noise_seed=int(rng.integers(2**31)),
        jpeg_quality=quality if has_jpeg else None,
    )


def degrade(image: FloatImage, degradation: Degradation) -> FloatImage:
    """Apply a drawn degradation.

    Args:
        image: H×W×3 float32 in [0, 1]; H and W multiples of ``degradation.scale``.
        degradation: what to do to it.

    Returns:
        The LR image, H/scale × W/scale × 3, float32 in [0, 1], rounded to 8-bit levels as a stored picture would be.

    Raises:
        ValueError: H or W is not a multiple of the scale.
    """
    height, width = image.shape[:2]
    if height % degradation.scale or width % degradation.scale:
        raise ValueError(f"image sides must be multiples of {degradation.scale}, got {width}x{height}")
    lr_size = (height // degradation.scale, width // degradation.scale)
    current = image
    for stage in degradation.stages:
        current = _apply_stage(current, stage, lr_size)
    current = resize_image(current, lr_size, degradation.interpolation)
    return (np.rint(np.clip(current, 0, 1) * 255) / 255).astype(np.float32)


def _apply_stage(image: FloatImage, stage: Stage, lr_size: tuple[int, int]) -> FloatImage:
    if stage.blur_sigma is not None:
        image = gaussian_blur(image, stage.blur_sigma, stage.blur_angle)
    if stage.resize != 1.0:
        size = tuple(max(low, round(side * stage.resize)) for side, low in zip(image.shape[:2], lr_size, strict=True))
        image = resize_image(image, (size[0], size[1]), stage.interpolation)
    if stage.noise_sigma is not None:
        channels = 1 if stage.noise_is_grey else 3
        noise = np.random.default_rng(stage.noise_seed).standard_normal((*image.shape[:2], channels), dtype=np.float32)
        image = np.clip(image + stage.noise_sigma * noise, 0, 1)
    if stage.jpeg_quality is not None:
        image = jpeg_round_trip(image, stage.jpeg_quality)
    return image


def gaussian_blur(image: FloatImage, sigma: tuple[float, float], angle: float) -> FloatImage:
    """Anisotropic Gaussian blur with reflected borders; ``sigma`` in px along the axes turned by ``angle`` radians."""
    radius = max(1, math.ceil(3 * max(sigma)))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    u = x * math.cos(angle) + y * math.sin(angle)
    v = y * math.cos(angle) - x * math.sin(angle)
    kernel = np.exp(-0.5 * ((u / sigma[0]) ** 2 + (v / sigma[1]) ** 2))
    kernel /= kernel.sum()
    padded = np.pad(image, ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    blurred = fftconvolve(padded, kernel[:, :, None].astype(np.float32), mode="valid", axes=(0, 1))
    return np.clip(blurred, 0, 1).astype(np.float32)


def resize_image(image: FloatImage, size: tuple[int, int], interpolation: Interpolation) -> FloatImage:
    """Resize to ``size`` (height, width) with anti-aliasing. Returns float32, not clipped for bicubic overshoot."""
    tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    if interpolation == "area":
        resized = F.interpolate(tensor, size, mode="area")
    else:
        resized = F.interpolate(tensor, size, mode=interpolation, antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).contiguous().numpy()


def jpeg_round_trip(image: FloatImage, quality: int) -> FloatImage:
    """Encode as 8-bit JPEG of the given quality and decode again."""
    buffer = io.BytesIO()
    Image.fromarray(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as picture:
        return np.asarray(picture, dtype=np.float32) / np.float32(255)
