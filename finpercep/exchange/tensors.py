"""Tensors → requests in chunks, and their replies joined again."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from finpercep.errors import RewardRejected, WireError
from finpercep.exchange.answers import ITEM_STATUSES, Pins, check_count, reading
from finpercep.reward import RewardWeights
from finpercep.wire import ScoreRequest, ScoreResponse, Timing, decode_response

MAX_PIXELS = 4 * 1024 * 1024
"""Tensors go up in requests of about this many pixels at most."""


def checked_request(
    images: torch.Tensor | Sequence[torch.Tensor],
    rung: str | None,
    weights: RewardWeights | None,
    grad: bool,
    map: bool,
    lr: torch.Tensor | Sequence[torch.Tensor] | None,
) -> ScoreRequest:
    """Raises `RewardRejected` where the images are not what a reward can be had of."""
    packed = images if isinstance(images, torch.Tensor) else tuple(images)
    low = lr if lr is None or isinstance(lr, torch.Tensor) else tuple(lr)
    try:
        return ScoreRequest(packed, rung, weights or RewardWeights(), grad, map, low)
    except WireError as error:
        raise RewardRejected(str(error)) from error


def in_chunks(request: ScoreRequest) -> list[ScoreRequest]:
    """The request in parts of at most `MAX_PIXELS` pixels, and at least one image, each."""
    sizes = [image.shape[-2] * image.shape[-1] for image in request.images]
    bounds, inside = [0], 0
    for index, size in enumerate(sizes):
        if index > bounds[-1] and inside + size > MAX_PIXELS:
            bounds.append(index)
            inside = 0
        inside += size
    bounds.append(len(sizes))
    if len(bounds) == 2:
        return [request]
    return [
        ScoreRequest(
            request.images[first:last],
            request.rung,
            request.weights,
            request.grad,
            request.map,
            None if request.lr is None else request.lr[first:last],
        )
        for first, last in itertools.pairwise(bounds)
    ]


def read_response(url: str, body: bytes, request: ScoreRequest, pins: Pins) -> ScoreResponse:
    """A reply, checked against what was asked."""
    with reading(url):
        response = decode_response(body)
    check_count(url, len(request), len(response))
    pins.check(url, request.rung, response.model)
    return response


Part = ScoreResponse | RewardRejected
"""What came of a chunk: a chunk of one image that failed is refused as a request."""


def lone_failure(error: RewardRejected, chunk: ScoreRequest) -> RewardRejected:
    """The error itself, where it is about the one image of a chunk; raises it otherwise."""
    if len(chunk) > 1 or error.status not in ITEM_STATUSES:
        raise error
    return error


def joined(request: ScoreRequest, parts: Sequence[Part]) -> ScoreResponse:
    """The response to ``request`` from what came of its chunks; raises the refusal when there is nothing else."""
    answered = [part for part in parts if isinstance(part, ScoreResponse)]
    if not answered:
        assert isinstance(parts[0], RewardRejected)
        raise parts[0]
    if len(parts) == 1:
        return answered[0]
    numbers: dict[str, torch.Tensor] = {
        name: torch.cat(
            [getattr(part, name) if isinstance(part, ScoreResponse) else torch.full((1,), math.nan) for part in parts]
        )
        for name in ("score", "reward", "max_degradation", "mean_degradation")
    }
    errors: dict[int, str] = {}
    start = 0
    for part in parts:
        faults = part.errors if isinstance(part, ScoreResponse) else {0: str(part)}
        errors |= {start + index: text for index, text in faults.items()}
        start += _length(part)
    stacked = isinstance(request.images, torch.Tensor) and not errors
    return ScoreResponse(
        **numbers,
        model=answered[0].model,
        timing=Timing(**{name: sum(getattr(part.timing, name) for part in answered) for name in Timing.model_fields}),
        maps=_joined_stacks(parts, "maps", stacked),
        grads=_joined_stacks(parts, "grads", stacked),
        errors=errors,
    )


def _length(part: Part) -> int:
    return len(part) if isinstance(part, ScoreResponse) else 1


Stack = torch.Tensor | tuple[torch.Tensor | None, ...] | None


def _joined_stacks(parts: Sequence[Part], name: str, stacked: bool) -> Stack:
    singles: list[torch.Tensor | None] = []
    for part in parts:
        stack: Stack = getattr(part, name, None)
        singles += [None] * _length(part) if stack is None else list(stack)
    found = [single for single in singles if single is not None]
    if not found:
        return None
    return torch.stack(found) if stacked and len(found) == len(singles) else tuple(singles)
