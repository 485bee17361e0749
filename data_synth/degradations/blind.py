"""I_LR: a clean photo made worse by a blind degradation, as plain parameters first, then their pure effect.

`sample_degradation` draws a `Degradation` (numbers only); `degrade` applies it and gives the same pixels every time.
The second-order model is Real-ESRGAN's (Wang et al. 2021, arXiv 2107.10833, §3), its defaults the published option values:

    HR → blur → resize → noise → codec → blur → resize → noise → [resize to LR → sinc filter] and [codec], in either order

`DegradationConfig()` departs from it in three points: a floor under the intermediate size (`ResizeConfig.floor`; 0 undoes it),
a share of WebP (`CodecConfig.webp_share`; 0 undoes it), and a fixed photon count (see `noise`). The codecs are real ones, and
the HR image is not sharpened. Each step lives in a module of its own; this one only orders them. Knows nothing about files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from data_synth.degradations.blur_kernels import (
    BlurKernel,
    KernelConfig,
    SincConfig,
    convolve,
    kernel_array,
    sample_kernel,
    sample_sinc,
)
from data_synth.degradations.codecs import Codec, CodecConfig, compress, sample_codec
from data_synth.degradations.noise import Noise, NoiseConfig, add_noise, sample_noise
from data_synth.degradations.resizing import (
    InterpolationConfig,
    Resize,
    ResizeConfig,
    ResizeStyle,
    resize_image,
    resized_size,
    sample_resize,
    sample_style,
)
from data_synth.draws import DrawError, check_probability
from data_synth.images import FloatImage, to_8bit, to_float
from data_synth.schema.errors import FinpercepError


class DegradationError(FinpercepError, ValueError):
    """An image that a degradation cannot be applied to."""


@dataclass(frozen=True)
class StageConfig:
    """Ranges of one stage: blur → resize → noise → codec.

    Attributes:
        blur_probability: chance of a blur.
        kernel: its kernel.
        resize: the stage's resize.
        noise: the noise, and its chance.
        codec: the compression, and its chance.
    """

    blur_probability: float = 1.0
    kernel: KernelConfig = field(default_factory=KernelConfig)
    resize: ResizeConfig = field(default_factory=ResizeConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)

    def __post_init__(self) -> None:
        check_probability("blur_probability", self.blur_probability)


SECOND_STAGE = StageConfig(
    blur_probability=0.8,
    kernel=KernelConfig(sigma=(0.2, 1.5)),
    resize=ResizeConfig(probabilities=(0.3, 0.4, 0.3), factor=(0.3, 1.2), of="lr"),
    noise=NoiseConfig(gaussian_sigma=(1 / 255, 25 / 255), poisson_scale=(0.05, 2.5)),
    codec=CodecConfig(probability=0.0),  # the final step holds it
)
"""Published ranges of the second stage."""


@dataclass(frozen=True)
class FinalConfig:
    """Ranges of the final step: the resize to LR with a sinc filter, and a codec, in either order.

    Attributes:
        interpolation: how the resize to LR interpolates.
        sinc_probability: chance of the sinc filter, right after that resize.
        sinc: its ranges.
        codec: the compression, and its chance.
        codec_first_probability: chance that the codec comes before the resize and not after the filter.
    """

    interpolation: InterpolationConfig = field(default_factory=InterpolationConfig)
    sinc_probability: float = 0.8
    sinc: SincConfig = field(default_factory=lambda: SincConfig(large_cutoff=(math.pi / 3, math.pi)))
    codec: CodecConfig = field(default_factory=CodecConfig)
    codec_first_probability: float = 0.5

    def __post_init__(self) -> None:
        check_probability("sinc_probability", self.sinc_probability)
        check_probability("codec_first_probability", self.codec_first_probability)


@dataclass(frozen=True)
class DegradationConfig:
    """What `sample_degradation` draws from.

    Attributes:
        scale: the whole degradation's reduction factor (LR = H/scale × W/scale), a positive integer.
        stages: ranges of each stage, in order.
        final: ranges of the final step.
    """

    scale: int = 4
    stages: tuple[StageConfig, ...] = (StageConfig(), SECOND_STAGE)
    final: FinalConfig = field(default_factory=FinalConfig)

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    @classmethod
    def light(cls, scale: int = 4) -> DegradationConfig:
        """A camera's mild faults: slight blur and noise before the reduction; what the packaged SR model is trained on."""
        stage = StageConfig(
            blur_probability=0.5,
            kernel=KernelConfig(
                shape_probabilities=(0.0, 1.0, 0.0, 0.0, 0.0, 0.0), sinc_probability=0.0, sizes=(9,), sigma=(0.2, 1.2)
            ),
            resize=ResizeConfig(probabilities=(0.0, 0.0, 1.0)),
            noise=NoiseConfig(probability=0.5, poisson_share=0.0, gaussian_sigma=(0.5 / 255, 2 / 255)),
            codec=CodecConfig(probability=0.0),
        )
        final = FinalConfig(
            InterpolationConfig(antialias_probability=1.0), sinc_probability=0.0, codec=CodecConfig(probability=0.0)
        )
        return cls(scale=scale, stages=(stage,), final=final)


