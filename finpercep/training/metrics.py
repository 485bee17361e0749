"""How good a map and a ranking are, measured so that texture or area cannot flatter. Pure functions on arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score

Array = npt.NDArray[np.floating]

VISIBLE = 0.1
"""M_gt from which on a pixel counts as visibly degraded."""


@dataclass(frozen=True)
class MapQuality:
    """Quality of predicted maps; None where a figure is undefined (no visible defect among the samples).

    Attributes:
        paired_auroc: AUROC of map values at the visibly changed pixels of syn against map values at the same pixels of gt;
            0.5 = blind. Content is the same on both sides, so a map that follows texture gains nothing. To be reported first.
        auroc: AUROC of visible against all other pixels of syn.
        auprc: average precision of the same; chance is ``prevalence``.
        prevalence: share of visible pixels.
        l1: mean |M − M_gt| on syn.
        clean_mean: mean map on gt (false alarm).
    """

    paired_auroc: float | None
    auroc: float | None
    auprc: float | None
    prevalence: float
    l1: float
    clean_mean: float


def map_quality(predicted_syn: Array, predicted_gt: Array, target: Array) -> MapQuality:
    """Figures over all pixels of (N, H, W) maps of syn, maps of the matching gt, and M_gt."""
    visible = target > VISIBLE
    changed = predicted_syn[visible]
    both = 0 < visible.sum() < visible.size
    return MapQuality(
        paired_auroc=auroc(changed, predicted_gt[visible]) if visible.any() else None,
        auroc=auroc(changed, predicted_syn[~visible]) if both else None,
        auprc=float(average_precision_score(visible.ravel(), predicted_syn.ravel())) if both else None,
        prevalence=float(visible.mean()),
        l1=float(np.abs(predicted_syn - target).mean()),
        clean_mean=float(predicted_gt.mean()),
    )


def auroc(positive: Array, negative: Array) -> float:
    """Chance that a positive value exceeds a negative one, ties counting half."""
    labels = np.concatenate([np.ones(len(positive)), np.zeros(len(negative))])
    return float(roc_auc_score(labels, np.concatenate([positive, negative])))


@dataclass(frozen=True)
class RankingQuality:
    """Share of triplets in the right order, over samples that differ; None when there is none.

    Attributes:
        gt_over_syn: share with S_GT > S_syn.
        syn_over_sr: share with S_syn > S_SR.
        triplet: share with both.
        count: number of triplets.
    """

    gt_over_syn: float | None
    syn_over_sr: float | None
    triplet: float | None
    count: int


def ranking_quality(score_gt: Array, score_syn: Array, score_sr: Array, differs: npt.NDArray[np.bool_]) -> RankingQuality:
    """Order of (N,) scores over the samples where ``differs`` (N,); a tie counts as wrong."""
    if not differs.any():
        return RankingQuality(None, None, None, 0)
    first = (score_gt > score_syn)[differs]
    second = (score_syn > score_sr)[differs]
    return RankingQuality(float(first.mean()), float(second.mean()), float((first & second).mean()), int(differs.sum()))
