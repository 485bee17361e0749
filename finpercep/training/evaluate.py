"""Quality of a rung on a split: does its map see the defects, and does its score order gt, syn and sr?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from finpercep.reward_model.model import FinPercepRM
from finpercep.training.calibration import fit_calibration
from finpercep.training.data import Samples, whole_batch
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
    """All figures of one rung on all ``samples`` (uncropped, float32)."""
    predictions = predict_split(model, samples, batch_size=batch_size)
    share = (predictions.target > VISIBLE).mean(axis=(1, 2))
    scores = (predictions.score_gt, predictions.score_syn, predictions.score_sr)
    quality = None
    if predictions.map_syn is not None and predictions.map_gt is not None:
        quality = map_quality(predictions.map_syn, predictions.map_gt, predictions.target)
    by_area = {
        f"{low:.2f}-{min(high, 1.0):.2f}": ranking_quality(*scores, (share > 0) & (share >= low) & (share < high))
        for low, high in AREA_BINS
    }
    return RungQuality(quality, ranking_quality(*scores, share > 0), by_area)


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


@torch.no_grad()
def predict_split(model: FinPercepRM, samples: Samples, *, batch_size: int = 16) -> Predictions:
    """Run a rung over a split in eval mode; the model's mode is put back afterwards."""
    was_training = model.training
    model.eval()
    parts = list(_predict_batches(model, samples, batch_size))
    model.train(was_training)
    joined: dict[str, Any] = {
        name: None if parts[0][name] is None else np.concatenate([part[name] for part in parts]) for name in parts[0]
    }
    return Predictions(**joined)


def _predict_batches(model: FinPercepRM, samples: Samples, batch_size: int) -> Iterator[dict[str, Any]]:
    device = next(model.parameters()).device
    for indexes in _chunks(len(samples), batch_size):
        batch = whole_batch(samples, indexes)
        outputs = {name: model(getattr(batch, name).to(device)) for name in ("gt", "syn", "sr")}
        yield {
            **{f"score_{name}": output.score.cpu().numpy() for name, output in outputs.items()},
            **{f"map_{name}": None if outputs[name].map is None else outputs[name].map.cpu().numpy() for name in ("syn", "gt")},
            "target": batch.map.numpy(),
            "quality_syn": batch.quality_syn.numpy(),
            "quality_sr": batch.quality_sr.numpy(),
        }


def _chunks(length: int, size: int) -> list[Sequence[int]]:
    return [range(start, min(start + size, length)) for start in range(0, length, size)]
