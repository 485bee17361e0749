"""A wire request → works for the engine, and its results → the wire's response. No HTTP, no threads."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from finpercep.local_reward import side_fault
from finpercep.wire import ScoreRequest, ScoreResponse, Timing
from rm_server.engine import ImageResult, ImageWork
from rm_server.pictures import lr_fault
from rm_server.problems import Problem
from rm_server.registry import ServedRung


def works(request: ScoreRequest, rung: ServedRung, max_pixels: int, max_grad_pixels: int) -> list[ImageWork | Problem]:
    """One for each image, in the request's order; an image may have so many pixels, and so many where its gradient is wanted."""
    lrs: Sequence[torch.Tensor | None] = [None] * len(request) if request.lr is None else list(request.lr)
    most = min(max_pixels, max_grad_pixels) if request.grad else max_pixels
    return [_work(image, lr, request, rung, most) for image, lr in zip(request.images, lrs, strict=True)]


def _work(
    image: torch.Tensor, lr: torch.Tensor | None, request: ScoreRequest, rung: ServedRung, max_pixels: int
) -> ImageWork | Problem:
    height, width = image.shape[-2:]
    if fault := side_fault(height, width, rung.min_side):
        return Problem("unprocessable", fault, field="images")
    if height * width > max_pixels:
        with_grad = " for its gradient" if request.grad else ""
        sentence = f"image must have at most {max_pixels} pixels{with_grad}, got {width}x{height}"
        return Problem("too-large", sentence, field="images", expected=f"at most {max_pixels} pixels", received=height * width)
    if lr is not None and (fault := lr_fault(lr.shape, image.shape, rung)):
        return Problem("unprocessable", fault, field="lr")
    return ImageWork(rung, image, request.weights, grad=request.grad, map=request.map, lr=lr)


def respond(rung: ServedRung, request: ScoreRequest, outcomes: Sequence[ImageResult | Problem], timing: Timing) -> ScoreResponse:
    """The wire's response: NaN and a sentence for an image that failed."""
    failed = torch.full((4,), float("nan"))
    results = [None if isinstance(outcome, Problem) else outcome for outcome in outcomes]
    numbers = torch.stack([failed if result is None else result.numbers for result in results])
    score, reward, worst, mean = (column.contiguous() for column in numbers.unbind(dim=1))
    stacked = isinstance(request.images, torch.Tensor)
    return ScoreResponse(
        score=score,
        reward=reward,
        max_degradation=worst,
        mean_degradation=mean,
        model=rung.model_id,
        timing=timing,
        maps=_collect([None if result is None else result.map for result in results], stacked),
        grads=_collect([None if result is None else result.grad for result in results], stacked),
        errors={index: str(outcome) for index, outcome in enumerate(outcomes) if isinstance(outcome, Problem)},
    )


def _collect(parts: Sequence[torch.Tensor | None], stacked: bool) -> torch.Tensor | tuple[torch.Tensor | None, ...] | None:
    """One tensor when the request was one and all images succeeded, one an image otherwise; None when there is nothing."""
    found = [part for part in parts if part is not None]
    if not found:
        return None
    return torch.stack(found) if stacked and len(found) == len(parts) else tuple(parts)
