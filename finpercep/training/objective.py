"""The loss of one training batch: which terms there are, on which images, with which weights (method §4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from finpercep.reward_model.model import FinPercepRM
from finpercep.training.data import TripletBatch
from finpercep.training.losses import align_loss, map_loss, margins, quality_loss, ranking_loss


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss (method §4) and its margins.

    Attributes:
        map: λ_map.
        map_bce: weight of the cross-entropy inside the map loss; 0 is the paper's loss.
        map_focal: exponent γ of |M_gt − M|^γ on that cross-entropy, which turns it to what is missed; 0: none.
        rank: λ_rank.
        align: λ_align; unused for RM_0, which is the anchor.
        quality: weight of the pseudo-quality term.
        margin_sr: m1, in score units.
        margin_gt: m2, in score units.
    """

    map: float = 1.0
    map_bce: float = 0.5
    map_focal: float = 0.0
    rank: float = 1.0
    align: float = 0.5
    quality: float = 1.0
    margin_sr: float = 0.1
    margin_gt: float = 0.1


def triplet_losses(
    model: FinPercepRM,
    anchor: FinPercepRM | None,
    batch: TripletBatch,
    weights: LossWeights,
    *,
    photos: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """All terms of the loss for one batch, and their weighted sum as ``total``; all pictures go through in one forward.

    ``photos`` are what the anchor is asked about, where ``batch.gt`` was changed to fool the model; None: ``batch.gt``.
    """
    count = len(batch.gt)
    images = torch.cat([batch.gt, batch.syn, batch.sr]).to(memory_format=torch.channels_last)
    lr = (batch.lr.repeat(3, 1, 1, 1), batch.lr_known.repeat(3)) if model.config.lr_input else ()
    output = model(images, *lr)
    score_gt, score_syn, score_sr = output.score.float().split(count)
    quality_gt = torch.ones_like(batch.quality_syn)
    margin_sr = margins(batch.quality_syn, batch.quality_sr, weights.margin_sr)
    margin_gt = margins(quality_gt, batch.quality_syn, weights.margin_gt)
    losses = {
        "rank": weights.rank * ranking_loss(score_gt, score_syn, score_sr, margin_sr=margin_sr, margin_gt=margin_gt),
        "quality": weights.quality
        * quality_loss(torch.cat([score_gt, score_syn, score_sr]), torch.cat([quality_gt, batch.quality_syn, batch.quality_sr])),
    }
    if output.map_logits is not None:
        # M_gt is known on all of gt (0) and syn, and of sr only where syn shows it.
        target = torch.cat([torch.zeros_like(batch.map), batch.map, batch.map])
        known = torch.cat([torch.ones_like(batch.mask), torch.ones_like(batch.mask), (batch.mask > 0.999).float()])
        losses["map"] = weights.map * map_loss(
            output.map_logits.float(), target, known, bce_weight=weights.map_bce, focal=weights.map_focal
        )
    if anchor is not None:
        with torch.no_grad():
            base_score_gt = anchor(batch.gt if photos is None else photos).score
        losses["align"] = weights.align * align_loss(score_gt, base_score_gt)
    return {**losses, "total": torch.stack(list(losses.values())).sum()}
