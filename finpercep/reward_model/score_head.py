"""S = MLP(f_N ⊙ interpolate(M)): the global score, tied to the degradation map so that it cannot ignore a local defect.

Departs from the paper in that the form of the product is a choice (`config.Modulation`): taken literally, a perfect image
(M = 0) leaves nothing of the features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from finpercep.reward import DEFAULT_TOP_FRACTION, top_fraction_mean
from finpercep.reward_model.config import Modulation, Pooling


@dataclass(frozen=True)
class MapForScore:
    """The degradation map as the score sees it, in [0, 1].

    Attributes:
        own: (N, h', w') at the decoder's stride, the positions that touch the image.
        at_deep: (N, h, w), brought to f_N's size.
    """

    own: torch.Tensor
    at_deep: torch.Tensor


def bring_to_deep(degradation_map: torch.Tensor, inside: torch.Tensor, ratio: int, pooling: Pooling) -> torch.Tensor:
    """interpolate(M): the map brought to f_N's size so that no defect falls between samples.

    Args:
        degradation_map: (N, h·ratio, w·ratio) in [0, 1], padding included.
        inside: (h·ratio, w·ratio), the share of each position that is image; at least one in a block of ratio² is not 0.
        ratio: f_N's stride over the map's.
        pooling: the mean (weighted by ``inside``) or the maximum of each block.

    Returns:
        (N, h, w).
    """
    planes = (degradation_map * (inside > 0 if pooling == "max" else inside))[:, None]
    if pooling == "max":
        return F.max_pool2d(planes, ratio)[:, 0]
    return F.avg_pool2d(planes, ratio)[:, 0] / F.avg_pool2d(inside[None], ratio)[0]


def modulated_features(deep: torch.Tensor, seen: MapForScore | None, weight: torch.Tensor, form: Modulation) -> torch.Tensor:
    """Features of f_N under the map, averaged over positions.

    Args:
        deep: f_N, (N, C, h, w).
        seen: the map; None for RM_0, whose score is that of M = 0 in every form but ``literal``, where it is that of the plain
            features.
        weight: (h, w), the share of each position that is image and not padding.
        form: the modulation.

    Returns:
        (N, C), or (N, 2C + 2) for ``statistics``.
    """
    plain = _weighted_mean(deep, weight)
    if seen is None:
        return (
            torch.cat([plain, torch.zeros_like(plain), plain.new_zeros(len(plain), 2)], dim=1) if form == "statistics" else plain
        )
    product = _weighted_mean(deep * seen.at_deep[:, None], weight)
    match form:
        case "literal":
            return product
        case "complement":
            return plain - product
        case "residual":
            return plain + product
        case "statistics":
            mean = seen.own.flatten(1).mean(dim=1, keepdim=True)
            worst = top_fraction_mean(seen.own, DEFAULT_TOP_FRACTION)[:, None]
            return torch.cat([plain, product, mean, worst], dim=1)


def _weighted_mean(planes: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (planes * weight).sum(dim=(-2, -1)) / weight.sum()


class ScoreHead(nn.Module):
    """The MLP. No normalisation in front of it: that would remove the scale the map puts in."""

    def __init__(self, channels: int, form: Modulation, hidden: int) -> None:
        super().__init__()
        self.form = form
        inputs = 2 * channels + 2 if form == "statistics" else channels
        self.mlp = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, deep: torch.Tensor, seen: MapForScore | None, weight: torch.Tensor) -> torch.Tensor:
        """Score logit (N,); higher is better. Arguments as in `modulated_features`."""
        logit: torch.Tensor = self.mlp(modulated_features(deep, seen, weight, self.form))
        return logit[:, 0]
