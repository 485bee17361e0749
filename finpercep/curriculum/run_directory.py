"""A fine-tuning run on disk: settings, metrics, checkpoints, ``final/`` and ``best/``. Running again resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from data_synth.schema.pixels import write_atomically
from finpercep.training.metrics_log import append_metrics, keep_metrics
from finpercep.training.run_config import claim_config
from finpercep.training.run_state import load_run_state, save_run_state


class RunDirectory:
    """Reads and writes the files of one run; knows their names, and nothing about training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics_path = folder / "metrics.jsonl"
        self.final = folder / "final"
        self.best = folder / "best"
        self._state_path = folder / "checkpoints" / "latest.pt"
        self._best_path = folder / "checkpoints" / "best.safetensors"

    def claim(self, config: dict[str, Any]) -> None:
        """Write the resolved config, or check that the run already here has the same one; see `claim_config`."""
        claim_config(self.folder / "config.toml", config)

    def save_state(self, state: dict[str, Any]) -> None:
        """Store the latest checkpoint; ``state["step"]`` is the number of steps done."""
        save_run_state(self._state_path, state)

    def load_state(self) -> dict[str, Any] | None:
        """The latest checkpoint, or None. Metrics of steps after it are dropped: those steps will be run again."""
        state = load_run_state(self._state_path)
        done = 0 if state is None else int(state["step"])
        keep_metrics(self.metrics_path, lambda record: record["step"] <= done)
        return state

    def has_best(self) -> bool:
        """Whether `save_best` was called for this run."""
        return self._best_path.exists()

    def save_best(self, weights: dict[str, torch.Tensor]) -> None:
        """Keep these weights as the best so far."""
        write_atomically(self._best_path, save({name: tensor.cpu().contiguous() for name, tensor in weights.items()}))

    def load_best(self) -> dict[str, torch.Tensor]:
        """The weights that were kept last."""
        return load(self._best_path.read_bytes())

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``; ``record["step"]`` is 1-based."""
        append_metrics(self.metrics_path, record)
