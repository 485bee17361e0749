"""A fine-tuning run for TensorBoard: the figures of every step and its pictures, in the run's folder ``tensorboard``.

After an interruption some steps are done again; TensorBoard is told to forget the points that were written of them, so a run
has every step once. Knows the records of ``metrics.jsonl`` and nothing about training.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from PIL import Image

from finpercep.errors import MissingExtraError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TENSORBOARD_NAME = "tensorboard"

Record = Mapping[str, Any]


class Logbook:
    """Of the run in a folder; a context that closes its file.

    Args:
        folder: the run's.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils import tensorboard
        except ImportError as error:
            raise MissingExtraError("tensorboard", "train") from error
        self._open, self._folder = tensorboard.SummaryWriter, folder / TENSORBOARD_NAME
        self._writer: SummaryWriter | None = None

    def add(self, record: Record, rungs: Sequence[str]) -> None:
        """Record a step, a line of ``metrics.jsonl`` of a run along ``rungs``; it is on its way to disk when this returns."""
        step = int(record["step"])
        writer = self._from(step)
        for name, value in scalars(record, rungs).items():
            writer.add_scalar(name, value, step)
        for name, text in remarks(record).items():
            writer.add_text(name, text, step)
        writer.flush()

    def add_picture(self, step: int, name: str, jpeg: bytes) -> None:
        """Record a picture of a step as it is, an RGB JPEG."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(io.BytesIO(jpeg)) as picture:
            width, height = picture.size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=jpeg)
        writer = self._from(step)
        writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)
        writer.flush()

    def _from(self, step: int) -> SummaryWriter:
        """The open file; opened for ``step``, it makes TensorBoard forget what was written of it and of later ones."""
        if self._writer is None:
            self._writer = self._open(str(self._folder), purge_step=step)
        return self._writer

    def close(self) -> None:
        """No more steps."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def scalars(record: Record, rungs: Sequence[str]) -> dict[str, float]:
    """The numbers of a step by TensorBoard's names.

    ``curriculum/rung`` is the place on the ladder: 1.25 is a quarter of the way from the second rung to the third.
    """
    found = {
        "reward/mean": record["reward"],
        "reward/std": record["reward_std"],
        "reward/score": record["score"],
        "reward/max_degradation": record["max_degradation"],
        "reward/mean_degradation": record["mean_degradation"],
        "curriculum/rung": rungs.index(record["rung"]) + record["blend"],
        "optimiser/grad_norm": record["grad_norm"],
        "optimiser/lr": record["lr"],
        "time/seconds": record["seconds"],
        "time/waiting": record["reward_seconds"] / record["seconds"] if record["seconds"] else 0.0,
        **{f"loss/{name}": value for name, value in record["losses"].items()},
        **{f"figure/{name}": value for name, value in record["figures"].items()},
    }
    if verdict := record.get("verdict"):
        found |= {f"held_out/{name}": verdict[name] for name in ("change", "low", "high", "reward_change")}
        found |= {f"panel/{name}": value for name, value in verdict.get("panel", {}).items()}
    return found


def remarks(record: Record) -> dict[str, str]:
    """What happened at a step, in words: a decision of the curriculum, a refreshed rung, an alarm."""
    found = {}
    if said := record.get("refreshed"):
        found["curriculum/refresh"] = said
    if decision := record.get("decision"):
        found["curriculum/decision"] = f"{decision['move']} to {decision['name']}: {'; '.join(decision['reasons'])}"
    if (verdict := record.get("verdict")) and verdict["hacked"]:
        found["held_out/alarm"] = f"reward {verdict['reward_change']:+.3g}, panel {verdict['change']:+.3f}"
    return found
