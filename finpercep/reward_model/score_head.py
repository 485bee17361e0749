"""S = MLP(f_N ⊙ interpolate(M)): the global score, tied to the degradation map so that it cannot ignore a local defect.

Departs from the paper in that the form of the product is a choice (`config.Modulation`): taken literally, a perfect image
(M = 0) leaves nothing of the features.
"""

from __future__ import annotations

from collections.abc import Sequence
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


TOP_FRACTIONS = (0.001, 0.01, 0.1)
"""Shares of the map whose mean the forms ``readout`` and ``attended`` read: its peak, a small defect, a large one."""

_ATTENTION_FLOOR = 1e-3  # mean(M) below which attention fades, since on a clean image it would be noise


def input_width(channels: int, form: Modulation) -> int:
    """Numbers that `modulated_features` gives the MLP."""
    statistics = {"statistics": 2, "readout": 1 + len(TOP_FRACTIONS), "attended": 1 + len(TOP_FRACTIONS)}.get(form, 0)
    return channels * (2 if form in {"statistics", "attended"} else 1) + statistics


def modulated_features(deep: torch.Tensor, seen: MapForScore | None, weight: torch.Tensor, form: Modulation) -> torch.Tensor:
    """Features of f_N under the map, averaged over positions, and for some forms statistics of the map.

    Args:
        deep: f_N, (N, C, h, w).
        seen: the map; None for RM_0, whose score is that of M = 0 in every form but ``literal``, where it is that of the plain
            features.
        weight: (h, w), the share of each position that is image and not padding.
        form: the modulation.

    Returns:
        (N, `input_width`).
    """
    plain = _weighted_mean(deep, weight)
    if seen is None:
        return F.pad(plain, (0, input_width(plain.shape[1], form) - plain.shape[1]))
    if form == "readout":
        return torch.cat([plain, _map_statistics(seen.own, TOP_FRACTIONS)], dim=1)
    product = _weighted_mean(deep * seen.at_deep[:, None], weight)
    match form:
        case "literal":
            return product
        case "complement":
            return plain - product
        case "residual":
            return plain + product
        case "statistics":
            return torch.cat([plain, product, _map_statistics(seen.own, (DEFAULT_TOP_FRACTION,))], dim=1)
        case "attended":
            attention = _weighted_mean(seen.at_deep[:, None], weight)
            attended = product / (attention + _ATTENTION_FLOOR)
            return torch.cat([plain, attended, _map_statistics(seen.own, TOP_FRACTIONS)], dim=1)


def _map_statistics(own: torch.Tensor, fractions: Sequence[float]) -> torch.Tensor:
    """mean(M), and the mean of its highest ``fractions``: (N, 1 + len(fractions))."""
    return torch.stack([own.flatten(1).mean(dim=1), *(top_fraction_mean(own, fraction) for fraction in fractions)], dim=1)


def _weighted_mean(planes: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (planes * weight).sum(dim=(-2, -1)) / weight.sum()


class ScoreHead(nn.Module):
    """The MLP. No normalisation in front of it: that would remove the scale the map puts in."""

    def __init__(self, channels: int, form: Modulation, hidden: int) -> None:
        super().__init__()
        self.form = form
        self.mlp = nn.Sequential(nn.Linear(input_width(channels, form), hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, deep: torch.Tensor, seen: MapForScore | None, weight: torch.Tensor) -> torch.Tensor:
        """Score logit (N,); higher is better. Arguments as in `modulated_features`."""
        logit: torch.Tensor = self.mlp(modulated_features(deep, seen, weight, self.form))
        return logit[:, 0]
