"""All benchmarks, one after the other, and the page of their figures.

    python -m benchmarks                        # measure with the settings of `SUITE`; about two hours on two idle cores
    python -m benchmarks rm_speed serving       # only these
    python -m benchmarks --quick                # does every script still run? A few minutes; no figure of it is published
    python -m benchmarks --page-only            # docs/benchmarks.md from the figures that are there

Each is a process of its own, with a log in --work. One that fails is named at the end, with exit code 1, and stops none of the
others; the page keeps its last figures, with their date. What needs a dataset shares one, built from --photos when none is named.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.page import write_page
from benchmarks.report import RESULTS, RESULTS_VARIABLE

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LAST_WORDS = 5
"""Lines of a failed benchmark's log that are shown."""


@dataclass(frozen=True)
class Benchmark:
    """A script and how it is run.

    Attributes:
        name: of the module.
        settings: arguments for figures that are published; ``{photos}`` and ``{data}`` are filled in.
        quick: arguments to see whether it runs.
    """

    name: str
    settings: str
    quick: str

    def command(self, arguments: str, **places: Path | str) -> list[str]:
        """The command line, with ``places`` filled in."""
        return [sys.executable, "-m", f"benchmarks.{self.name}", *(word.format(**places) for word in shlex.split(arguments))]


SUITE = (
    Benchmark("rm_speed", "", "--quick --seconds 0.1 --baselines piqe"),
    Benchmark("rm_precision", "--photos {photos}", "--limit 1"),
    Benchmark("rm_severity", "--photos {photos}", "--limit 1"),
    Benchmark("rm_calibration", "--data {data}", "--data {data} --split train --limit 4"),
    Benchmark("score_heads", "--data {data}", "--data {data} --train 8 --test 4 --seeds 1 --steps 2"),
    Benchmark("unseen_faults", "--photos {photos}", "--limit 1"),
    Benchmark("rm_robustness", "--photos {photos}", "--crops 1 --steps 1"),
    Benchmark("ground_truth_sanity", "--photos {photos}", "--limit 1 --draws 1"),
    Benchmark("synth_speed", "--photos {photos}", "--samples 64 --memory-samples 64"),
    Benchmark("synth_cache", "--photos {photos}", "--samples 8"),
    Benchmark("serving", "", "--seconds 1 --clients 2 --sides 256"),
    Benchmark("serving_latency", "", "--seconds 2 --sides 64 --shares 0.5"),
    Benchmark("serving_overload", "", "--minutes 0.05 --times 2 --side 64 --house 8"),
    Benchmark("cluster", "--out", "--out --seconds 2 --clients 4 --side 64 --replicas 1"),
    Benchmark("scale_simulation", "", ""),
    Benchmark("scale_plan", "", ""),
    Benchmark("server_fuzz", "--bodies 100000", "--bodies 200"),
    Benchmark("finetune_step", "", "--steps 2 --algorithms refl"),
    Benchmark("policy_steps", "", "--policies controlnet --algorithms refl --ranks 4 --steps 2"),
    Benchmark("policy_memory", "", ""),
    Benchmark("credit_assignment", "--seeds 6 --draws 6 --truth 24", "--questions tiny --pairs 1 --draws 1 --truth 2 --group 2"),
)
"""Without `loss_weights`, `held_out_families` and `evidence`, which take an hour, hours and days."""

DATASET_SAMPLES, QUICK_SAMPLES = 2000, 24


def main(given: Sequence[str] | None = None) -> int:
    """Run, write the page, and say how it went; 1 if anything failed."""
    options = _options(given)
    if options.page_only:
        return _write(RESULTS, DOCS / "benchmarks.md", DOCS / "figures")
    work = Path(options.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    results = Path(tempfile.mkdtemp(dir=work, prefix="quick-")) if options.quick else RESULTS
    chosen = [one for one in SUITE if not options.names or one.name in options.names]
    failed = run_suite(chosen, results, work, options)
    page, figures = (
        (results / "benchmarks.md", results / "figures") if options.quick else (DOCS / "benchmarks.md", DOCS / "figures")
    )
    code = _write(results, page, figures)
    print(f"{len(chosen) - len(failed)} of {len(chosen)} benchmarks ran" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else code


def run_suite(chosen: Sequence[Benchmark], results: Path, work: Path, options: argparse.Namespace) -> list[str]:
    """Run each benchmark; the names of those that failed."""
    environment = {**os.environ, RESULTS_VARIABLE: str(results), "PYTHONPATH": str(ROOT)}
    data, failed = options.data, []
    if data is None and any("{data}" in one.settings for one in chosen):
        data = work / ("data-quick" if options.quick else "data")
        count = QUICK_SAMPLES if options.quick else DATASET_SAMPLES
        build = [
            sys.executable,
            "-m",
            "finpercep",
            "synth",
            "--photos",
            options.photos,
            "--out",
            str(data),
            "--count",
            str(count),
        ]
        if not run("dataset", build, work, environment, options.limit):
            data = None
    for one in chosen:
        arguments = one.quick if options.quick else one.settings
        if "{data}" in arguments and data is None:
            print(f"{one.name}: FAILED, there is no dataset", flush=True)
            failed.append(one.name)
        elif not run(one.name, one.command(arguments, photos=options.photos, data=str(data)), work, environment, options.limit):
            failed.append(one.name)
    return failed


def run(name: str, command: Sequence[str], work: Path, environment: dict[str, str], limit: float) -> bool:
    """One process with all its children, its output in ``work/NAME.log``; whether it ended well within ``limit`` seconds."""
    print(f"{name}: ", end="", flush=True)
    begun, log = time.monotonic(), work / f"{name}.log"
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            fault = f"exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            fault = f"not done after {limit:g} s"
        finally:
            _end(process)
    took = f"{time.monotonic() - begun:.0f} s"
    print(f"FAILED, {fault}, {took}; its log is {log}" if fault else took, flush=True)
    if fault:
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_WORDS:]:
            print(f"    {line}", flush=True)
    return not fault


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a benchmark: itself, and the servers it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def _write(results: Path, page: Path, figures: Path) -> int:
    faults = write_page(results, page, figures)
    for fault in faults:
        print(f"FAILED to show: {fault}")
    print(page)
    return 1 if faults else 0


def _options(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these of {', '.join(one.name for one in SUITE)}")
    parser.add_argument("--quick", action="store_true", help="the shortest settings; figures and page go to a folder in --work")
    parser.add_argument("--page-only", action="store_true", help="measure nothing")
    parser.add_argument(
        "--photos", default="samples", help="folder of photos that no rung was trained on; default: the packaged samples"
    )
    parser.add_argument("--data", type=Path, help="dataset of `finpercep synth`; default: one is built from --photos")
    parser.add_argument("--work", default=str(ROOT / "runs" / "bench"), help="folder for logs and the dataset")
    parser.add_argument("--limit", type=float, default=3 * 3600, help="seconds after which a benchmark is given up")
    options = parser.parse_args(given)
    if unknown := set(options.names) - {one.name for one in SUITE}:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; see --help")
    return options


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the benchmark that runs is ended too
    sys.exit(main())
