"""A wire request → its response: batches through the model, gradients, errors by image. No HTTP, no threads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from finpercep.local_reward import as_pixels, score_batch, side_fault
from finpercep.wire import ScoreRequest, ScoreResponse, Timing
from rm_server.pictures import model_failed, not_finite
from rm_server.refusal import UNPROCESSABLE, Refusal
from rm_server.registry import model_id

if TYPE_CHECKING:
    from finpercep.predictor import Predictor

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ImageResult:
    """One image's results, on the CPU.

    Attributes:
        numbers: float32 (4,): score, reward, max and mean degradation.
        map: float32 (H, W), or None.
        grad: float32 (3, H, W), or None.
    """

    numbers: torch.Tensor
    map: torch.Tensor | None
    grad: torch.Tensor | None

    def is_finite(self) -> bool:
        """Whether every value is a number."""
        parts = (self.numbers, self.map, self.grad)
        return all(bool(part.isfinite().all()) for part in parts if part is not None)


Outcome = ImageResult | Refusal


def score_images(predictor: Predictor, request: ScoreRequest, max_pixels: int) -> list[Outcome]:
    """One outcome an image, in the request's order. An N×3×H×W tensor runs as one batch."""
    if isinstance(request.images, torch.Tensor):
        return _score(predictor, request.images, request, max_pixels)
    return [_score(predictor, image[None], request, max_pixels)[0] for image in request.images]


def _score(predictor: Predictor, images: torch.Tensor, request: ScoreRequest, max_pixels: int) -> list[Outcome]:
    height, width = images.shape[-2:]
    fault = side_fault(height, width, predictor.min_side)
    if fault is None and height * width > max_pixels:
        fault = f"image must have at most {max_pixels} pixels, got {width}x{height}"
    if fault is not None:
        return [Refusal(UNPROCESSABLE, fault)] * len(images)
    try:
        results = _run(predictor, images, request)
    except Exception:  # another size of the same request may well succeed
        log.exception("%s failed on a batch of %s", predictor.rung, tuple(images.shape))
        return [model_failed(predictor)] * len(images)
    return [result if result.is_finite() else not_finite(predictor) for result in results]


def _run(predictor: Predictor, images: torch.Tensor, request: ScoreRequest) -> list[ImageResult]:
    """One forward, and one backward if gradients are wanted: images are independent, so ∂ΣR/∂image is ∂R/∂image."""
    pixels = as_pixels(images, predictor.device).detach().requires_grad_(request.grad)
    with torch.set_grad_enabled(request.grad):
        rewards, maps = score_batch(predictor, pixels, request.weights)
        grads = torch.autograd.grad(rewards.reward.sum(), pixels)[0].cpu() if request.grad else None
    columns = (rewards.score, rewards.reward, rewards.max_degradation, rewards.mean_degradation)
    numbers = torch.stack([column.detach().float() for column in columns], dim=1).cpu()
    kept = maps.detach().float().cpu() if request.map and maps is not None else None
    return [
        ImageResult(row, None if kept is None else kept[i], None if grads is None else grads[i]) for i, row in enumerate(numbers)
    ]


def respond(predictor: Predictor, request: ScoreRequest, outcomes: Sequence[Outcome], timing: Timing) -> ScoreResponse:
    """The wire's response: NaN and a sentence for an image that failed."""
    failed = torch.full((4,), float("nan"))
    results = [None if isinstance(outcome, Refusal) else outcome for outcome in outcomes]
    numbers = torch.stack([failed if result is None else result.numbers for result in results])
    score, reward, worst, mean = (column.contiguous() for column in numbers.unbind(dim=1))
    stacked = isinstance(request.images, torch.Tensor)
    return ScoreResponse(
        score=score,
        reward=reward,
        max_degradation=worst,
        mean_degradation=mean,
        model=model_id(predictor),
        timing=timing,
        maps=_collect([None if result is None else result.map for result in results], stacked),
        grads=_collect([None if result is None else result.grad for result in results], stacked),
        errors={index: str(outcome) for index, outcome in enumerate(outcomes) if isinstance(outcome, Refusal)},
    )


def _collect(parts: Sequence[torch.Tensor | None], stacked: bool) -> torch.Tensor | tuple[torch.Tensor | None, ...] | None:
    """One tensor when the request was one and all images succeeded, one an image otherwise; None when there is nothing."""
    found = [part for part in parts if part is not None]
    if not found:
        return None
    return torch.stack(found) if stacked and len(found) == len(parts) else tuple(parts)
