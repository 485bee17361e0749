"""A fine-tuning run on disk: settings, provenance, metrics, checkpoints, ``final/`` and ``best/``. Running again resumes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from data_synth.schema.pixels import write_atomically
from finpercep.curriculum.logbook import Logbook
from finpercep.training.metrics_log import append_metrics, keep_metrics
from finpercep.training.provenance import Session, add_session
from finpercep.training.run_config import claim_config
from finpercep.training.run_state import load_run_state, save_run_state


class RunDirectory:
    """Reads and writes the files of one run; knows their names, and nothing about training.

    Args:
        folder: the run's.
        logbook: gets every step too; its owner closes it.
        session: what began or continues the run now; kept once the run is known to be this one.
    """

    def __init__(self, folder: Path, *, logbook: Logbook | None = None, session: Session | None = None) -> None:
        self.folder, self.logbook, self._session = folder, logbook, session
        self._rungs: Sequence[str] = ()
        self.metrics_path = folder / "metrics.jsonl"
        self.final = folder / "final"
        self.best = folder / "best"
        self._state_path = folder / "checkpoints" / "latest.pt"

    def claim(self, config: dict[str, Any]) -> None:
        """Write the resolved config, or check that the run already here has the same one; see `claim_config`."""
        claim_config(self.folder / "config.toml", config)
        self._rungs = config.get("rungs", ())
        if self._session is not None:
            add_session(self.folder, self._session)
            self._session = None

    def save_state(self, state: dict[str, Any]) -> None:
        """Store the latest checkpoint; ``state["step"]`` is the number of steps done."""
        save_run_state(self._state_path, state)

    def load_state(self) -> dict[str, Any] | None:
        """The latest checkpoint, or None."""
        return load_run_state(self._state_path)

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps after ``step``: they will be run again."""
        keep_metrics(self.metrics_path, lambda record: record["step"] <= step)

    def save_best(self, step: int, weights: dict[str, torch.Tensor]) -> None:
        """Keep these weights, of after ``step`` steps, as the best so far."""
        write_atomically(self._best_path(step), save({name: tensor.cpu().contiguous() for name, tensor in weights.items()}))

    def load_best(self, step: int) -> dict[str, torch.Tensor]:
        """The weights that were kept of a step."""
        return load(self._best_path(step).read_bytes())

    def forget_best_but(self, step: int) -> None:
        """Delete the weights kept of other steps; to be called once a checkpoint says which step's are the best."""
        for path in self._best_path(step).parent.glob("best-*.safetensors"):
            if path != self._best_path(step):
                path.unlink()

    def _best_path(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"best-{step:06d}.safetensors"

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``; ``record["step"]`` is 1-based."""
        append_metrics(self.metrics_path, record)
        if self.logbook is not None:
            self.logbook.add(record, self._rungs)
