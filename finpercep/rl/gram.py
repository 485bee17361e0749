"""The Gram regulariser of RFSR (arXiv 2412.03268; method §6): holds back stylisation by comparing feature correlations.

Works on any frozen extractor: the paper's is VGG19; ours is by default the reward model's own frozen encoder, which needs no
download.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

FeatureExtractor = Callable[[torch.Tensor], Sequence[torch.Tensor]]
"""(N, 3, H, W) in [0, 1] → features (N, C_i, h_i, w_i), frozen but differentiable in the image."""


def gram_matrix(features: torch.Tensor) -> torch.Tensor:
    """G = F Fᵀ / (c·h·w) of (N, c, h, w) features, layer-normalised over (channel × position) first. Returns (N, c, c)."""
    flat = features.flatten(2)
    normalised = torch.nn.functional.layer_norm(flat, flat.shape[1:])
    return normalised @ normalised.transpose(1, 2) / (flat.shape[1] * flat.shape[2])


def gram_distance(
    trained: Sequence[torch.Tensor], reference: Sequence[torch.Tensor], weights: Sequence[float] | None = None
) -> torch.Tensor:
    """Sum over layers of the mean L1 distance between Gram matrices, times its weight or 1; a scalar, 0 for equal features."""
    distances = [(gram_matrix(a) - gram_matrix(b)).abs().mean() for a, b in zip(trained, reference, strict=True)]
    weighted = distances if weights is None else [w * d for w, d in zip(weights, distances, strict=True)]
    return torch.stack(weighted).sum()
