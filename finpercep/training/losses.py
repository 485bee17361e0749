"""L = λ_map·L_map + λ_rank·L_rank + λ_align·L_align (method §4), and the quality term for the global head. Pure functions."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def map_loss(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, *, bce_weight: float, focal: float = 0.0
) -> torch.Tensor:
    """L_map = mean |M − M_gt|, plus ``bce_weight`` times the binary cross-entropy, which keeps small defects from fading.

    Args:
        logits: (N, H, W) map logits.
        target: (N, H, W), M_gt in [0, 1].
        weight: (N, H, W) in [0, 1]; 0 where M_gt is unknown.
        bce_weight: 0 gives the paper's loss.
        focal: γ of the quality focal loss, |M_gt − M|^γ · BCE (Li et al. 2020, arXiv 2006.04388, eq. 4); 0 is plain BCE.
    """
    l1 = (logits.sigmoid() - target).abs()
    loss = l1
    if bce_weight:
        bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        loss = l1 + bce_weight * (bce * l1**focal if focal else bce)
    return (loss * weight).sum() / weight.sum().clamp_min(1)


def ranking_loss(
    score_gt: torch.Tensor, score_syn: torch.Tensor, score_sr: torch.Tensor, *, margin_sr: torch.Tensor, margin_gt: torch.Tensor
) -> torch.Tensor:
    """L_rank = max(0, m1 − (S_syn − S_SR)) + max(0, m2 − (S_GT − S_syn)), mean over the batch; keeps S_SR < S_syn < S_GT.

    Args:
        score_gt: (N,), likewise ``score_syn`` and ``score_sr``.
        margin_sr: m1, (N,); a pair with margin 0 is only kept from being the wrong way round.
        margin_gt: m2, (N,).
    """
    return (F.relu(margin_sr - (score_syn - score_sr)) + F.relu(margin_gt - (score_gt - score_syn))).mean()


def margins(better: torch.Tensor, worse: torch.Tensor, margin: float) -> torch.Tensor:
    """Margin of each pair: ``margin``, but never more than half their difference in measured quality.

    A pair that differs invisibly must not be pulled apart by a full margin; a pair that does not differ at all gets 0.
    """
    return torch.minimum(torch.full_like(better, margin), (better - worse).clamp_min(0) / 2)


def align_loss(score_gt: torch.Tensor, base_score_gt: torch.Tensor) -> torch.Tensor:
    """L_align = mean |S_GT − S_base(I_GT)|: anchors the score to the base model, so that it cannot drift from rung to rung."""
    return (score_gt - base_score_gt).abs().mean()


def quality_loss(score: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    """Mean |S − q| to a full-reference pseudo quality q in [0, 1]: what the score means without a pretrained IQA model."""
    return (score - quality).abs().mean()
