"""What does serving cost, beside the bare model and beside the server the field writes?

    python -m benchmarks.serving [--model runs/ladder] [--clients 32] [--seconds 15] [--sides 256,512]

Every line is measured in this run, on this machine. The clients are threads of one process, each with one connection and one
image a request; server and clients share the cores, as they do on one box. Ratios are to ``bare``: the model alone in this
process, at the batch size that is fastest for it.

Beside ours stands ``pickle``, the field's habit: a threading HTTP server of the same predictor that unpickles one uint8 array a
request, scores it under a lock and pickles the answer.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from benchmarks.report import print_table, write_result
from data_synth.schema.pixels import encode_png
from finpercep.cli.server_process import ServerProcess
from finpercep.predictor import Predictor, load_predictor, packaged_model_folder
from finpercep.reward import RewardWeights, fuse
from finpercep.wire import TENSOR_MEDIA_TYPE, ScoreRequest, encode_request

BATCHES = (1, 2, 4, 8, 16, 32)
PICKLE_PORT = 18431


def pictures(side: int, count: int = 8) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    """Photo-like: smooth, with a little noise, so that PNG has something to do."""
    rng = np.random.default_rng(side)
    coarse = torch.from_numpy(rng.random((count, 3, 16, 16), dtype=np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    noisy = (smooth.numpy() * 235 + rng.normal(0, 4, smooth.shape) + 10).clip(0, 255).astype(np.uint8)
    return [np.ascontiguousarray(one.transpose(1, 2, 0)) for one in noisy]


def as_tensors(images: list[np.ndarray[Any, np.dtype[np.uint8]]]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


# -- the model alone --------------------------------------------------------------------------------------------------


def bare_rates(predictor: Predictor, side: int, seconds: float, *, grad: bool) -> dict[int, float]:
    """Batch size → images a second; uint8 in, reward (and gradient) out."""
    images = as_tensors(pictures(side))
    rates = {}
    for size in BATCHES:
        batch = images[torch.arange(size) % len(images)]
        score_batch(predictor, batch, grad=grad)
        times = []
        until = time.perf_counter() + seconds / len(BATCHES)
        while time.perf_counter() < until or len(times) < 3:
            begun = time.perf_counter()
            score_batch(predictor, batch, grad=grad)
            times.append(time.perf_counter() - begun)
        rates[size] = size / statistics.median(times)
    return rates


def score_batch(predictor: Predictor, images: torch.Tensor, *, grad: bool) -> list[float]:
    pixels = (images.float() / 255).requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        batch = predictor.score(pixels)
        reward = fuse(batch.score, batch.map, RewardWeights()).reward
        if grad:
            torch.autograd.grad(reward.sum(), pixels)
    rewards: list[float] = reward.detach().tolist()
    return rewards


# -- other servers ----------------------------------------------------------------------------------------------------


def serve_pickle(model: Path) -> None:
    predictor, lock = load_predictor(model), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(b"ready")

        def do_POST(self) -> None:
            image = pickle.loads(self.rfile.read(int(self.headers["content-length"])))  # the field's habit: code from anyone
            with lock:
                rewards = score_batch(predictor, as_tensors([image]), grad=False)
            self._answer(pickle.dumps(rewards))

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    ThreadingHTTPServer(("127.0.0.1", PICKLE_PORT), Handler).serve_forever()


@contextmanager
def pickle_server(model: Path) -> Iterator[str]:
    """It as a process, once it answers."""
    command = [sys.executable, "-m", "benchmarks.serving", "--serve-pickle", "--model", str(model)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{PICKLE_PORT}"
    try:
        while process.poll() is None:
            try:
                httpx.get(url, trust_env=False, timeout=2)
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


# -- load -------------------------------------------------------------------------------------------------------------

Ask = Callable[[httpx.Client, int], httpx.Response]


def load(url: str, ask: Ask, clients: int, seconds: float) -> dict[str, float]:
    """Images a second and latencies in ms, with every client asking again at once.

    Counted is every answer that comes in within the window, whenever it was asked for; the window begins when each client has
    had its first answer, so that a slow start costs nobody. A client that fails ends the benchmark.
    """
    warm = threading.Barrier(clients)
    answers: list[tuple[float, float]] = []

    def client(number: int) -> float:
        with httpx.Client(base_url=url, timeout=120, trust_env=False) as http:
            try:
                ask(http, number).raise_for_status()
            except httpx.HTTPError:
                warm.abort()
                raise
            warm.wait()
            begin = time.perf_counter()
            index = number
            while (asked := time.perf_counter()) < begin + seconds:
                index += clients
                ask(http, index).raise_for_status()
                answers.append((asked, time.perf_counter()))
        return begin

    with ThreadPoolExecutor(clients) as pool:
        begin = max(pool.map(client, range(clients)))
    within = [done - asked for asked, done in answers if begin <= done <= begin + seconds]
    if not within:
        raise RuntimeError(f"{url} answered nothing in {seconds} s; give it more --seconds")
    ordered = sorted(within)
    return {
        "images_per_second": len(within) / seconds,
        "p50_ms": 1000 * ordered[len(ordered) // 2],
        "p99_ms": 1000 * ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))],
    }


def asking(side: int) -> dict[str, Ask]:
    """How each route is asked for one image; bodies are made beforehand, so that clients cost as little as they can."""
    images = pictures(side)
    tensors, count = as_tensors(images), len(images)
    wire = [encode_request(ScoreRequest(tensors[i : i + 1])) for i in range(count)]
    with_grad = [encode_request(ScoreRequest(tensors[i : i + 1], grad=True)) for i in range(count)]
    pngs = [encode_png(image) for image in images]
    pickles = [pickle.dumps(image) for image in images]
    tensor_type = {"content-type": TENSOR_MEDIA_TYPE}
    return {
        "tensors": lambda http, i: http.post("/score", content=wire[i % count], headers=tensor_type),
        "gradients": lambda http, i: http.post("/score", content=with_grad[i % count], headers=tensor_type),
        "png": lambda http, i: http.post("/score", files={"image": pngs[i % count]}, params={"regions": "false"}),
        "pickle": lambda http, i: http.post("/", content=pickles[i % count]),
    }


def idle_latency(url: str, ask: Ask, repeats: int = 30) -> float:
    """Median ms of a request when there is no other."""
    times = []
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        for index in range(repeats):
            begun = time.perf_counter()
            ask(http, index).raise_for_status()
            times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times[3:])


def measure(model: Path, sides: list[int], clients: int, seconds: float) -> dict[str, Any]:
    """All lines."""
    lines: list[dict[str, Any]] = []
    predictor = load_predictor(model)
    latency: dict[str, float] = {}
    for side in sides:
        asks = asking(side)
        rates = {}
        for route, grad in (("tensors", False), ("gradients", True)):
            by_size = bare_rates(predictor, side, seconds, grad=grad)
            rates[route] = max(by_size.values())
            for size, rate in by_size.items():
                line = f"bare, batch {size}" + (", with gradient" if grad else "")
                lines.append({"side": side, "line": line, "images_per_second": rate, "to_bare": rate / rates[route]})
        with ServerProcess(model) as server:
            for route in ("tensors", "gradients", "png"):
                found = load(server.url, asks[route], clients, seconds)
                bare = rates["gradients" if route == "gradients" else "tensors"]
                lines.append({"side": side, "line": f"finpercep, {route}", **found, "to_bare": found["images_per_second"] / bare})
            latency[f"{side}: finpercep, tensors"] = idle_latency(server.url, asks["tensors"])
        one = as_tensors(pictures(side)[:1])
        times = []
        for _ in range(30):
            begun = time.perf_counter()
            score_batch(predictor, one, grad=False)
            times.append(1000 * (time.perf_counter() - begun))
        latency[f"{side}: bare"] = statistics.median(times[3:])
        with pickle_server(model) as url:
            found = load(url, asks["pickle"], clients, seconds)
        lines.append({"side": side, "line": "pickle", **found, "to_bare": found["images_per_second"] / rates["tensors"]})
    return {"clients": clients, "seconds": seconds, "lines": lines, "idle_latency_ms": latency}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", type=Path, default=packaged_model_folder())
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each line")
    parser.add_argument("--sides", default="256,512")
    parser.add_argument("--serve-pickle", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_pickle:
        serve_pickle(options.model)
        return
    figures = measure(options.model, [int(side) for side in options.sides.split(",")], options.clients, options.seconds)
    columns = ("side", "line", "images_per_second", "to_bare", "p50_ms", "p99_ms")
    print_table(columns, [[line.get(column, "–") for column in columns] for line in figures["lines"]])
    print_table(("idle", "ms"), list(figures["idle_latency_ms"].items()))
    print(write_result("serving", figures))


if __name__ == "__main__":
    main()
