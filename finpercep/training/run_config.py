"""The resolved config beside every run's output, and the check that a run is continued with the settings it was begun with."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from data_synth.schema.pixels import write_atomically
from finpercep.errors import ConfigError, TrainingError

_RESULTS = {"ladder.json": "a ladder", "RM_*/config.json": "a ladder", "zoo.json": "an SR zoo", "policy.json": "an SR model"}
"""Files that tell what a folder holds, as a pattern, and what that is."""


def claim_config(path: Path, config: dict[str, Any]) -> None:
    """Write ``config`` to ``path`` as TOML, or check that the run already there has the same one.

    Raises:
        TrainingError: the folder holds a run with other settings; the message names them.
        ConfigError: the folder holds a result that no run began there: it would be taken for finished work, or written over.
    """
    config = _without_none(config)
    if path.exists():
        existing = tomllib.loads(path.read_text())
        if existing != config:
            raise TrainingError(
                f"{path}: this folder holds a run with other settings ({_differences(existing, config)}); use another --out"
            )
        return
    for pattern, result in _RESULTS.items():
        if any(path.parent.glob(pattern)):
            start = ", and --start DIR to train it on" if result == "a ladder" else ""
            raise ConfigError(f"{path.parent}: holds {result} that no run here began; use an empty folder{start}")
    write_atomically(path, tomli_w.dumps(config).encode())


def _without_none(value: Any) -> Any:
    """TOML has no null: unset options are left out."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(item) for item in value]
    return value


def _differences(existing: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> str:
    found = []
    for key in sorted(existing.keys() | wanted.keys()):
        old, new = existing.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            if old != new:
                found.append(_differences(old, new, f"{prefix}{key}."))
        elif old != new:
            found.append(f"{prefix}{key}: {old!r} there, {new!r} here")
    return "; ".join(found)
