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
        severity: weight of the ranking of gt, a milder version of a fault, and the fault itself; 0: none, and no forward for it.
        margin_sr: m1, in score units.
        margin_gt: m2, in score units.
    """

    map: float = 1.0
    map_bce: float = 0.5
    map_focal: float = 0.0
    rank: float = 1.0
    align: float = 0.5
    quality: float = 1.0
    severity: float = 0.0
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
    pictures = [batch.gt, batch.syn, batch.sr, *([_milder(batch)] if weights.severity else [])]
    images = torch.cat(pictures).to(memory_format=torch.channels_last)
    lr = (batch.lr.repeat(len(pictures), 1, 1, 1), batch.lr_known.repeat(len(pictures))) if model.config.lr_input else ()
    output = model(images, *lr)
    score_gt, score_syn, score_sr, *score_milder = output.score.float().split(count)
    quality_gt = torch.ones_like(batch.quality_syn)
    margin_sr = margins(batch.quality_syn, batch.quality_sr, weights.margin_sr)
    margin_gt = margins(quality_gt, batch.quality_syn, weights.margin_gt)
    losses = {
        "rank": weights.rank * ranking_loss(score_gt, score_syn, score_sr, margin_sr=margin_sr, margin_gt=margin_gt),
        "quality": weights.quality
        * quality_loss(torch.cat([score_gt, score_syn, score_sr]), torch.cat([quality_gt, batch.quality_syn, batch.quality_sr])),
    }
    if score_milder:
        losses["severity"] = weights.severity * _severity_loss(
            score_gt, score_milder[0], score_syn, score_sr, batch, weights.margin_gt
        )
    if output.map_logits is not None:
        # M_gt is known on all of gt (0) and syn, and of sr only where syn shows it.
        target = torch.cat([torch.zeros_like(batch.map), batch.map, batch.map])
        known = torch.cat([torch.ones_like(batch.mask), torch.ones_like(batch.mask), (batch.mask > 0.999).float()])
        found = output.map_logits[: 3 * count].float()
        losses["map"] = weights.map * map_loss(found, target, known, bce_weight=weights.map_bce, focal=weights.map_focal)
    if anchor is not None:
        with torch.no_grad():
            base_score_gt = anchor(batch.gt if photos is None else photos).score
        losses["align"] = weights.align * align_loss(score_gt, base_score_gt)
    return {**losses, "total": torch.stack(list(losses.values())).sum()}


def _milder(batch: TripletBatch) -> torch.Tensor:
    """A photo with a part of the fault: its difference from gt, shrunk, is a fault of the same kind that is less severe."""
    of_sr, kept = (drawn[:, None, None, None] for drawn in (batch.milder_of_sr, batch.milder))
    return batch.gt.lerp(torch.where(of_sr, batch.sr, batch.syn), kept)


def _severity_loss(
    score_gt: torch.Tensor,
    score_milder: torch.Tensor,
    score_syn: torch.Tensor,
    score_sr: torch.Tensor,
    batch: TripletBatch,
    margin: float,
) -> torch.Tensor:
    """Ranks S_gt > S_milder > S of the fault. q = exp(−distance/τ), and the distance is taken as proportional to the fault."""
    score = torch.where(batch.milder_of_sr, score_sr, score_syn)
    quality = torch.where(batch.milder_of_sr, batch.quality_sr, batch.quality_syn)
    between = quality**batch.milder
    return ranking_loss(
        score_gt,
        score_milder,
        score,
        margin_sr=margins(between, quality, margin),
        margin_gt=margins(torch.ones_like(between), between, margin),
    )
