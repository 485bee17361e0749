"""Spatial credit: an advantage for every position of a diffusion state, from the degradation maps of a group.

The density of a denoising step is a product over positions, and our reward is a map; so each position can be told how the place
it became did, rather than how the picture did. New here; derived, with the conditions under which it is unbiased, in
``docs/finetuning.md``.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from finpercep.rl.advantages import MIN_STD


def positions_map(maps: torch.Tensor, size: tuple[int, int], blur: float) -> torch.Tensor:
    """Degradation maps (K, H, W) at the resolution (h, w) of the states: mean over each cell, then a Gaussian blur.

    Args:
        maps: in [0, 1], 1 = degraded.
        size: (h, w), at most (H, W).
        blur: standard deviation in positions: how far a position's noise reaches in the picture; 0 for none. Every value is a
            mean with weights that sum to 1, at borders too.
    """
    coarse = F.adaptive_avg_pool2d(maps[:, None].float(), size)
    if blur > 0:
        for dim in (2, 3):
            coarse = _blurred(coarse, blur, dim)
    return coarse[:, 0]


def _blurred(planes: torch.Tensor, std: float, dim: int) -> torch.Tensor:
    radius = math.ceil(3 * std)
    offsets = torch.arange(-radius, radius + 1, device=planes.device, dtype=planes.dtype)
    kernel = torch.exp(-((offsets / std) ** 2) / 2)
    shape = [1, 1, 1, 1]
    shape[dim] = len(kernel)
    padding = (radius, 0) if dim == 2 else (0, radius)
    weight = kernel.view(shape)
    return F.conv2d(planes, weight, padding=padding) / F.conv2d(torch.ones_like(planes[:1]), weight, padding=padding)


def map_advantages(maps: torch.Tensor, size: tuple[int, int], *, blur: float, clip: float) -> torch.Tensor:
    """A_map(p) = clip(−(m(p) − mean_group m(p)) / σ, ±clip), with one σ for the group: the root mean square of m − mean.

    One σ, not one a position: where no sample is better than another there is nothing to learn, and it stays near 0.

    Args:
        maps: (K, H, W) of one photo's samples, in [0, 1], 1 = degraded.
        size: (h, w) of the states.
        blur: see `positions_map`.
        clip: largest |A|.

    Returns:
        float32 (K, h, w), of mean 0 over the group at every position before clipping; all 0 where the maps do not differ.
    """
    at_positions = positions_map(maps, size, blur).double()
    centred = at_positions - at_positions.mean(dim=0, keepdim=True)
    std = centred.square().mean().sqrt()
    if not std > MIN_STD:
        return torch.zeros_like(centred).float()
    return (-centred / std).clamp(-clip, clip).float()
