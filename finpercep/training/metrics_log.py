"""``metrics.jsonl``: one JSON object a line, readable at every moment, whatever interrupted the writer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_synth.schema.pixels import write_atomically

Record = dict[str, Any]


def read_metrics(path: Path) -> list[Record]:
    """All whole lines; none when there is no file. A last line cut off by a crash is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1] if line]


def keep_metrics(path: Path, wanted: Callable[[Record], bool]) -> None:
    """Drop the lines that are not ``wanted``, and a torn last one, before a run goes on writing."""
    if path.exists():
        kept = [record for record in read_metrics(path) if wanted(record)]
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept).encode())


def append_metrics(path: Path, record: Record) -> None:
    """Add one line; it is on its way to disk when this returns."""
    with path.open("a") as lines:
        lines.write(json.dumps(record) + "\n")
