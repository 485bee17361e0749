"""How fast is `finpercep synth`, what does each step cost, what does the driver add, and does memory stay flat?

    python -m benchmarks.synth_speed --photos photos/ [--samples 240] [--memory-samples 5000]

Default mix with the packaged SR networks, 256 px, nothing cached. The baseline of the driver is the same samples' steps called in
a row by this script: what `build_dataset` takes beyond their sum is the driver's own. Throughput on two processes is given
with and without their start (loading libraries and networks). Memory is this process's while it builds small samples.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import print_table, write_result
from data_synth.build import Build, plan_build
from data_synth.engines.processes import ProcessEngine
from data_synth.ground_truth import ground_truth_map
from data_synth.images import to_8bit, to_float
from data_synth.photos import gather
from data_synth.plan import BuildConfig
from data_synth.quality import pseudo_quality
from data_synth.recipe import RecipeConfig
from data_synth.regions import render_mask
from data_synth.sample import Sample, sr_steps, swap_region
from data_synth.schema.dataset import write_shard
from data_synth.shards import ShardJob, shard_rows
from finpercep.cli.sr_models import DEFAULT_SOURCES, network_factory


class Stopwatch:
    """Seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - started


def run_steps(build: Build, job: ShardJob, watch: Stopwatch, folder: Path) -> None:
    """Make one shard step by step, as `ShardMaker.make` does."""
    networks, maker = build.networks(), build.maker
    with watch.step("photo, recipe, LR"):
        drawn = [maker.draw(assignment, networks) for assignment in job.samples]
    with watch.step("SR networks"):
        prepared = maker.super_resolve(drawn, range(len(drawn)), networks.models)
    samples = []
    for i, (recipe, _) in enumerate(drawn):
        ingredients = prepared[i]
        with watch.step("artefacts, back-projection"):
            *_, last = sr_steps(recipe, ingredients)
        gt, sr8 = to_float(ingredients.gt), to_8bit(last.image)
        with watch.step("mask"):
            mask = (np.rint(render_mask(recipe.mask, gt, ingredients.segments) * 255) / 255).astype(np.float32)
        syn8 = swap_region(ingredients.gt, ingredients.gt if recipe.kind == "clean" else sr8, mask)
        with watch.step("ground-truth map"):
            degradation = ground_truth_map(gt, to_float(syn8), mask, maker.ground_truth)
        samples.append(Sample(ingredients.gt, ingredients.lr, sr8, syn8, mask, degradation))
    with watch.step("pseudo quality"):
        gts = [sample.gt for sample in samples]
        quality_sr = pseudo_quality([sample.sr for sample in samples], gts, maker.quality)
        quality_syn = pseudo_quality([sample.syn for sample in samples], gts, maker.quality)
    with watch.step("PNG and Parquet"):
        rows = shard_rows(job, [recipe for recipe, _ in drawn], samples, quality_sr, quality_syn)
        write_shard(folder / job.path, rows, {})


def plan(photos: list[str], out: Path, count: int, crop: int, *, networks: bool = True) -> Build:
    config = BuildConfig(count=count, validation=0.0, test=0.0, shard_size=min(64, count // 2), recipe=RecipeConfig(crop=crop))
    factory = network_factory(DEFAULT_SOURCES if networks else (), scale=4, device="cpu")
    return plan_build(gather(photos), out, config, networks=factory)


def steps_and_overhead(photos: list[str], folder: Path, samples: int) -> dict[str, Any]:
    """Seconds of each step and of the whole build in one process, alternately, so so the machine's moods hit both."""
    torch.set_num_threads(1)
    build = plan(photos, folder / "one", samples, 256)
    run_steps(build, build.jobs[0], Stopwatch(), folder / "warm-up")
    watch, in_build, at = Stopwatch(), 0.0, time.perf_counter()
    progress = build.run(ProcessEngine())
    next(progress)
    for job in build.jobs:
        at = time.perf_counter()
        next(progress)
        in_build += time.perf_counter() - at
        run_steps(build, job, watch, folder / "steps")
    at = time.perf_counter()
    for _ in progress:  # the card and the manifest
        pass
    in_build += time.perf_counter() - at
    effects = sum(watch.seconds.values())
    return {
        "milliseconds_a_sample": {name: 1000 * seconds / samples for name, seconds in watch.seconds.items()},
        "samples_a_second_one_process": samples / in_build,
        "driver_overhead": in_build / effects - 1,
    }


def throughput(photos: list[str], folder: Path, samples: int) -> dict[str, float]:
    """Two processes: from the call to the last shard, and between the first and the last shard."""
    build = plan(photos, folder / "two", samples, 256)
    started = time.perf_counter()
    marks = [(time.perf_counter(), step.done) for step in build.run(ProcessEngine(2))]
    (first, done_then), (last, done) = marks[min(2, len(marks) - 2)], marks[-1]
    return {
        "samples_a_second": samples / (time.perf_counter() - started),
        "samples_a_second_after_start": (done - done_then) / (last - first),
    }


def memory(photos: list[str], folder: Path, samples: int) -> list[tuple[int, float]]:
    """Resident MiB after every tenth of the samples, in one process."""
    build = plan(photos, folder / "memory", samples, 64, networks=False)
    found: list[tuple[int, float]] = []
    for step in build.run(ProcessEngine()):
        if step.done >= samples * (len(found) + 1) / 10:
            found.append((step.done, resident_mib()))
    return found


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", action="append", help="folder of photos; default: the packaged samples")
    parser.add_argument("--samples", type=int, default=256, help="at least 64")
    parser.add_argument("--memory-samples", type=int, default=5000)
    arguments = parser.parse_args()
    photos = arguments.photos or ["samples"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures: dict[str, Any] = {"samples": arguments.samples, **steps_and_overhead(photos, folder, arguments.samples)}
        figures["two_processes"] = throughput(photos, folder, 2 * arguments.samples)
        figures["resident_mib"] = memory(photos, folder, arguments.memory_samples)
    print_table(["step", "ms a sample"], list(figures["milliseconds_a_sample"].items()))
    print_table(["figure", "value"], [(key, figures[key]) for key in ("samples_a_second_one_process", "driver_overhead")])
    print_table(["two processes", "value"], list(figures["two_processes"].items()))
    print_table(["samples", "resident MiB"], figures["resident_mib"])
    print(write_result("synth_speed", figures))


if __name__ == "__main__":
    main()
