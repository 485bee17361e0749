"""Features that need no weights: oriented gradients at several scales and opponent colours, in the spirit of FSIM and GMSD.

At each scale the gradient of luma is half-wave rectified in eight directions and pooled over about the scale, so that a shift
far below it is nearly invisible, a change of structure or sharpness not. A constant channel gives flat regions a direction: what
is much shorter is invisible. Structure and colour are compared by themselves, so that a saturated colour does not drown texture.

Two identities keep it cheap. The eight pooled half-waves are (A ± B)/2 of the four pooled magnitudes A and gradients B, and the
B of two directions give those of all four, so six planes a scale carry all inner products. And 1 − cos needs only three sums over
the planes: Σ(f − g)², Σf², Σg². Coarse scales are computed at half resolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from data_synth.images import LUMA

WEIGHT_FREE_VERSION = "2"
"""Rises whenever the values change."""

_SUPPORT = 2.5  # a Gaussian is cut at this many standard deviations
_HALVED_FROM = 2.5  # scales (px) computed at half resolution: blurred this much, nothing is left above its Nyquist frequency
_COLOUR_BLUR = 1.5


@dataclass(frozen=True)
class WeightFreeFeatures:
    """The weight-free `FeatureDifference`. Attributes as the fields of `GroundTruthConfig`, see there."""

    scales: tuple[float, ...] = (0.8, 1.6, 3.2)
    constant: float = 0.02
    colour_constant: float = 0.1
    colour_share: float = 0.3

    @property
    def reach(self) -> int:
        """Smoothing and pooling at the widest scale, the gradient's neighbours, and rounding at half resolution; even."""
        return 2 * math.ceil(_SUPPORT * max(*self.scales, _COLOUR_BLUR)) + 8

    def __call__(self, pair: torch.Tensor) -> torch.Tensor:
        """Difference of ``pair`` (2×3×H×W float32 RGB in [0, 1]): H×W float32 in [0, 2], exactly 0 for equal images."""
        structure = structure_difference(pair, self.scales, self.constant)
        return structure.mul_(1 - self.colour_share).add_(colour_difference(pair, self.colour_constant), alpha=self.colour_share)


def structure_difference(pair: torch.Tensor, scales: tuple[float, ...], constant: float) -> torch.Tensor:
    """1 − cos of the gradient features of ``pair`` (2×3×H×W): H×W."""
    luma = (pair * pair.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1)
    sums = _gradient_sums(luma, scales[0])
    for scale in scales[1:]:
        sums += _gradient_sums(luma, scale)
    return _one_minus_cosine(sums, constant)


def colour_difference(pair: torch.Tensor, constant: float) -> torch.Tensor:
    """1 − cos of two blurred opponent colours of ``pair`` (2×3×H×W): H×W."""
    red, green, blue = pair.unbind(1)
    opponents = torch.stack([(red - green) / math.sqrt(2), (red + green - 2 * blue) / math.sqrt(6)])
    return _one_minus_cosine(_sums(blur(opponents.flatten(0, 1), _COLOUR_BLUR).view_as(opponents)), constant)


def _gradient_sums(luma: torch.Tensor, scale: float) -> torch.Tensor:
    """`_sums` of the gradient features of 2×H×W luma at a Gaussian scale in px (and times it): 3×H×W."""
    pooling = max(1.0, scale)
    if scale < _HALVED_FROM:
        return _sums(_oriented_energy(blur(luma, scale), scale / 2, pooling))
    # What halving smooths by itself comes off the Gaussians: a 2×2 mean has variance 1/4, differences 4 instead of 2 px apart
    # add 1, linear interpolation adds 2/3 px².
    height, width = luma.shape[-2:]
    even = F.pad(luma, (0, width % 2, 0, height % 2), mode="replicate")
    halved = blur(F.avg_pool2d(even, 2), math.sqrt(scale**2 - 1.25) / 2)
    sums = _sums(_oriented_energy(halved, scale / 4, math.sqrt(pooling**2 - 2 / 3) / 2))
    return F.interpolate(sums[None], scale_factor=2, mode="bilinear", align_corners=False)[0, :, :height, :width]


def _oriented_energy(smooth: torch.Tensor, gain: float, pooling: float) -> torch.Tensor:
    """Pooled magnitudes in four directions and pooled gradients of 2×H×W: 6×2×H×W, weighted as in the module's docstring."""
    padded = F.pad(smooth, (1, 1, 1, 1), mode="replicate")
    gx = gain * (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2])
    gy = gain * (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1])
    half = math.sqrt(0.5)
    planes = torch.stack([half * gx.abs(), half * gy.abs(), (gx + gy).abs() / 2, (gx - gy).abs() / 2, gx, gy])
    return blur(planes.flatten(0, 1), pooling).view_as(planes)


def _sums(features: torch.Tensor) -> torch.Tensor:
    """Σ(f − g)², Σf², Σg² over the channels of C×2×H×W: 3×H×W."""
    first, second = features.unbind(1)
    sums = torch.zeros((3, *first.shape[1:]), dtype=first.dtype, device=first.device)
    for f, g in zip(first, second, strict=True):  # a plane at a time: it stays in the cache
        difference = f - g
        sums[0].addcmul_(difference, difference)
        sums[1].addcmul_(f, f)
        sums[2].addcmul_(g, g)
    return sums


def _one_minus_cosine(sums: torch.Tensor, constant: float) -> torch.Tensor:
    """1 − cos(f, g) = (‖f − g‖² − (‖f‖ − ‖g‖)²) / (2‖f‖‖g‖), both with a constant channel appended; exactly 0 for f = g."""
    first, second = (sums[1] + constant**2).sqrt_(), (sums[2] + constant**2).sqrt_()
    return ((sums[0] - (first - second).square_()) / (2 * first * second)).clamp_(min=0)


def blur(planes: torch.Tensor, sigma: float) -> torch.Tensor:
    """Separable Gaussian over C×H×W with repeated borders; ``sigma`` in px, 0 for none.

    Shifted multiply-adds over a plane at a time, which stays in the cache: several times faster than a grouped convolution.
    """
    if sigma <= 0:
        return planes
    taps = _gaussian(sigma)
    border = (len(taps) // 2,) * 4
    height, width = planes.shape[-2:]
    result = torch.empty_like(planes)
    for plane, out in zip(planes, result, strict=True):
        padded = F.pad(plane[None], border, mode="replicate")[0]
        rows = padded[:height] * taps[0]
        for offset, tap in enumerate(taps[1:], 1):
            rows.add_(padded[offset : offset + height], alpha=tap)
        torch.mul(rows[:, :width], taps[0], out=out)
        for offset, tap in enumerate(taps[1:], 1):
            out.add_(rows[:, offset : offset + width], alpha=tap)
    return result


def _gaussian(sigma: float) -> list[float]:
    radius = max(1, math.ceil(_SUPPORT * sigma))
    weights = [math.exp(-0.5 * (position / sigma) ** 2) for position in range(-radius, radius + 1)]
    return [weight / sum(weights) for weight in weights]
