"""The record of a training run: ``metrics.jsonl``, and the same for TensorBoard in ``tensorboard/RUNG``.

After an interruption some steps are done again. What was written of them goes: lines are dropped from the file, and TensorBoard
is told to forget the points. So a run has every step once, whatever happened to it.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from finpercep.errors import MissingExtraError
from finpercep.training.metrics_log import append_metrics, keep_metrics
from finpercep.training.reports import RungReport, StepReport

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS_NAME = "metrics.jsonl"
TENSORBOARD_NAME = "tensorboard"


class RunLog:
    """Of the run in a folder. Only one process of a run may have it."""

    def __init__(self, out: Path) -> None:
        """Open the record and drop the lines of finished rungs: every one is reported again.

        Raises:
            MissingExtraError: tensorboard is not installed.
        """
        try:
            from torch.utils import tensorboard
        except ImportError as error:
            raise MissingExtraError("tensorboard", "train") from error
        self._open = tensorboard.SummaryWriter
        self.out, self.metrics = out, out / METRICS_NAME
        keep_metrics(self.metrics, lambda record: record["kind"] == "StepReport")
        self._rung: str | None = None
        self._writer: SummaryWriter | None = None

    def add(self, report: StepReport | RungReport) -> None:
        """Record a report; it is on its way to disk when this returns."""
        if isinstance(report, StepReport):
            if report.rung != self._rung:
                self._begin(report.rung, report.step)
            self._draw(report)
        append_metrics(self.metrics, {"kind": type(report).__name__, **asdict(report)})

    def close(self) -> None:
        """No more reports."""
        if self._writer is not None:
            self._writer.close()

    def _begin(self, rung: str, step: int) -> None:
        """From here on ``rung`` is trained, from ``step``."""
        self.close()
        keep_metrics(self.metrics, lambda record: record["rung"] != rung or record.get("step", 0) < step)
        self._rung = rung
        self._writer = self._open(str(self.out / TENSORBOARD_NAME / rung), purge_step=step)

    def _draw(self, report: StepReport) -> None:
        assert self._writer is not None
        for name, value in scalars(report).items():
            self._writer.add_scalar(name, value, report.step)
        self._writer.flush()


def scalars(report: StepReport) -> dict[str, float]:
    """The numbers of a step by TensorBoard's names; what is undefined is left out."""
    found: dict[str, float | None] = {f"loss/{name}": value for name, value in report.losses.items()}
    found |= {"lr": report.lr, "grad_norm": report.grad_norm}
    if report.validation is not None:
        quality = report.validation.quality
        found |= {"validation/figure": report.validation.figure, "validation/triplet_order": quality.ranking.triplet}
        if quality.map is not None:
            found |= {"validation/paired_auroc": quality.map.paired_auroc, "validation/map_l1": quality.map.l1}
            found |= {"validation/map_on_clean": quality.map.clean_mean}
    return {name: value for name, value in found.items() if value is not None}
