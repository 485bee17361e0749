"""The servers that `benchmarks.serving` measures beside ours: the same predictor behind pickle over HTTP, and behind LitServe.

python -m benchmarks.serving_peers pickle|litserve --model DIR --port PORT
"""

from __future__ import annotations

import argparse
import base64
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from finpercep.predictor import Predictor, load_predictor
from finpercep.reward import RewardWeights, fuse

LITSERVE_BATCH, LITSERVE_WAIT = 4, 0.005
"""Images of a batch, near where the bare model is fastest on CPUs, and seconds it waits for them."""

START_SECONDS = 180


def score_batch(predictor: Predictor, images: torch.Tensor, *, grad: bool = False) -> list[float]:
    """Rewards of N×3×H×W uint8 images (and their gradients, thrown away)."""
    pixels = (images.float() / 255).requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        batch = predictor.score(pixels)
        reward = fuse(batch.score, batch.map, RewardWeights()).reward
        if grad:
            torch.autograd.grad(reward.sum(), pixels)
    rewards: list[float] = reward.detach().tolist()
    return rewards


def serve_pickle(model: Path, port: int) -> None:
    """The field's habit: a threading HTTP server that unpickles one uint8 array a request and scores it under a lock."""
    predictor, lock = load_predictor(model), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(b"ready")

        def do_POST(self) -> None:
            image = pickle.loads(self.rfile.read(int(self.headers["content-length"])))  # code from anyone
            with lock:
                rewards = score_batch(predictor, torch.from_numpy(image)[None])
            self._answer(pickle.dumps(rewards))

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # its 5 would refuse half of the benchmark's clients

    Server(("127.0.0.1", port), Handler).serve_forever()


def serve_litserve(model: Path, port: int) -> None:
    """LitServe with its batching; an image comes as base64 in JSON, because its requests are JSON."""
    from litserve import LitServer

    from benchmarks.serving_litserve import RewardAPI

    api = RewardAPI(model, max_batch_size=LITSERVE_BATCH, batch_timeout=LITSERVE_WAIT)
    server = LitServer(api, accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


def json_image(image: np.ndarray[Any, np.dtype[np.uint8]]) -> dict[str, Any]:
    """A 3×H×W image as LitServe is sent it."""
    return {"pixels": base64.b64encode(image.tobytes()).decode("ascii"), "shape": image.shape}


PEERS = {"pickle": serve_pickle, "litserve": serve_litserve}


def available() -> list[str]:
    """Peers that are installed here."""
    return [name for name in PEERS if name != "litserve" or find_spec("litserve") is not None]


@contextmanager
def peer(name: str, model: Path) -> Iterator[str]:
    """A peer in a process group of its own, once it answers: its address. The whole group is ended afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.serving_peers", name, "--model", str(model), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(name, process, f"{url}/health")
        yield url
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_ready(name: str, process: subprocess.Popen[bytes], url: str) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with suppress(httpx.HTTPError):
            if httpx.get(url, trust_env=False, timeout=2).is_success:
                return
        time.sleep(0.2)
    raise RuntimeError(f"{name} did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    PEERS[options.peer](options.model, options.port)


if __name__ == "__main__":
    main()
