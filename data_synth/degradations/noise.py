"""Sensor noise of the blind degradation: Gaussian, or Poisson with its variance proportional to the brightness.

Kinds and defaults are Real-ESRGAN's (Wang et al. 2021, arXiv 2107.10833, §3.1) with one deviation: the photon count at white is a
setting (256), where the published code counts the picture's distinct levels and rounds up to a power of two. That is 256 for
nearly every photo too, but makes a flat picture's noise depend on its number of colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from data_synth.draws import DrawError, Range, between, check_probability, check_range
from data_synth.images import FloatImage, luma, to_8bit

NoiseKind = Literal["gaussian", "poisson"]


@dataclass(frozen=True)
class NoiseConfig:
    """Ranges of the noise; every range is (low, high), inclusive.

    Attributes:
        probability: chance of any noise.
        poisson_share: chance, given noise, that it is Poisson noise and not Gaussian.
        gaussian_sigma: standard deviation of Gaussian noise, in units of [0, 1] intensity.
        poisson_scale: factor on Poisson noise; 1 is the noise of a sensor that counts ``poisson_peak`` photons at white.
        poisson_peak: photons at white.
        grey_probability: chance, given noise, that the three channels share it.
    """

    probability: float = 1.0
    poisson_share: float = 0.5
    gaussian_sigma: Range = (1 / 255, 30 / 255)
    poisson_scale: Range = (0.05, 3.0)
    poisson_peak: float = 256.0
    grey_probability: float = 0.4

    def __post_init__(self) -> None:
        for name in ("probability", "poisson_share", "grey_probability"):
            check_probability(name, getattr(self, name))
        check_range("gaussian_sigma", self.gaussian_sigma, least=0)
        check_range("poisson_scale", self.poisson_scale, least=0)
        check_range("poisson_peak", (self.poisson_peak, self.poisson_peak), least=1)


@dataclass(frozen=True)
class Noise:
    """Drawn noise, as plain data.

    Attributes:
        kind: Gaussian or Poisson.
        amount: Gaussian's standard deviation in units of [0, 1] intensity, or Poisson's scale factor.
        is_grey: the three channels share it; Poisson's then follows the luma.
        seed: decides every pixel of it.
        peak: photons at white; unused by Gaussian noise.
    """

    kind: NoiseKind
    amount: float
    is_grey: bool
    seed: int
    peak: float = 256.0

    def __post_init__(self) -> None:
        if not (self.amount >= 0 and self.seed >= 0 and self.peak >= 1):
            raise DrawError(f"noise needs amount >= 0, seed >= 0 and peak >= 1, got {self.amount}, {self.seed}, {self.peak}")


def sample_noise(rng: np.random.Generator, config: NoiseConfig) -> Noise | None:
    """Draw the noise; None for none."""
    u_any, u_kind, u_amount, u_grey = rng.uniform(size=4)
    seed = int(rng.integers(2**31))
    if u_any >= config.probability:
        return None
    is_grey = bool(u_grey < config.grey_probability)
    if u_kind < config.poisson_share:
        return Noise("poisson", between(u_amount, config.poisson_scale), is_grey, seed, config.poisson_peak)
    return Noise("gaussian", between(u_amount, config.gaussian_sigma), is_grey, seed)


def add_noise(image: FloatImage, noise: Noise) -> FloatImage:
    """Add drawn noise to an H×W×3 float32 image; the sum is clipped to [0, 1].

    Gaussian: amount · N(0, 1). Poisson: amount · (Poisson(peak·I)/peak − I), of variance amount²·I/peak, where I is the image (or
    its luma) on 8-bit levels.
    """
    rng = np.random.default_rng(noise.seed)
    if noise.kind == "gaussian":
        pattern = rng.standard_normal((*image.shape[:2], 1 if noise.is_grey else 3), dtype=np.float32)
    else:
        pattern = _poisson_pattern(rng, image, noise)
    return np.clip(image + np.float32(noise.amount) * pattern, 0, 1)


def _poisson_pattern(rng: np.random.Generator, image: FloatImage, noise: Noise) -> npt.NDArray[np.float32]:
    signal = luma(image)[..., None] if noise.is_grey else image
    # 8-bit levels: the counts, drawn by rejection, then cannot hang on the last bit of a float.
    level = to_8bit(signal) / 255.0
    return (rng.poisson(level * noise.peak) / noise.peak - level).astype(np.float32)
