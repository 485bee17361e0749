"""What does serving cost in throughput, beside the bare model, the server the field writes, and LitServe?

    python -m benchmarks.serving [--model runs/ladder] [--clients 32] [--seconds 15] [--sides 256,512]

Every line is measured in this run, on this machine. One event loop sends all requests, of one image each, over as many
connections as there are clients; it shares the cores with the server, as clients do on one box. Ratios are to ``bare``: the model
alone in this process, with the allocator's settings that our server has (`finpercep.memory`), at the batch size that is fastest
for it, for the same kind of request.

Beside ours stand two servers of the same predictor (`benchmarks.serving_peers`): ``pickle``, the field's habit, and ``litserve``,
where it is installed.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.load import Load, closed_loop, request_bytes
from benchmarks.report import print_table, write_result
from benchmarks.serving_peers import PEERS, available, json_image, peer, score_batch
from data_synth.schema.pixels import encode_png
from finpercep.cli.server_process import ServerProcess
from finpercep.memory import keep_freed_memory
from finpercep.predictor import Predictor, load_predictor, packaged_model_folder
from finpercep.wire import TENSOR_MEDIA_TYPE, ScoreRequest, encode_request

BATCHES = (1, 2, 4, 8, 16, 32)
ROUTES = ("tensors", "gradients", "png")
"""Of our server."""


def pictures(side: int, count: int = 8) -> torch.Tensor:
    """N×3×H×W uint8, photo-like: smooth, with a little noise, so that PNG has something to do."""
    rng = np.random.default_rng(side)
    coarse = torch.from_numpy(rng.random((count, 3, 16, 16), dtype=np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    noisy = (smooth.numpy() * 235 + rng.normal(0, 4, smooth.shape) + 10).clip(0, 255).astype(np.uint8)
    return torch.from_numpy(noisy)


def requests(url: str, route: str, images: torch.Tensor) -> list[bytes]:
    """A route's requests, one for each image."""
    match route:
        case "tensors" | "gradients":
            headers = {"content-type": TENSOR_MEDIA_TYPE}
            bodies = [encode_request(ScoreRequest(one[None], grad=route == "gradients")) for one in images]
            return [request_bytes(f"{url}/score", content=body, headers=headers) for body in bodies]
        case "png":
            pngs = [encode_png(one.permute(1, 2, 0).contiguous().numpy()) for one in images]
            return [request_bytes(f"{url}/score?regions=false", files={"image": body}) for body in pngs]
        case "pickle":
            return [request_bytes(url, content=pickle.dumps(one.numpy())) for one in images]
        case "litserve":
            return [request_bytes(f"{url}/predict", json=json_image(one.numpy())) for one in images]
    raise ValueError(route)


def bare_rates(predictor: Predictor, images: torch.Tensor, seconds: float, *, grad: bool) -> dict[int, float]:
    """Batch size → images a second; uint8 in, reward (and gradient) out."""
    rates = {}
    for size in BATCHES:
        batch = images[torch.arange(size) % len(images)]
        score_batch(predictor, batch, grad=grad)
        times: list[float] = []
        until = time.perf_counter() + seconds / len(BATCHES)
        while time.perf_counter() < until or len(times) < 3:
            begun = time.perf_counter()
            score_batch(predictor, batch, grad=grad)
            times.append(time.perf_counter() - begun)
        rates[size] = size / statistics.median(times)
    return rates


def measure(model: Path, side: int, clients: int, seconds: float) -> list[dict[str, Any]]:
    """All lines of one size."""
    images, predictor = pictures(side), load_predictor(model)
    lines: list[dict[str, Any]] = []
    best = {}
    for grad in (False, True):
        rates = bare_rates(predictor, images, seconds, grad=grad)
        best[grad] = max(rates.values())
        suffix = ", with gradient" if grad else ""
        lines += [_line(side, f"bare, batch {size}{suffix}", rate, best[grad]) for size, rate in rates.items()]

    def loaded(url: str, route: str) -> dict[str, Any]:
        load = closed_loop(url, requests(url, route, images), clients, seconds)
        name = f"finpercep, {route}" if route in ROUTES else route
        return _line(side, name, load.rate, best[route == "gradients"], load)

    with ServerProcess(model) as server:
        lines += [loaded(server.url, route) for route in ROUTES]
    for name in PEERS:
        if name in available():
            with peer(name, model) as url:
                lines.append(loaded(url, name))
        else:
            lines.append({"side": side, "line": f"{name}: not installed here"})
    return lines


def _line(side: int, name: str, rate: float, bare: float, load: Load | None = None) -> dict[str, Any]:
    latency = {} if load is None else {"p50_ms": load.percentile_ms(0.5), "p99_ms": load.percentile_ms(0.99)}
    return {"side": side, "line": name, "images_per_second": rate, "to_bare": rate / bare, **latency}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=packaged_model_folder())
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each line")
    parser.add_argument("--sides", default="256,512")
    options = parser.parse_args()
    keep_freed_memory()  # what the server has, the bare model has too
    sides = [int(side) for side in options.sides.split(",")]
    lines = [line for side in sides for line in measure(options.model, side, options.clients, options.seconds)]
    columns = ("side", "line", "images_per_second", "to_bare", "p50_ms", "p99_ms")
    print_table(columns, [[line.get(column, "–") for column in columns] for line in lines])
    print(write_result("serving", {"clients": options.clients, "seconds": options.seconds, "lines": lines}))


if __name__ == "__main__":
    main()
