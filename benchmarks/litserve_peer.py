"""LitServe serving the same predictor, with its own batching: a peer of `benchmarks.serving`, which starts it as a process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import litserve
import torch

from benchmarks.serving import score_batch
from finpercep.predictor import load_predictor


class Api(litserve.LitAPI):  # type: ignore[misc]
    """uint8 H×W×3 in hexadecimal in, reward out. At module level: LitServe sends it to a worker process."""

    def __init__(self, model: Path) -> None:
        super().__init__(max_batch_size=16, batch_timeout=0.005)
        self.model = model

    def setup(self, _: str) -> None:
        self.predictor = load_predictor(self.model)

    def decode_request(self, request: Any) -> torch.Tensor:
        return torch.frombuffer(bytearray.fromhex(request["image"]), dtype=torch.uint8).reshape(request["shape"])

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(inputs).permute(0, 3, 1, 2)

    def predict(self, images: torch.Tensor) -> list[float]:
        return score_batch(self.predictor, images, grad=False)

    def unbatch(self, output: list[float]) -> list[float]:
        return output

    def encode_response(self, output: float) -> dict[str, float]:
        return {"reward": output}


if __name__ == "__main__":
    server = litserve.LitServer(Api(Path(sys.argv[1])), accelerator="cpu", timeout=300)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="error")
