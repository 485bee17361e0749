"""How long does a request take, on a server that has little to do, half of what it can, and nearly all of it?

    python -m benchmarks.serving_latency [--model runs/ladder] [--seconds 60] [--sides 256,512] [--shares 0.5,0.9]

What the server can do is measured first, with every client asking again at once. Then requests of one image each arrive at random
moments (Poisson) at a share of that rate, whether or not those before have been answered; a latency counts from the moment of
arrival. ``idle`` is one request at a time, and ``bare`` the model alone in this process on one image, with the allocator's
settings that the server has.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from benchmarks.load import Load, closed_loop, open_loop
from benchmarks.report import print_table, write_result
from benchmarks.serving import pictures, requests
from benchmarks.serving_peers import score_batch
from finpercep.cli.server_process import ServerProcess
from finpercep.memory import keep_freed_memory
from finpercep.predictor import load_predictor, packaged_model_folder

CLIENTS = 32
"""Enough to keep the server busy."""


def bare(model: Path, side: int, seconds: float) -> Load:
    """One image after the other."""
    predictor, images = load_predictor(model), pictures(side)
    score_batch(predictor, images[:1])
    load, index = Load(seconds), 0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or not load.latencies:
        begun = time.perf_counter()
        score_batch(predictor, images[index % len(images)][None])
        load.latencies.append(time.perf_counter() - begun)
        index += 1
    return load


def measure(model: Path, side: int, seconds: float, shares: list[float]) -> list[dict[str, Any]]:
    """All lines of one size."""
    lines = [_line(side, "bare", bare(model, side, seconds / 4))]
    with ServerProcess(model) as server:
        asked = requests(server.url, "tensors", pictures(side))
        lines.append(_line(side, "idle", closed_loop(server.url, asked, 1, seconds / 4)))
        most = closed_loop(server.url, asked, CLIENTS, seconds / 2)
        lines.append(_line(side, f"{CLIENTS} clients, as fast as they can", most))
        for share in shares:
            lines.append(_line(side, f"{share:.0%} of that", open_loop(server.url, asked, share * most.rate, seconds)))
    return lines


def _line(side: int, name: str, load: Load) -> dict[str, Any]:
    return {
        "side": side,
        "load": name,
        "images_per_second": load.rate,
        "p50_ms": load.percentile_ms(0.5),
        "p99_ms": load.percentile_ms(0.99),
        "requests": len(load.latencies),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=packaged_model_folder())
    parser.add_argument("--seconds", type=float, default=60.0, help="of each share; the other lines take less")
    parser.add_argument("--sides", default="256,512")
    parser.add_argument("--shares", default="0.5,0.9")
    options = parser.parse_args()
    keep_freed_memory()  # what the server has, the bare model has too
    shares = [float(share) for share in options.shares.split(",")]
    sides = [int(side) for side in options.sides.split(",")]
    lines = [line for side in sides for line in measure(options.model, side, options.seconds, shares)]
    columns = tuple(lines[0])
    print_table(columns, [[line[column] for column in columns] for line in lines])
    print(write_result("serving_latency", {"seconds": options.seconds, "lines": lines}))


if __name__ == "__main__":
    main()
