"""LR images that an SR network does not expect: of another size or noise level. What it then makes up is the fault.

As with `network_faults`, a fault is drawn once and tried at several magnitudes: 0 is the image itself, 1 the drawn distortion.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

InputFault = Callable[[torch.Tensor, float], torch.Tensor]
"""(image N×3×h×w in [0, 1], magnitude) → image in [0, 1], of another size for ``wrong_scale``; the output is resized back."""

INPUT_FAULTS = ("wrong_scale", "extra_noise", "sharpened_input")


def draw_input_fault(kind: str, rng: np.random.Generator) -> InputFault:
    """Draw a fault of `INPUT_FAULTS`.

    ``wrong_scale``: resized up or down by 1.15 … 1.5, so details come out in the wrong size. ``extra_noise``: noise
    that the network takes for texture. ``sharpened_input``: smoothed and sharpened, as phones do, which the network doubles.
    """
    match kind:
        case "wrong_scale":
            factor = float(np.exp(rng.choice([-1, 1]) * rng.uniform(math.log(1.15), math.log(1.5))))
            return lambda lr, magnitude: _resized_by(lr, factor**magnitude)
        case "extra_noise":
            cell, is_grey, seed = int(rng.integers(1, 3)), rng.uniform() < 0.5, int(rng.integers(2**63))
            return lambda lr, magnitude: (lr + 0.05 * magnitude * _noise(lr, cell, is_grey, seed)).clamp(0, 1)
        case "sharpened_input":
            sigma, amount = float(rng.uniform(0.4, 0.7)), float(rng.uniform(1, 4))
            return lambda lr, magnitude: (lr + magnitude * (_sharpened(lr, sigma, amount) - lr)).clamp(0, 1)
        case _:
            raise ValueError(f"input fault must be one of {', '.join(INPUT_FAULTS)}, got {kind!r}")


def _resized_by(lr: torch.Tensor, factor: float) -> torch.Tensor:
    # even sides: what all networks take
    size = [max(8, 2 * round(side * factor / 2)) for side in lr.shape[-2:]]
    return F.interpolate(lr, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def _noise(lr: torch.Tensor, cell: int, is_grey: bool, seed: int) -> torch.Tensor:
    """Noise of unit deviation or less, white or of ``cell`` pixels' size."""
    sides = [-(-side // cell) for side in lr.shape[-2:]]
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal((1, 1 if is_grey else 3, *sides), dtype=np.float32))
    return F.interpolate(noise, lr.shape[-2:], mode="bilinear", align_corners=False) if cell > 1 else noise


def _sharpened(lr: torch.Tensor, sigma: float, amount: float) -> torch.Tensor:
    smooth = gaussian_blur(lr, sigma)
    return smooth + amount * (smooth - gaussian_blur(smooth, 1.0))


def gaussian_blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """``image`` N×C×H×W under a Gaussian of ``sigma`` px; edges are replicated."""
    radius = max(1, round(3 * sigma))
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=image.dtype) / sigma) ** 2)
    weights = weights / weights.sum()
    channels = image.shape[1]
    padded = F.pad(image, (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(rows, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
