"""One file that holds a training run at a step, written atomically: running again continues bit for bit.

Holds tensors and plain values only and is read with `weights_only`, so a state file from elsewhere cannot run code.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from data_synth.schema.pixels import write_atomically
from finpercep.errors import TrainingError


def save_run_state(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, lists and dicts of them) and this process's torch RNG state."""
    buffer = io.BytesIO()
    torch.save({**state, "_torch_rng": torch.get_rng_state()}, buffer)
    write_atomically(path, buffer.getvalue())


def load_run_state(path: Path) -> dict[str, Any] | None:
    """Read what `save_run_state` wrote and restore the RNG; None when there is no such file.

    Raises:
        TrainingError: the file is damaged or not a run state.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        torch.set_rng_state(state.pop("_torch_rng"))
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{path}: damaged run state ({error}); remove it to start over") from error
    return state
