"""Does fine-tuning against a served map end better than against one number, on measures the reward never saw?

    python -m benchmarks.evidence --photos photos/ --held-out others/ --out runs/evidence      # all arms, 5 seeds: hours
    python -m benchmarks.evidence … --seeds 2 --arms control,global,fixed                      # minutes
    python -m benchmarks.evidence … --policy trained --steps 45 --lr 3e-5 --reward-weight 0.2  # the policy that is finished

Every arm is run with every seed, in processes of one thread, as many as there are cores. A run that is
there is not run again, so the command continues where it was stopped. It ends with a table of all runs and, from three seeds on,
with `results/evidence.json`, and with tables and pictures in `docs/evidence.md`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.evidence.arms import ARMS, POLICIES, Scale
from benchmarks.evidence.moved import with_moved
from benchmarks.evidence.run import Photos, measure_start, prepare, run_arm
from benchmarks.evidence.summary import COLUMNS, load_runs, rows, summarise
from benchmarks.report import print_table
from finpercep.predictor import packaged_model_folder


def main(given: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="Folder of photos to train on.")
    parser.add_argument("--held-out", type=Path, required=True, help="Folder of other photos to measure on.")
    parser.add_argument("--ladder", type=Path, default=packaged_model_folder(), help="What rewards; the packaged one measures.")
    parser.add_argument("--crops", type=int, default=32, help="Crops of these.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    for field in dataclasses.fields(Scale):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    parser.add_argument("--page-only", action="store_true", help="Run nothing: write tables and pictures of the runs in --out.")
    arguments = parser.parse_args(given)
    scale = Scale(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Scale)})
    names = arguments.arms.split(",")
    if scale.policy not in POLICIES:
        parser.error(f"--policy: there are {', '.join(POLICIES)}, got {scale.policy}")
    if unknown := sorted(set(names) - set(ARMS)):
        parser.error(f"--arms: there are {', '.join(ARMS)}, got {', '.join(unknown)}")
    if not arguments.page_only:
        _run_all(names, arguments, scale)
    from benchmarks.evidence.page import write_page

    runs, start = with_moved(arguments.out, load_runs(arguments.out), json.loads((arguments.out / "start.json").read_text()))
    print_table(COLUMNS, rows(summarise(runs, start)))
    for path in write_page(arguments.out, scale, runs, start):
        print(path)


def _run_all(names: Sequence[str], arguments: argparse.Namespace, scale: Scale) -> None:
    """Every arm with every seed; an error ends the command once the others are done."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, which inherit it
    photos = Photos(arguments.photos, arguments.held_out, arguments.crops)
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        pool.submit(measure_start, scale, photos, arguments.out)
        known = pool.submit(prepare, scale, photos, arguments.out) if "refresh" in names else None
        tasks = {}
        for name, seed in sorted(
            ((name, seed) for name in names for seed in range(arguments.seeds)), key=lambda task: (task[0] == "refresh", task[1])
        ):
            if name == "refresh" and known is not None:
                known.result()  # it is long done when all others are
            tasks[f"{name}, seed {seed}"] = pool.submit(run_arm, name, seed, scale, photos, arguments.out, arguments.ladder)
        for task, done in tasks.items():
            done.result()
            print(task, "done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
