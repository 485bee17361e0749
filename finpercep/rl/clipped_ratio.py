"""The clipped surrogate of PPO (arXiv 1707.06347, eq. 7), which DDPO and GRPO share."""

from __future__ import annotations

import torch


def clipped_surrogate(log_ratio: torch.Tensor, advantages: torch.Tensor, clip: float) -> torch.Tensor:
    """max(−A·ρ, −A·clip(ρ, 1 ± ε)) elementwise, ρ = exp(ℓ − ℓ_old); its gradient at ρ = 1 is −A·∇ℓ.

    Args:
        log_ratio: ℓ − ℓ_old, float32, of any shape.
        advantages: of the same shape.
        clip: ε.
    """
    ratio = log_ratio.exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))


def clipped_share(log_ratio: torch.Tensor, clip: float) -> float:
    """Share of the ratios beyond 1 ± ε."""
    return ((log_ratio.detach().exp() - 1).abs() > clip).float().mean().item()
