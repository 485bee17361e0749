"""Colour correction of SR images against the upsampled LR image, which has the right colours but no detail.

Diffusion models drift in colour and brightness. Both corrections are the field's usual ones (StableSR, arXiv 2305.07015, §3.4).
Used on delivered images alone: a reward should see the drift, or the model never unlearns it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F

from finpercep.errors import ConfigError

Colour = Literal["none", "wavelet", "adain"]
COLOURS: tuple[Colour, ...] = ("none", "wavelet", "adain")
LEVELS = 5
"""Of the wavelet's low band, which then holds what is coarser than about 2^5 px."""


def corrected(images: torch.Tensor, reference: torch.Tensor, colour: Colour) -> torch.Tensor:
    """``images`` with the colours of ``reference``, both N×3×H×W in [0, 1]. Raises `ConfigError` on an unknown correction."""
    if colour == "none":
        return images
    if colour == "wavelet":
        return (images - low_band(images) + low_band(reference)).clamp(0, 1)
    if colour == "adain":
        return adain(images, reference).clamp(0, 1)
    raise ConfigError(f"colour must be one of {', '.join(COLOURS)}, got {colour!r}")


def low_band(images: torch.Tensor, levels: int = LEVELS) -> torch.Tensor:
    """The coarse band of the undecimated (à trous) wavelet transform: [1 2 1]/4 both ways, its taps 2^level px apart.

    A mean of neighbours, edges repeated: constants pass unchanged, and nothing leaves the range of ``images``.
    """
    for level in range(levels):
        gap = 2**level
        for before, after in (((gap, gap, 0, 0), -1), ((0, 0, gap, gap), -2)):
            wide = F.pad(images, before, mode="replicate")
            size = images.shape[after]
            images = (wide.narrow(after, 0, size) + 2 * wide.narrow(after, gap, size) + wide.narrow(after, 2 * gap, size)) / 4
    return images


def adain(images: torch.Tensor, reference: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """Each channel with the mean and standard deviation it has in ``reference`` (arXiv 1703.06868, eq. 8)."""
    own_std, own_mean = torch.std_mean(images, dim=(-2, -1), keepdim=True)
    std, mean = torch.std_mean(reference, dim=(-2, -1), keepdim=True)
    return (images - own_mean) / (own_std + eps) * std + mean
