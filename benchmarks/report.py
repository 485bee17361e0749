"""What every benchmark does with its figures: print them, and write them down with the machine and the date."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS_VARIABLE = "FINPERCEP_BENCHMARK_RESULTS"
"""Environment variable that names another folder for the figures: `python -m benchmarks --quick` sets it."""

RESULTS = Path(os.environ.get(RESULTS_VARIABLE) or Path(__file__).parent / "results")
VERSIONS = ("torch", "numpy", "finpercep")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    versions = {name: version(name) for name in VERSIONS}
    cores = len(os.sched_getaffinity(0))
    return {"cpu": model, "cores": cores, "gpu": gpu, "python": platform.python_version(), "versions": versions}


def command() -> str:
    """How this process was started; of folders outside the working directory the last name alone."""
    words = (Path(word).name if word.startswith("/") else word for word in sys.orig_argv[1:])
    return shlex.join(["python", *words])


def write_result(name: str, figures: Mapping[str, Any]) -> Path:
    """Write ``results/NAME.json``: the figures, the machine, the command, the date."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    record = {"benchmark": name, "date": datetime.date.today().isoformat(), "machine": machine(), "command": command(), **figures}
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table, so that it can be pasted into the docs."""
    print("|", " | ".join(columns), "|")
    print("|", " | ".join("---" for _ in columns), "|")
    for row in rows:
        print("|", " | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row), "|")
