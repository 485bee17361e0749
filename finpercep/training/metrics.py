"""How good a map and a ranking are, measured so that texture or area cannot flatter. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from finpercep.training.map_tally import MapFigures

Array = npt.NDArray[np.floating]

VISIBLE = 0.1
"""M_gt from which on a pixel counts as visibly degraded."""


@dataclass(frozen=True)
class MapQuality:
    """Quality of predicted maps; None where a figure is undefined (no visible defect among the samples).

    Map values count as equal when their odds differ by less than 0.14 %, or lie beyond 2^±16 (`map_tally`).

    Attributes:
        paired_auroc: AUROC of map values at the visibly changed pixels of syn against map values at the same pixels of gt;
            0.5 = blind. Content is the same on both sides, so a map that follows texture gains nothing. To be reported first.
        auroc: AUROC of visible against all other pixels of syn.
        auprc: average precision of the same; chance is ``prevalence``.
        prevalence: share of visible pixels.
        l1: mean |M − M_gt| on syn, the mean of the images' own.
        clean_mean: mean map on gt (false alarm), likewise.
    """

    paired_auroc: float | None
    auroc: float | None
    auprc: float | None
    prevalence: float
    l1: float
    clean_mean: float


def map_quality(figures: MapFigures) -> MapQuality:
    """What is reported of a tally of images that were counted with the map of the matching gt and with M_gt; at least one."""
    pooled, l1, clean_mean = figures.pooled, figures.l1, figures.clean_mean
    assert pooled.prevalence is not None and l1 is not None and clean_mean is not None
    return MapQuality(pooled.paired_auroc, pooled.auroc, pooled.auprc, pooled.prevalence, l1, clean_mean)


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
