"""Maps that have learnt nothing, as rows to compare with: texture, and disagreement with the low-resolution input.

A model that does not beat the first follows texture; one that does not beat the second sees no more than its input gives away.
Pure functions on arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch.nn import functional as F

from data_synth.schema import RGB8

Map = npt.NDArray[np.float32]

_POOLING = 2.0
_ENERGY = 0.05**2
_DIFFERENCE = 0.05
_ROUNDING = 1e-5  # of float32 resizing; both pictures have steps of 1/255


def laplacian_energy_map(pixels: RGB8) -> Map:
    """Where there is fine texture: the squared Laplacian of the luma, averaged with a Gaussian of 2 px.

    Args:
        pixels: uint8 H×W×3 RGB.

    Returns:
        float32 H×W in [0, 1): e / (e + 0.05²), so that no order among pixels is lost.
    """
    luma = (pixels @ np.array([0.299, 0.587, 0.114])) / 255
    energy = ndimage.gaussian_filter(ndimage.laplace(luma) ** 2, _POOLING)
    return np.asarray(energy / (energy + _ENERGY), dtype=np.float32)


def consistency_map(pixels: RGB8, lr: RGB8) -> Map:
    """|down(sr) − lr|, brought back to sr's size: where an image contradicts the input it was made from.

    Args:
        pixels: uint8 H×W×3 RGB.
        lr: uint8 h×w×3 RGB, its low-resolution input.

    Returns:
        float32 H×W in [0, 1): d / (d + 0.05), with d the mean over colours, resized bicubically and back bilinearly.
    """
    image, low = (_as_tensor(array) for array in (pixels, lr))
    small = F.interpolate(image, low.shape[-2:], mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    difference = (small - low).abs().mean(dim=1, keepdim=True)
    difference = difference * (difference > _ROUNDING)
    large = F.interpolate(difference, image.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
    return np.asarray((large / (large + _DIFFERENCE)).numpy(), dtype=np.float32)


def _as_tensor(pixels: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 255
