"""No-reference metrics of pyiqa as judges beside our rungs: piqe needs no weights, CLIP-IQA, MUSIQ, MANIQA and others do."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_synth.schema import RGB8, Row
from finpercep.errors import MissingExtraError, RewardError, WeightsError
from finpercep.training.judges import Judgement


def create_metric(name: str, device: torch.device | str, *, as_loss: bool = False) -> Any:
    """A no-reference metric of pyiqa, a module with ``lower_better``; its weights are downloaded when they are not here.

    Args:
        name: as pyiqa names it.
        device: where it computes.
        as_loss: let gradients through; its parameters take none.

    Raises:
        MissingExtraError: pyiqa is not installed.
        WeightsError: there is no such no-reference metric, or its weights cannot be had.
    """
    try:
        import pyiqa  # seconds to import
    except ImportError as error:
        raise MissingExtraError("pyiqa", "train") from error
    if name not in pyiqa.list_models(metric_mode="NR"):
        raise WeightsError(f"{name}: not a no-reference metric of pyiqa; `pyiqa.list_models('NR')` names them")
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):  # it prints what it loads
        try:
            metric: Any = pyiqa.create_metric(name, device=device, as_loss=as_loss, loss_reduction="none")
        except Exception as error:  # downloads and damaged files raise many unrelated types
            reason = str(error).split("\n")[0] or type(error).__name__
            raise WeightsError(f"the weights of {name} could not be had ({reason}); go online once, or leave it out") from error
    return metric.requires_grad_(False).eval()


class MetricJudge:
    """One metric; its scores are turned so that higher is better, and keep the metric's own range."""

    digest: str | None = None

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        """Build the metric as pyiqa names it; its weights are downloaded when they are not here.

        Raises:
            MissingExtraError: pyiqa is not installed.
            WeightsError: there is no such no-reference metric, or its weights cannot be had.
        """
        self._metric = create_metric(name, device)
        self.name, self.device = name, torch.device(device)
        self._sign = -1.0 if self._metric.lower_better else 1.0

    @torch.no_grad()
    def score(self, pixels: RGB8) -> float:
        """Of one uint8 H×W×3 picture; higher is better, whatever the metric's own direction.

        Raises:
            RewardError: it is not finite.
        """
        image = torch.tensor(pixels, device=self.device).permute(2, 0, 1)[None].float() / 255
        score = self._sign * float(self._metric(image))
        if not math.isfinite(score):
            raise RewardError(f"{self.name}: the score of an image of {pixels.shape[1]}x{pixels.shape[0]} px is not finite")
        return score

    def judge(self, rows: Sequence[Row]) -> Judgement:
        """Judge samples, one by one: some metrics depend on the batch."""
        scores = {f"score_{role}": np.array([self.score(getattr(row, role)) for row in rows]) for role in ("gt", "syn", "sr")}
        return Judgement(**scores, map_gt=None, map_syn=None)
