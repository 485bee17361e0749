"""Blur kernels of the blind degradation: drawn as a few numbers, rebuilt as arrays, applied by the FFT.

The six bell shapes and the sinc filter are Real-ESRGAN's (Wang et al. 2021, arXiv 2107.10833, §3); the defaults are its published
option values. Only the numbers are stored in a recipe, never an array. Knows nothing about resizing, noise or codecs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.special import j1

from data_synth.draws import DrawError, Range, between, check_probabilities, check_probability, check_range, choose
from data_synth.images import FloatImage

Kernel = npt.NDArray[np.float64]
"""size×size float64, sums to 1."""

KernelShape = Literal["gaussian", "generalised", "plateau", "sinc"]
BellShape = Literal[
    "isotropic gaussian",
    "anisotropic gaussian",
    "isotropic generalised",
    "anisotropic generalised",
    "isotropic plateau",
    "anisotropic plateau",
]
BELL_SHAPES: tuple[BellShape, ...] = get_args(BellShape)
_FORMULA: dict[BellShape, KernelShape] = {
    "isotropic gaussian": "gaussian",
    "anisotropic gaussian": "gaussian",
    "isotropic generalised": "generalised",
    "anisotropic generalised": "generalised",
    "isotropic plateau": "plateau",
    "anisotropic plateau": "plateau",
}
KERNEL_SIZES = tuple(range(7, 22, 2))
LEAST_SIGMA = 0.05
"""Px. A narrower bell is one sample wide in float64 anyway."""


@dataclass(frozen=True)
class SincConfig:
    """Ranges of a sinc filter: a circular low-pass, whose truncation rings as over-sharpened and resized pictures do.

    Attributes:
        sizes: odd kernel sides in px, equally likely.
        cutoff: its cutoff, in rad/px; π passes everything a row can hold.
        large_size: from this side on a kernel draws from ``large_cutoff``.
        large_cutoff: cutoff of large kernels, in rad/px: only they resolve a lower one.
    """

    sizes: tuple[int, ...] = KERNEL_SIZES
    cutoff: Range = (math.pi / 3, math.pi)
    large_size: int = 13
    large_cutoff: Range = (math.pi / 5, math.pi)

    def __post_init__(self) -> None:
        _check_sizes("sizes of the sinc filter", self.sizes)
        check_range("cutoff", self.cutoff, least=0.01, most=math.pi)
        check_range("large_cutoff", self.large_cutoff, least=0.01, most=math.pi)


@dataclass(frozen=True)
class KernelConfig:
    """Ranges of a blur kernel; every range is (low, high), inclusive.

    Attributes:
        shape_probabilities: of the six `BELL_SHAPES`, in their order; they sum to 1.
        sinc_probability: chance of a sinc filter instead of a bell.
        sizes: odd kernel sides in px of a bell, equally likely.
        sigma: standard deviation along either axis of the Gaussian, in px; for the others the same scale parameter.
        generalised_beta: exponent β of the generalised Gaussian: below 1 peaked with long tails, 1 Gaussian, above 1 flat.
        plateau_beta: exponent β of the plateau kernel. Either β is drawn below 1 in half of the draws and above 1 in the other
            half, where its range holds 1.
        sinc: ranges of the sinc filter.
    """

    shape_probabilities: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    sinc_probability: float = 0.1
    sizes: tuple[int, ...] = KERNEL_SIZES
    sigma: Range = (0.2, 3.0)
    generalised_beta: Range = (0.5, 4.0)
    plateau_beta: Range = (1.0, 2.0)
    sinc: SincConfig = field(default_factory=SincConfig)

    def __post_init__(self) -> None:
        check_probabilities("shape_probabilities", self.shape_probabilities, len(BELL_SHAPES))
        check_probability("sinc_probability", self.sinc_probability)
        _check_sizes("sizes", self.sizes)
        check_range("sigma", self.sigma, least=LEAST_SIGMA)
        check_range("generalised_beta", self.generalised_beta, least=0.01)
        check_range("plateau_beta", self.plateau_beta, least=0.01)


@dataclass(frozen=True)
class BlurKernel:
    """A drawn kernel, as plain data; `kernel_array` builds it.

    Attributes:
        shape: which formula.
        size: odd side in px.
        sigma: standard deviations along the kernel's two axes, in px; unused by the sinc.
        angle: of its first axis, from x (right) towards y (down), in radians; unused by the sinc.
        beta: exponent β of the generalised Gaussian and the plateau; 1 for the others.
        cutoff: cutoff of the sinc in rad/px; π for the others.
    """

    shape: KernelShape
    size: int
    sigma: tuple[float, float] = (1.0, 1.0)
    angle: float = 0.0
    beta: float = 1.0
    cutoff: float = math.pi

    def __post_init__(self) -> None:
        _check_sizes("size", (self.size,))
        check_range("sigma", (min(self.sigma), max(self.sigma)), least=LEAST_SIGMA)
        check_range("beta", (self.beta, self.beta), least=0.01)
        check_range("cutoff", (self.cutoff, self.cutoff), least=0.01, most=math.pi)


def _check_sizes(name: str, sizes: tuple[int, ...]) -> None:
    if not sizes or any(size < 1 or size % 2 == 0 for size in sizes):
        raise DrawError(f"{name} must be odd and positive, got {sizes}")


def sample_kernel(rng: np.random.Generator, config: KernelConfig) -> BlurKernel:
    """Draw a kernel: a sinc with ``sinc_probability``, else one of the six bells."""
    u_sinc, u_shape, u_size, u_sigma, u_sigma2, u_angle, u_side, u_beta = rng.uniform(size=8)
    sinc = sample_sinc(rng, config.sinc)
    if u_sinc < config.sinc_probability:
        return sinc
    bell = choose(u_shape, BELL_SHAPES, config.shape_probabilities)
    is_isotropic = bell.startswith("isotropic")
    sigma = between(u_sigma, config.sigma)
    return BlurKernel(
        shape=_FORMULA[bell],
        size=choose(u_size, config.sizes),
        sigma=(sigma, sigma if is_isotropic else between(u_sigma2, config.sigma)),
        angle=0.0 if is_isotropic else between(u_angle, (0.0, math.pi)),
        beta=between(u_beta, _half_of(_beta_range(_FORMULA[bell], config), below=u_side < 0.5)),
    )


def _beta_range(shape: KernelShape, config: KernelConfig) -> Range:
    if shape == "generalised":
        return config.generalised_beta
    return config.plateau_beta if shape == "plateau" else (1.0, 1.0)


def _half_of(beta: Range, *, below: bool) -> Range:
    low, high = beta
    if not low <= 1 <= high:
        return beta
    return (low, 1.0) if below else (1.0, high)


def sample_sinc(rng: np.random.Generator, config: SincConfig) -> BlurKernel:
    """Draw a sinc filter."""
    u_size, u_cutoff = rng.uniform(size=2)
    size = choose(u_size, config.sizes)
    return BlurKernel("sinc", size, cutoff=between(u_cutoff, config.large_cutoff if size >= config.large_size else config.cutoff))


def kernel_array(kernel: BlurKernel) -> Kernel:
    """Build a drawn kernel.

    With d² = xᵀΣ⁻¹x, where Σ = R(angle)·diag(sigma²)·R(angle)ᵀ and x is the offset from the centre:

    - gaussian: exp(−d²/2)
    - generalised: exp(−(d²)^β / 2)
    - plateau: 1 / (1 + (d²)^β)
    - sinc: cutoff / (2πr) · J₁(cutoff · r), r = |x|, the impulse response of an ideal circular low-pass (its equation 5)

    Returns:
        size×size float64 that sums to 1; rows are y, columns x. The square window truncates each formula.
    """
    radius = kernel.size // 2
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    if kernel.shape == "sinc":
        r = np.hypot(x, y)
        r[radius, radius] = 1
        values = kernel.cutoff * j1(kernel.cutoff * r) / (2 * math.pi * r)
        values[radius, radius] = kernel.cutoff**2 / (4 * math.pi)  # its limit for r → 0
    else:
        u = x * math.cos(kernel.angle) + y * math.sin(kernel.angle)
        v = y * math.cos(kernel.angle) - x * math.sin(kernel.angle)
        squared = ((u / kernel.sigma[0]) ** 2 + (v / kernel.sigma[1]) ** 2) ** kernel.beta
        values = 1 / (1 + squared) if kernel.shape == "plateau" else np.exp(-0.5 * squared)
    return values / values.sum()


def convolve(image: FloatImage, kernel: Kernel) -> FloatImage:
    """Convolve each channel, borders reflected about the outermost pixel.

    By the FFT: 3 ms for 256×256×3 whatever the kernel; direct sums take 3 to 60.

    Args:
        image: H×W×3 float32.
        kernel: odd square; symmetric about its centre, as those of `kernel_array` are.

    Returns:
        H×W×3 float32, not clipped: a sinc overshoots at edges.
    """
    radius = kernel.shape[0] // 2
    height, width = image.shape[:2]
    padded = np.pad(image, ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    # The circular convolution wraps around within the padding only.
    shape = [fft.next_fast_len(side, real=True) for side in padded.shape[:2]]
    spectrum = fft.rfft2(np.ascontiguousarray(padded.transpose(2, 0, 1)), shape)
    spectrum *= fft.rfft2(kernel.astype(np.float32), shape)
    planes = fft.irfft2(spectrum, shape)[:, 2 * radius : 2 * radius + height, 2 * radius : 2 * radius + width]
    return np.ascontiguousarray(planes.transpose(1, 2, 0), dtype=np.float32)
