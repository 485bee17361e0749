"""How do reward servers and trainers behave together, where there are more of them than this machine can run?

    python -m benchmarks.scale_simulation        # the simulator beside closed forms, and beside what was measured

The simulator is `benchmarks.queueing`; `benchmarks.scale_plan` asks it about a cluster, and `tests/deploy/test_scale.py` holds it
against queueing theory.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.queueing import Duration, Simulation, Tier, Trainers, exponential, fixed
from benchmarks.queueing_theory import rate_repairman, wait_md1, wait_mm1
from benchmarks.report import print_table, write_result

RESULTS = Path(__file__).parent / "results"
"""Published figures, wherever this run's go."""

BATCH_PIXELS = 128 * 1024
"""Most pixels of a batch on CPUs (`rm_server.service`)."""

REQUEST_SECONDS = 0.0073
"""Of a request of one image beyond the model: an idle server's latency less the bare model's (256 px, 2 cores, 2026-11-24)."""


def closed_forms(seconds: float = 20_000.0, seed: int = 0) -> list[tuple[str, float, float]]:
    """Name, closed form, simulated; of a server that takes 0.1 s, or where it fails 1 s."""
    rows = []
    for load in (0.5, 0.7):
        rate = 10 * load
        for name, form, duration in (("M/D/1", wait_md1, fixed(0.1)), ("M/M/1", wait_mm1, exponential(0.1))):
            simulation = Simulation(Tier(1, duration), seed, warm=100.0)
            simulation.poisson(rate)
            rows.append((f"{name}, load {load}: wait, s", form(rate, 0.1), statistics.fmean(simulation.run(seconds).waits)))
    simulation = Simulation(Tier(1, exponential(0.1)), seed, warm=100.0)
    simulation.train(Trainers(8, lambda rng: rng.expovariate(1.0)))
    rows.append(("M/M/1//8, think 1 s: answers a second", rate_repairman(8, 1.0, 0.1), simulation.run(seconds).rate))
    mean, repair = 100.0, 20.0
    simulation = Simulation(Tier(1, fixed(1.0), mean_seconds_to_failure=mean, repair_seconds=repair, retry_seconds=0.0), seed)
    simulation.train(Trainers(8, lambda _rng: 0.0))
    # What it was computing when it failed is lost: half a request each time.
    rows.append(("saturated, failing: answers a second", (mean - 0.5) / (mean + repair), simulation.run(5 * seconds).rate))
    return rows


def table_duration(by_size: dict[int, float]) -> Duration:
    """Seconds of a batch from those of measured sizes, straight lines between them."""
    sizes = sorted(by_size)

    def seconds(images: int) -> float:
        if images >= sizes[-1]:
            return by_size[sizes[-1]] * images / sizes[-1]
        below = max(size for size in sizes if size <= images)
        above = min(size for size in sizes if size >= images)
        share = 0.0 if above == below else (images - below) / (above - below)
        return by_size[below] + share * (by_size[above] - by_size[below])

    return lambda _rng, images, _requests: seconds(images)


def _record(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return record


def beside_measured(seconds: float = 300.0) -> list[dict[str, Any]]:
    """One server under its clients: predicted from the bare model, and as `benchmarks.serving` measured it.

    The bare model's batches give the duration. What a request costs beyond the model is not added: while one lane of the server
    answers, the other computes. Nothing is fitted to the loaded server.
    """
    record = _record("serving")
    lines = {line["line"]: line for line in record["lines"] if line["side"] == 256}
    rows = []
    for route, suffix in (("tensors", ""), ("gradients", ", with gradient")):
        bare = {
            size: size / lines[name]["images_per_second"]
            for size in (1, 2, 4, 8, 16, 32)
            if (name := f"bare, batch {size}{suffix}") in lines
        }
        simulation = Simulation(Tier(1, table_duration(bare), BATCH_PIXELS // 256**2), warm=30.0)
        simulation.train(Trainers(record["clients"], lambda _rng: 0.0))
        predicted, measured = simulation.run(seconds), lines[f"finpercep, {route}"]
        rows.append(
            {
                "route": route,
                "predicted_images_per_second": predicted.rate,
                "measured_images_per_second": measured["images_per_second"],
                "predicted_p50_ms": 1000 * predicted.percentile(0.5),
                "measured_p50_ms": measured["p50_ms"],
                "measured_on": record["date"],
            }
        )
    return rows


def main() -> None:
    forms = closed_forms()
    print_table(("queue", "closed form", "simulated"), forms)
    measured = beside_measured()
    print_table(tuple(measured[0]), [tuple(row.values()) for row in measured])
    columns = ("queue", "closed_form", "simulated")
    print(
        write_result(
            "scale_simulation", {"closed_forms": [dict(zip(columns, row, strict=True)) for row in forms], "measured": measured}
        )
    )


if __name__ == "__main__":
    main()
