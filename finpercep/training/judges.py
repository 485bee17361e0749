"""Who is evaluated: rungs of a ladder, and baselines. All of them look at the same samples in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from data_synth.schema import RGB8, Row
from finpercep.errors import RewardError
from finpercep.predictor import Predictor
from finpercep.training.baselines import consistency_map, laplacian_energy_map
from finpercep.training.data import whole_batch

Maps = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Judgement:
    """What a judge says of N samples.

    Attributes:
        score_gt, score_syn, score_sr: (N,), higher is better.
        map_gt, map_syn: (N, H, W) in [0, 1], 1 = degraded; None for a judge without a map.
    """

    score_gt: npt.NDArray[np.float64]
    score_syn: npt.NDArray[np.float64]
    score_sr: npt.NDArray[np.float64]
    map_gt: Maps | None
    map_syn: Maps | None


class Judge(Protocol):
    """Scores samples, and maps their defects. ``digest`` is None for what has no weights."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def digest(self) -> str | None:
        """Identity of its weights."""

    def judge(self, rows: Sequence[Row]) -> Judgement:
        """Judge samples of one size."""


class RungJudge:
    """One rung of a ladder, shown the image alone or, ``with_lr``, the low-resolution picture it was made from too."""

    def __init__(self, predictor: Predictor, *, with_lr: bool = False) -> None:
        self.predictor, self.with_lr = predictor, with_lr
        self.name: str = f"{predictor.rung} + LR" if with_lr else predictor.rung
        self.digest: str | None = predictor.digest

    @torch.no_grad()
    def judge(self, rows: Sequence[Row]) -> Judgement:
        """Judge samples, each role as one batch. Raises `RewardError` when a result is not finite."""
        batch = whole_batch(rows, range(len(rows)))
        lr = batch.lr if self.with_lr else None
        seen = {name: self.predictor.score(getattr(batch, name), lr) for name in ("gt", "syn", "sr")}
        for name, result in seen.items():
            if not (result.score.isfinite().all() and (result.map is None or result.map.isfinite().all())):
                indexes = [row.index for row in rows]
                raise RewardError(f"{self.name} (digest {self.digest}): not finite for {name} among samples {indexes}")
        scores = {f"score_{name}": result.score.cpu().double().numpy() for name, result in seen.items()}
        return Judgement(**scores, map_gt=_maps(seen["gt"].map), map_syn=_maps(seen["syn"].map))


def _maps(maps: torch.Tensor | None) -> Maps | None:
    return None if maps is None else np.asarray(maps.float().cpu().numpy())


@dataclass(frozen=True)
class BaselineJudge:
    """A map made from a picture and its low-resolution input; the score is 1 − its mean."""

    name: str
    map_of: Callable[[RGB8, RGB8], Maps]
    digest: str | None = None

    def judge(self, rows: Sequence[Row]) -> Judgement:
        """Judge samples, one by one."""
        maps = {name: np.stack([self.map_of(getattr(row, name), row.lr) for row in rows]) for name in ("gt", "syn", "sr")}
        scores = {f"score_{name}": 1 - of.mean(axis=(1, 2), dtype=np.float64) for name, of in maps.items()}
        return Judgement(**scores, map_gt=maps["gt"], map_syn=maps["syn"])


def rung_judges(predictors: Iterable[Predictor]) -> list[RungJudge]:
    """Every rung, and after one that takes it the same with the LR picture."""
    return [RungJudge(one, with_lr=with_lr) for one in predictors for with_lr in ((False, True) if one.takes_lr else (False,))]


LAPLACIAN = "laplacian"
CONSISTENCY = "consistency"


def baselines() -> list[BaselineJudge]:
    """The rows that stand in every table: texture, and disagreement with the LR input, to measure rungs shown it against."""
    return [
        BaselineJudge(LAPLACIAN, lambda pixels, _: laplacian_energy_map(pixels)),
        BaselineJudge(CONSISTENCY, consistency_map),
    ]