@dataclass(frozen=True)
class Stage:
    """One drawn stage; None switches a step off. The resize is relative to the HR image, not to the stage's input."""

    blur: BlurKernel | None
    resize: Resize
    noise: Noise | None
    codec: Codec | None


@dataclass(frozen=True)
class FinalStep:
    """The drawn final step: the resize to LR, then the sinc filter; the codec before both or after both. None: no such step."""

    resize: ResizeStyle
    sinc: BlurKernel | None
    codec: Codec | None
    codec_first: bool


@dataclass(frozen=True)
class Degradation:
    """A drawn degradation: plain data, stored in the sample's recipe and replayed exactly by `degrade`."""

    scale: int
    stages: tuple[Stage, ...]
    final: FinalStep

    def __post_init__(self) -> None:
        _check_scale(self.scale)


def _check_scale(scale: int) -> None:
    if scale < 1 or scale != int(scale):
        raise DrawError(f"scale must be a positive integer, got {scale}")


def sample_degradation(rng: np.random.Generator, config: DegradationConfig) -> Degradation:
    """Draw one degradation. Consumes a fixed number of draws per stage, so configs stay comparable under one seed."""
    stages = tuple(_sample_stage(rng, ranges, config.scale) for ranges in config.stages)
    return Degradation(config.scale, stages, _sample_final(rng, config.final))


def _sample_stage(rng: np.random.Generator, config: StageConfig, scale: int) -> Stage:
    has_blur = rng.uniform() < config.blur_probability
    kernel = sample_kernel(rng, config.kernel)
    return Stage(
        blur=kernel if has_blur else None,
        resize=sample_resize(rng, config.resize, scale),
        noise=sample_noise(rng, config.noise),
        codec=sample_codec(rng, config.codec),
    )


def _sample_final(rng: np.random.Generator, config: FinalConfig) -> FinalStep:
    u_sinc, u_order = rng.uniform(size=2)
    sinc = sample_sinc(rng, config.sinc)
    return FinalStep(
        resize=sample_style(rng, config.interpolation),
        sinc=sinc if u_sinc < config.sinc_probability else None,
        codec=sample_codec(rng, config.codec),
        codec_first=bool(u_order < config.codec_first_probability),
    )


def degrade(image: FloatImage, degradation: Degradation) -> FloatImage:
    """Apply a drawn degradation.

    Args:
        image: H×W×3 float32 in [0, 1]; H and W multiples of ``degradation.scale``.
        degradation: what to do to it.

    Returns:
        The LR image, H/scale × W/scale × 3, float32 in [0, 1], rounded to 8-bit levels as a stored picture would be.

    Raises:
        DegradationError: not an H×W×3 image, or H or W is not a multiple of the scale; crop it first.
    """
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DegradationError(f"an image to degrade must be H×W×3, got {image.shape}")
    height, width = image.shape[:2]
    if height % degradation.scale or width % degradation.scale:
        raise DegradationError(f"image sides must be multiples of {degradation.scale}, got {width}x{height}; crop it first")
    current = image
    for stage in degradation.stages:
        current = apply_stage(current, stage, (height, width))
    lr_size = (height // degradation.scale, width // degradation.scale)
    return to_float(to_8bit(apply_final(current, degradation.final, lr_size)))


def apply_stage(image: FloatImage, stage: Stage, hr_size: tuple[int, int]) -> FloatImage:
    """Blur → resize → noise → codec on one H×W×3 float32 image; ``hr_size`` (height, width) is the HR image's."""
    if stage.blur is not None:
        image = convolve(image, kernel_array(stage.blur))
    image = _resize(image, resized_size(hr_size, stage.resize.factor), stage.resize.style)
    if stage.noise is not None:
        image = add_noise(image, stage.noise)
    return image if stage.codec is None else compress(image, stage.codec)


def apply_final(image: FloatImage, final: FinalStep, lr_size: tuple[int, int]) -> FloatImage:
    """The final step on one H×W×3 float32 image; returns ``lr_size`` (height, width), not clipped."""
    if final.codec is not None and final.codec_first:
        image = compress(image, final.codec)
    image = _resize(image, lr_size, final.resize)
    if final.sinc is not None:
        image = convolve(image, kernel_array(final.sinc))
    return image if final.codec is None or final.codec_first else compress(image, final.codec)


def _resize(image: FloatImage, size: tuple[int, int], style: ResizeStyle) -> FloatImage:
    if image.shape[:2] == size:
        return image
    return resize_image(image, size, style.interpolation, antialias=style.antialias)
