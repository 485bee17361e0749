"""Lossy compression as a degradation: an encode and decode round trip through Pillow's JPEG or WebP.

Real-ESRGAN compresses by JPEG alone (Wang et al. 2021, arXiv 2107.10833, §3.1); WebP is this project's addition, because many
pictures on the web come that way by now. Knows nothing about the other steps.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from data_synth.draws import DrawError, check_probability, check_range, integer_between
from data_synth.images import FloatImage, to_8bit, to_float

CodecFormat = Literal["jpeg", "webp"]


@dataclass(frozen=True)
class CodecConfig:
    """Ranges of a compression; every range is (low, high), inclusive.

    Attributes:
        probability: chance of any compression.
        webp_share: chance, given compression, that it is WebP and not JPEG; 0 is the published recipe.
        jpeg_quality: Pillow's JPEG quality, an integer in 1 … 100.
        webp_quality: Pillow's lossy WebP quality, likewise; at one number WebP is the stronger compression.
    """

    probability: float = 1.0
    webp_share: float = 0.2
    jpeg_quality: tuple[int, int] = (30, 95)
    webp_quality: tuple[int, int] = (30, 95)

    def __post_init__(self) -> None:
        check_probability("probability", self.probability)
        check_probability("webp_share", self.webp_share)
        check_range("jpeg_quality", self.jpeg_quality, least=1, most=100)
        check_range("webp_quality", self.webp_quality, least=1, most=100)


@dataclass(frozen=True)
class Codec:
    """A drawn compression, as plain data: the format and its quality, an integer in 1 … 100."""

    format: CodecFormat
    quality: int

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise DrawError(f"quality must lie in 1 … 100, got {self.quality}")


def sample_codec(rng: np.random.Generator, config: CodecConfig) -> Codec | None:
    """Draw a compression; None for none."""
    u_any, u_format, u_quality = rng.uniform(size=3)
    if u_any >= config.probability:
        return None
    if u_format < config.webp_share:
        return Codec("webp", integer_between(u_quality, config.webp_quality))
    return Codec("jpeg", integer_between(u_quality, config.jpeg_quality))


def compress(image: FloatImage, codec: Codec) -> FloatImage:
    """Encode and decode an H×W×3 float32 image; values outside [0, 1] are clipped. Returns 8-bit levels as float32."""
    return (jpeg_round_trip if codec.format == "jpeg" else webp_round_trip)(image, codec.quality)


def jpeg_round_trip(image: FloatImage, quality: int) -> FloatImage:
    """Encode as 8-bit JPEG of the given quality (4:2:0 chroma, Pillow's default) and decode again."""
    return _round_trip(image, "JPEG", quality)


def webp_round_trip(image: FloatImage, quality: int) -> FloatImage:
    """Encode as 8-bit lossy WebP of the given quality and decode again."""
    return _round_trip(image, "WEBP", quality)


def _round_trip(image: FloatImage, pillow_format: str, quality: int) -> FloatImage:
    buffer = io.BytesIO()
    Image.fromarray(to_8bit(image)).save(buffer, pillow_format, quality=quality)
    with Image.open(buffer) as picture:
        return to_float(np.asarray(picture))
