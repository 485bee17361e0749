"""Asked for many times what it can do, for minutes: does a server answer all it takes in, refuse the rest well, and stay small?

    python -m benchmarks.serving_overload [--model runs/ladder] [--minutes 10] [--times 20] [--side 256] [--house 128]

What the server can do is measured first; then requests arrive at random moments (Poisson) at ``--times`` that rate. Each must get
either status 200 and its own image's score, or 429 or 503 with a Retry-After; anything else is a fault, and the exit code 1.
The server's memory is looked at all the while. The generator shares the cores with the server, so the arrivals it can bring
about may stay behind; ``sent_per_second`` says what was reached.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.load import closed_loop, overload
from benchmarks.report import print_table, write_result
from benchmarks.serving import pictures, requests
from finpercep.cli.server_process import ServerProcess
from finpercep.predictor import load_predictor, packaged_model_folder
from finpercep.wire import decode_response

CLIENTS, TOLERANCE = 32, 1e-4
"""Clients that find out what the server can do, and the largest difference of a score from the model's own."""


@contextmanager
def memory_of(pid: int, every: float) -> Iterator[list[tuple[float, float]]]:
    """(seconds, MiB resident) of a process, ``every`` so many seconds until the block ends."""
    process, done, begun = psutil.Process(pid), threading.Event(), time.monotonic()
    samples: list[tuple[float, float]] = []

    def look() -> None:
        while True:
            samples.append((round(time.monotonic() - begun, 1), round(process.memory_info().rss / 2**20, 1)))
            if done.wait(every):
                return

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield samples
    finally:
        done.set()
        looking.join()


@contextmanager
def room_for(pixels: int) -> Iterator[None]:
    """Servers that are started meanwhile have room for so many pixels."""
    os.environ["FINPERCEP_HOUSE_PIXELS"] = str(pixels)
    try:
        yield
    finally:
        del os.environ["FINPERCEP_HOUSE_PIXELS"]


def measure(model: Path, side: int, minutes: float, times: float, house: int) -> dict[str, Any]:
    """All figures."""
    images = pictures(side)
    truth = load_predictor(model).score(images.float() / 255).score.tolist()

    def is_right(index: int, body: bytes) -> bool:
        return abs(float(decode_response(body).score) - truth[index]) <= TOLERANCE

    seconds = 60 * minutes
    with room_for(house * side * side), ServerProcess(model) as server:
        asked = requests(server.url, "tensors", images)
        able = closed_loop(server.url, asked, min(CLIENTS, house), min(10.0, max(2.0, seconds / 6))).rate
        with memory_of(server.pid, max(0.5, seconds / 120)) as memory:
            begun = time.perf_counter()
            seen = overload(server.url, asked, is_right, times * able, seconds)
            took = time.perf_counter() - begun
        ready = httpx.get(f"{server.url}/readyz", timeout=60, trust_env=False).status_code
    warm = [mib for at, mib in memory if at >= took / 4]
    return {
        "able_per_second": able,
        "asked_per_second": times * able,
        "sent_per_second": seen.sent / seconds,
        "sent": seen.sent,
        "unsent": seen.unsent,
        "answered": len(seen.answer_seconds),
        "refused": len(seen.refusal_seconds),
        "faults": seen.faults,
        "wrong": seen.wrong,
        "lost": seen.lost,
        "answered_per_second": len(seen.answer_seconds) / took,
        "answer_ms": _quantiles_ms(seen.answer_seconds),
        "refusal_ms": _quantiles_ms(seen.refusal_seconds),
        "seconds": took,
        "rss_mib_at_a_quarter": warm[0],
        "rss_mib_at_the_end": warm[-1],
        "rss_mib_peak": max(mib for _, mib in memory),
        "rss_mib": memory,
        "ready_afterwards": ready,
    }


def _quantiles_ms(seconds: list[float]) -> dict[str, float]:
    return {f"p{round(100 * share)}": 1000 * float(np.quantile(seconds, share)) for share in (0.5, 0.99)} if seconds else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=packaged_model_folder())
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--times", type=float, default=20.0, help="of what the server can do")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--house", type=int, default=128, help="images that the server has room for")
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("minutes", "times", "side", "house")}
    figures = measure(options.model, options.side, options.minutes, options.times, options.house)
    print_table(("figure", "value"), [[name, value] for name, value in figures.items() if name != "rss_mib"])
    print(write_result("serving_overload", {**settings, **figures}))
    sys.exit(bool(figures["faults"]) or figures["ready_afterwards"] != 200)


if __name__ == "__main__":
    main()
