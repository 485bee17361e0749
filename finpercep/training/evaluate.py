"""Quality of a rung on a split: does its map see the defects, and does its score order gt, syn and sr?"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from finpercep.reward_model.model import FinPercepRM
from finpercep.training.calibration import fit_calibration
from finpercep.training.data import Samples, whole_batch
from finpercep.training.map_tally import MapTally, count_image
from finpercep.training.metrics import VISIBLE, MapQuality, RankingQuality, map_quality, ranking_quality

AREA_BINS = ((0.0, 0.03), (0.03, 0.1), (0.1, 0.3), (0.3, 1.01))
"""Bins of the visibly degraded share of the image, for figures by defect size."""


@dataclass(frozen=True)
class RungQuality:
    """A rung's figures on a split; ``map`` is None for RM_0.

    Attributes:
        map: quality of the map over all pixels.
        ranking: order of scores over the samples with a visible defect.
        ranking_by_area: the same, by visibly degraded share of the image (``"0.00-0.03"`` …).
    """

    map: MapQuality | None
    ranking: RankingQuality
    ranking_by_area: dict[str, RankingQuality]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Predictions:
    """Scores (N,), maps (N, H, W) of a rung on a split (None for RM_0), and what is known: M_gt of syn, pseudo qualities (N,)."""

    score_gt: np.ndarray
    score_syn: np.ndarray
    score_sr: np.ndarray
    quality_syn: np.ndarray
    quality_sr: np.ndarray
    map_syn: np.ndarray | None
    map_gt: np.ndarray | None
    target: np.ndarray


def evaluate_rung(model: FinPercepRM, samples: Samples, *, batch_size: int = 16) -> RungQuality:
    """All figures of one rung on all ``samples`` (uncropped, float32). Maps are counted and forgotten, batch by batch."""
    tally, seen_scores, seen_shares = MapTally(), [], []
    for seen in _predict_batches(model, samples, batch_size):
        marks = seen.target > VISIBLE
        seen_shares.append(marks.mean(axis=(1, 2)))
        seen_scores.append((seen.score_gt, seen.score_syn, seen.score_sr))
        if seen.map_syn is not None and seen.map_gt is not None:
            for syn, gt, target, marked in zip(seen.map_syn, seen.map_gt, seen.target, marks, strict=True):
                tally.add(count_image(syn, marked, original_map=gt, target=target))
    share = np.concatenate(seen_shares)
    score_gt, score_syn, score_sr = (np.concatenate(parts) for parts in zip(*seen_scores, strict=True))
    figures = tally.figures()
    ranked = functools.partial(ranking_quality, score_gt, score_syn, score_sr)
    by_area = {
        f"{low:.2f}-{min(high, 1.0):.2f}": ranked((share > 0) & (share >= low) & (share < high)) for low, high in AREA_BINS
    }
    return RungQuality(map_quality(figures) if figures.images else None, ranked(share > 0), by_area)


_PIXEL_STEP = 4  # of the map, every fourth pixel of every fourth row is enough


def calibrate(model: FinPercepRM, samples: Samples) -> None:
    """Fit the score's and the map's calibration to held-out ``samples``, and set it in the model's config.

    The score then is the pseudo quality to expect of gt, syn and sr alike, the map the visible difference to expect of syn.

    Args:
        model: a trained rung; a calibration it has is refined.
        samples: at least one.
    """
    seen = predict_split(model, samples)
    scores = np.concatenate([seen.score_gt, seen.score_syn, seen.score_sr])
    known = np.concatenate([np.ones_like(seen.quality_syn), seen.quality_syn, seen.quality_sr])
    score = fit_calibration(_logit(scores), torch.from_numpy(known))
    config = model.config
    model.config = replace(
        config, score_scale=score.scale * config.score_scale, score_shift=score.scale * config.score_shift + score.shift
    )
    if seen.map_syn is not None:
        pixels = np.s_[:, ::_PIXEL_STEP, ::_PIXEL_STEP]
        found = fit_calibration(_logit(seen.map_syn[pixels]), torch.from_numpy(seen.target[pixels]))
        model.config = replace(
            model.config, map_scale=found.scale * config.map_scale, map_shift=found.scale * config.map_shift + found.shift
        )


def _logit(probabilities: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(probabilities).double().logit(eps=1e-7)


def predict_split(model: FinPercepRM, samples: Samples, *, batch_size: int = 16) -> Predictions:
    """Run a rung over a split in eval mode; the model's mode is put back afterwards."""
    parts = list(_predict_batches(model, samples, batch_size))
    columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Predictions)}
    joined: dict[str, Any] = {name: None if own[0] is None else np.concatenate(own) for name, own in columns.items()}
    return Predictions(**joined)


@torch.no_grad()
def _predict_batches(model: FinPercepRM, samples: Samples, batch_size: int) -> Iterator[Predictions]:
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    for indexes in _chunks(len(samples), batch_size):
        batch = whole_batch(samples, indexes)
        gt, syn, sr = (model(images.to(device)) for images in (batch.gt, batch.syn, batch.sr))
        yield Predictions(
            score_gt=gt.score.cpu().numpy(),
            score_syn=syn.score.cpu().numpy(),
            score_sr=sr.score.cpu().numpy(),
            quality_syn=batch.quality_syn.numpy(),
            quality_sr=batch.quality_sr.numpy(),
            map_syn=None if syn.map is None else syn.map.cpu().numpy(),
            map_gt=None if gt.map is None else gt.map.cpu().numpy(),
            target=batch.map.numpy(),
        )
    model.train(was_training)


def _chunks(length: int, size: int) -> list[Sequence[int]]:
    return [range(start, min(start + size, length)) for start in range(0, length, size)]
