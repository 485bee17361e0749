"""The low band of an image: what an SR model has no business to change."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def low_band(image: torch.Tensor, cell: int) -> torch.Tensor:
    """What of ``image`` (N×C×H×W) varies over ``cell`` px or more: box averages, joined bilinearly. Exact for constants."""
    height, width = image.shape[-2:]
    grid = (max(1, round(height / cell)), max(1, round(width / cell)))
    return F.interpolate(F.adaptive_avg_pool2d(image, grid), (height, width), mode="bilinear", align_corners=False)


def with_low_band_of(sr: torch.Tensor, lr: torch.Tensor) -> torch.Tensor:
    """``sr`` (1×3×H×W) with what varies over four LR pixels or more taken from ``lr``, clamped to [0, 1]."""
    wrong = low_band(F.adaptive_avg_pool2d(sr, (lr.shape[-2], lr.shape[-1])) - lr, 4)
    return (sr - F.interpolate(wrong, sr.shape[-2:], mode="bilinear", align_corners=False)).clamp(0, 1)
