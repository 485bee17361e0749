"""The reward model as a LitServe API. A module of its own: LitServe's workers import it, and only where LitServe is installed."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import litserve
import torch

from benchmarks.serving_peers import score_batch
from finpercep.predictor import load_predictor


class RewardAPI(litserve.LitAPI):
    """One reward an image; LitServe makes the batches."""

    def __init__(self, model: Path, **options: Any) -> None:
        super().__init__(**options)
        self.model = model

    def setup(self, device: str) -> None:
        self.predictor = load_predictor(self.model, device=device)

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201  # an annotation would be a schema
        pixels = bytearray(base64.b64decode(request["pixels"]))
        return torch.frombuffer(pixels, dtype=torch.uint8).reshape(request["shape"])

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(inputs)

    def predict(self, images: torch.Tensor) -> list[float]:
        return score_batch(self.predictor, images)

    def unbatch(self, output: list[float]) -> list[float]:
        return output

    def encode_response(self, output: float) -> dict[str, float]:
        return {"reward": output}
