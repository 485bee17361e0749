"""Does fine-tuning against a served map end better than against one number, on measures the reward never saw?

    python -m benchmarks.evidence --photos photos/ --held-out others/ --out runs/evidence      # all arms, 5 seeds: overnight
    python -m benchmarks.evidence … --seeds 2 --steps 20 --arms control,global,fixed           # a quarter of an hour

Every arm is run with every seed, each run in a process of one thread, as many at a time as there are cores. A run that is
there is not run again, so the command continues where it was stopped. It ends with `results/evidence.json`, and with tables and
pictures in `docs/evidence.md`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.evidence.arms import ARMS, Scale


def main(given: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="Folder of photos to train on.")
    parser.add_argument("--held-out", type=Path, required=True, help="Folder of other photos to measure on.")
    parser.add_argument("--crops", type=int, default=48, help="Crops of these.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    for field in dataclasses.fields(Scale):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    parser.add_argument("--page-only", action="store_true", help="Run nothing: write tables and pictures of the runs in --out.")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    scale = Scale(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Scale)})
    if arguments.only:
        _run_one(arguments, scale)
        return
    names = arguments.arms.split(",")
    if unknown := sorted(set(names) - set(ARMS)):
        parser.error(f"--arms: there are {', '.join(ARMS)}, got {', '.join(unknown)}")
    if not arguments.page_only:
        _in_own_process(given, "start")
        if any(ARMS[name].reward == "refreshed" for name in names):
            _in_own_process(given, "known")
        tasks = [f"{name}:{seed}" for seed in range(arguments.seeds) for name in names]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for failed in filter(None, pool.map(lambda task: _in_own_process(given, task), tasks)):
                sys.exit(failed)
    from benchmarks.evidence.page import write_page

    for path in write_page(arguments.out, scale):
        print(path)


def _in_own_process(given: Sequence[str], task: str) -> str | None:
    """Run a task; returns what it said where it failed."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.evidence", *given, "--only", task]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    print(task, "failed" if done.returncode else "done", flush=True)
    return f"{task} failed:\n{done.stderr[-2000:]}" if done.returncode else None


def _run_one(arguments: argparse.Namespace, scale: Scale) -> None:
    import torch

    from benchmarks.evidence.run import Photos, measure_start, prepare, run_arm

    torch.set_num_threads(1)
    photos = Photos(arguments.photos, arguments.held_out, arguments.crops)
    if arguments.only == "start":
        measure_start(photos, arguments.out)
    elif arguments.only == "known":
        prepare(scale, photos, arguments.out)
    else:
        name, _, seed = arguments.only.rpartition(":")
        run_arm(name, int(seed), scale, photos, arguments.out)


if __name__ == "__main__":
    main(sys.argv[1:])
