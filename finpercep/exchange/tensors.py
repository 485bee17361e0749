"""Tensors → requests in chunks, and their replies joined again."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import torch

from finpercep.errors import Refusal, RewardRejected, ServerFailed, WireError
from finpercep.exchange.answers import ITEM_STATUSES, Pins, check_count, reading
from finpercep.reward import RewardWeights
from finpercep.wire import ScoreRequest, ScoreResponse, Timing, decode_response
from finpercep.wire.codec import NUMBERS

Stack = torch.Tensor | tuple[torch.Tensor | None, ...] | None

MAX_PIXELS = 4 * 1024 * 1024
"""Tensors go up in requests of about this many pixels at most."""

MAX_IMAGES = 256
"""And of so many images: a server's limit, unless it is told otherwise."""


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
    """The request in parts of at most `MAX_PIXELS` pixels and `MAX_IMAGES` images, and at least one image, each."""
    sizes = [image.shape[-2] * image.shape[-1] for image in request.images]
    bounds, inside = [0], 0
    for index, size in enumerate(sizes):
        if index > bounds[-1] and (inside + size > MAX_PIXELS or index - bounds[-1] == MAX_IMAGES):
            bounds.append(index)
            inside = 0
        inside += size
    bounds.append(len(sizes))
    if len(bounds) == 2:
        return [request]
    return [part_of(request, range(first, last)) for first, last in itertools.pairwise(bounds)]


def part_of(request: ScoreRequest, indices: Sequence[int]) -> ScoreRequest:
    """The request about some of its images alone; of a range nothing is copied."""

    def some(stack: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor | tuple[torch.Tensor, ...]:
        if isinstance(indices, range):
            return stack[indices.start : indices.stop]
        return stack[list(indices)] if isinstance(stack, torch.Tensor) else tuple(stack[index] for index in indices)

    lr = None if request.lr is None else some(request.lr)
    return dataclasses.replace(request, images=some(request.images), lr=lr)


def read_response(url: str, body: bytes, request: ScoreRequest, pins: Pins) -> ScoreResponse:
    """A reply, checked against what was asked."""
    with reading(url):
        response = decode_response(body)
    check_count(url, len(request), len(response))
    pins.check(url, request.rung, response.model)
    return response


Part = ScoreResponse | Refusal
"""What came of a chunk: a chunk of one image that failed is refused as a request."""


def lone_failure(error: Refusal, chunk: ScoreRequest) -> Refusal:
    """The error itself, where it is about the one image of a chunk; raises it otherwise."""
    if len(chunk) > 1 or error.status not in ITEM_STATUSES:
        raise error
    return error


def joined(request: ScoreRequest, parts: Sequence[Part]) -> ScoreResponse:
    """The response to ``request`` from what came of its chunks; raises the refusal when there is nothing else."""
    answered = [part for part in parts if isinstance(part, ScoreResponse)]
    if not answered:
        assert isinstance(parts[0], RewardRejected | ServerFailed)
        raise parts[0]
    has_failed = any(not isinstance(part, ScoreResponse) or part.errors for part in parts)
    stacked = isinstance(request.images, torch.Tensor) and not has_failed
    if len(parts) == 1 and stacked == _is_stacked(answered[0]):
        return answered[0]
    numbers: dict[str, torch.Tensor] = {
        name: torch.cat(
            [getattr(part, name) if isinstance(part, ScoreResponse) else torch.full((1,), math.nan) for part in parts]
        )
        for name in NUMBERS
    }
    errors: dict[int, str] = {}
    start = 0
    for part in parts:
        faults = part.errors if isinstance(part, ScoreResponse) else {0: str(part)}
        errors |= {start + index: text for index, text in faults.items()}
        start += _length(part)
    return ScoreResponse(
        **numbers,
        model=answered[0].model,
        timing=Timing(**{name: sum(getattr(part.timing, name) for part in answered) for name in Timing.model_fields}),
        maps=_joined_stacks(parts, "maps", stacked),
        grads=_joined_stacks(parts, "grads", stacked),
        errors=errors,
    )


def singles(part: Part) -> list[Part]:
    """A part as parts of one image each; of their timing nothing is known."""
    if not isinstance(part, ScoreResponse):
        return [part]
    timing = Timing(queue_ms=0, batch_ms=0, compute_ms=0)
    return [
        ScoreResponse(
            **{name: getattr(part, name)[index : index + 1].clone() for name in NUMBERS},
            model=part.model,
            timing=timing,
            maps=_single(part.maps, index),
            grads=_single(part.grads, index),
            errors={0: part.errors[index]} if index in part.errors else {},
        )
        for index in range(len(part))
    ]


def _single(stack: Stack, index: int) -> tuple[torch.Tensor] | None:
    """An image's own, which keeps no memory of the others'."""
    one = None if stack is None else stack[index]
    return None if one is None else (one.clone(),)


def _is_stacked(response: ScoreResponse) -> bool:
    return not any(isinstance(stack, tuple) for stack in (response.maps, response.grads))


def _length(part: Part) -> int:
    return len(part) if isinstance(part, ScoreResponse) else 1


def _joined_stacks(parts: Sequence[Part], name: str, stacked: bool) -> Stack:
    alone: list[torch.Tensor | None] = []
    for part in parts:
        stack: Stack = getattr(part, name, None)
        alone += [None] * _length(part) if stack is None else list(stack)
    found = [single for single in alone if single is not None]
    if not found:
        return None
    can_be_stacked = len(found) == len(alone) and len({one.shape for one in found}) == 1
    return torch.stack(found) if stacked and can_be_stacked else tuple(alone)
