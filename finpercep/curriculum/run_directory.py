"""A fine-tuning run on disk: ``config.toml``, ``metrics.jsonl``, ``checkpoints/``, ``final/``. Running again resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_synth.schema.pixels import write_atomically
from finpercep.training.run_config import claim_config
from finpercep.training.run_state import load_run_state, save_run_state


class RunDirectory:
    """Reads and writes the files of one run; knows their names, and nothing about training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics_path = folder / "metrics.jsonl"
        self.final = folder / "final"
        self._state_path = folder / "checkpoints" / "latest.pt"

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
        if self.metrics_path.exists():
            kept = [record for record in self.read_metrics() if record["step"] <= done]
            write_atomically(self.metrics_path, "".join(json.dumps(record) + "\n" for record in kept).encode())
        return state

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``; ``record["step"]`` is 1-based."""
        with self.metrics_path.open("a") as lines:
            lines.write(json.dumps(record) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines of ``metrics.jsonl``; a last line cut off by a crash is left out."""
        lines = self.metrics_path.read_text().split("\n")
        return [json.loads(line) for line in lines[:-1] if line]
