"""One picture that a rung must score as it should before it serves, and as it did for as long as it serves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from finpercep.predictor import Predictor

SIDE = 64
TOLERANCE = 1e-3
"""Largest difference in score or mean degradation between the trained model and what serves in float32."""

BF16_TOLERANCE = 0.05
"""The same where convolutions run in bfloat16."""


def canary_image() -> torch.Tensor:
    """(3, 64, 64) uint8: slopes of colour, and a chequered patch."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    image = torch.stack([rows * 4, columns * 4, (rows + columns) * 2]).clamp(max=255)
    patch = 255 * ((rows // 2 + columns // 2) % 2)
    image[:, 20:40, 20:40] = patch[20:40, 20:40]
    return image.to(torch.uint8)


@torch.no_grad()
def expected_numbers(predictor: Predictor) -> tuple[float, float]:
    """Score and mean degradation of the canary by the trained model itself, without what makes a predictor quick."""
    output = predictor.model(canary_image()[None].float().to(predictor.device) / 255)
    return float(output.score), 0.0 if output.map is None else float(output.map.mean())


def fault(expected: tuple[float, float], numbers: torch.Tensor, tolerance: float) -> str | None:
    """What is wrong with the canary's result (score, reward, max and mean degradation), or None."""
    for name, wanted, got in zip(("score", "mean degradation"), expected, (float(numbers[0]), float(numbers[3])), strict=True):
        if not (math.isfinite(wanted) and abs(got - wanted) <= tolerance):
            return f"the canary's {name} is {got:.5f}, expected {wanted:.5f}"
    return None
