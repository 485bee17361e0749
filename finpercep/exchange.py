"""What a client says and hears, without any connection: bodies of requests, reading of answers, and which model may answer."""

from __future__ import annotations

import base64
import binascii
import io
import itertools
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from finpercep.errors import RewardChanged, RewardError, RewardRejected, WireError
from finpercep.heatmap import from_samples
from finpercep.regions import Region
from finpercep.reward import RewardWeights
from finpercep.wire import (
    ItemReply,
    ModelId,
    ScoreReply,
    ScoreRequest,
    ScoreResponse,
    Timing,
    decode_response,
    parse_reply,
)

MAX_UPLOAD = 32 * 1024 * 1024
"""Pictures go up in requests of about this many bytes at most."""

MAX_PICTURES = 64
"""And of this many pictures."""

MAX_PIXELS = 4 * 1024 * 1024
"""Tensors go up in requests of about this many pixels at most."""

ITEM_STATUSES = frozenset({413, 422})
"""Statuses by which a request of one image says what is wrong with that image."""

Failures = Literal["raise", "drop", "nan"]
"""What to do about an image that has no score: raise, leave it out, or give it NaN and its sentence; never a made-up number."""


@dataclass(frozen=True, eq=False)
class ImageScore:
    """What a served rung says of one picture: `finpercep.predictor.Assessment`, plus the model that answered.

    Attributes:
        score: in [0, 1], higher is better; NaN where there is an error.
        reward: the fused reward; higher is better.
        map: float32 (H, W) in [0, 1] in steps of 1/65535, 1 = degraded; None when not asked, or when the rung has none.
        max_degradation: mean of the top fraction of the map; None without a map.
        mean_degradation: mean of the map; None without a map.
        regions: connected degraded regions, worst first.
        model: which model answered; None where the request failed with its one picture.
        error: why there is no score; None where there is one.
    """

    score: float
    reward: float
    map: torch.Tensor | None
    max_degradation: float | None
    mean_degradation: float | None
    regions: tuple[Region, ...]
    model: ModelId | None
    error: str | None = None


class Pins:
    """Which model may answer: a rung is held to the digest it had first, and an unnamed one to the rung that answered first.

    Args:
        digests: rung → digest it must have from the beginning.
    """

    def __init__(self, digests: Mapping[str, str] | None) -> None:
        self._digests = dict(digests or {})
        self._default: str | None = None
        self._lock = threading.Lock()

    def check(self, url: str, asked: str | None, model: ModelId) -> None:
        """Raises `RewardChanged` when another model answers than before."""
        with self._lock:
            expected = asked or self._default
            if expected is not None and expected not in {model.rung, model.digest}:
                raise RewardChanged(f"{url}: {expected} was expected to answer, {model.rung} did; restart to go on with it")
            if asked is None:
                self._default = model.rung
        self.pin(url, model.rung, model.digest)

    def pin(self, url: str, rung: str, digest: str) -> None:
        """Hold a rung to its digest; raises `RewardChanged` when it had another before."""
        with self._lock:
            expected = self._digests.setdefault(rung, digest)
        if digest != expected:
            raise RewardChanged(
                f"{url}: the model behind {rung} has changed (digest {digest}, expected {expected}); "
                "rewards of two models cannot be compared: serve the old one again, or start a new run"
            )


@contextmanager
def reading(url: str) -> Iterator[None]:
    """A reply that breaks the contract is no reward."""
    try:
        yield
    except WireError as error:
        raise RewardError(f"{url} sent a reply that this client cannot read: {error}") from error


# -- tensors --------------------------------------------------------------------------------------------------------


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
    _check_count(url, len(request), len(response))
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


# -- pictures -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A file to score.

    Attributes:
        name: what errors call it.
        body: its bytes.
        lr: bytes of the low-resolution picture it was made from, where that is known.
    """

    name: str
    body: bytes
    lr: bytes | None = None

    def __len__(self) -> int:
        return len(self.body) + len(self.lr or b"")


def named_files(paths: Iterable[str | Path], lr: Iterable[str | Path] | None) -> Iterator[Picture]:
    """Files, read as they are asked for; ``lr``, where given, has one for each."""
    if lr is None:
        yield from (Picture(Path(path).name, Path(path).read_bytes()) for path in paths)
        return
    for path, low in zip(paths, lr, strict=True):
        yield Picture(Path(path).name, Path(path).read_bytes(), Path(low).read_bytes())


def query_of(rung: str | None, weights: RewardWeights, map: bool) -> dict[str, str]:
    """The options of `POST /score` for pictures."""
    query = {"w_score": weights.score, "w_max": weights.max, "w_mean": weights.mean, "top_fraction": weights.top_fraction}
    options = {name: repr(float(value)) for name, value in query.items()} | {"map": "png" if map else "none"}
    return options if rung is None else options | {"rung": rung}


def in_groups(pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
    """Pictures in order, in groups of about `MAX_UPLOAD` bytes and `MAX_PICTURES` at most, and at least one picture."""
    group: list[Picture] = []
    for picture in pictures:
        is_full = len(group) == MAX_PICTURES or sum(map(len, group)) + len(picture) > MAX_UPLOAD
        if group and (is_full or (picture.lr is None) != (group[0].lr is None)):  # all of a request have one, or none
            yield group
            group = []
        group.append(picture)
    if group:
        yield group


def files_of(group: Sequence[Picture]) -> list[tuple[str, tuple[str, bytes, str]]]:
    """A group as multipart fields."""
    kind = "application/octet-stream"
    lrs = [("lr", (one.name, one.lr, kind)) for one in group if one.lr is not None]
    return [("image", (one.name, one.body, kind)) for one in group] + lrs


def read_scores(
    url: str, body: bytes, group: Sequence[Picture], rung: str | None, pins: Pins, failures: Failures
) -> list[ImageScore]:
    """A reply about pictures, checked against what was asked.

    Raises:
        RewardError: an image has no score, and ``failures`` is "raise"; names it and says why.
    """
    with reading(url):
        reply = parse_reply(ScoreReply, body)
        _check_count(url, len(group), len(reply.items))
        pins.check(url, rung, reply.model)
        scores = [_image_score(one.name, item, reply.model) for one, item in zip(group, reply.items, strict=True)]
    return settled(scores, failures)


def failed_alone(error: RewardRejected, group: Sequence[Picture], failures: Failures) -> list[ImageScore]:
    """The scores of a group whose request was refused: a request of one picture fails with that picture; raises otherwise."""
    if failures == "raise" or len(group) > 1 or error.status not in ITEM_STATUSES:
        raise error
    nothing = ImageScore(math.nan, math.nan, None, None, None, (), None, error=f"{group[0].name}: {error}")
    return settled([nothing], failures)


def settled(scores: Sequence[ImageScore], failures: Failures) -> list[ImageScore]:
    """What ``failures`` says about those without a score."""
    if failures == "raise":
        for score in scores:
            if score.error is not None:
                raise RewardError(score.error)
    return [score for score in scores if failures != "drop" or score.error is None]


def _check_count(url: str, asked: int, answered: int) -> None:
    if asked != answered:
        raise RewardError(f"{url} was asked about {asked} images and answered about {answered}")


def _image_score(name: str, item: ItemReply, model: ModelId) -> ImageScore:
    if item.error is not None or item.score is None or item.reward is None:
        return ImageScore(math.nan, math.nan, None, None, None, (), model, error=f"{name}: {item.error}")
    return ImageScore(
        score=item.score,
        reward=item.reward,
        map=None if item.map is None else _decode_map(item.map),
        max_degradation=item.max_degradation,
        mean_degradation=item.mean_degradation,
        regions=tuple(Region(**region.model_dump()) for region in item.regions or ()),
        model=model,
    )


def _decode_map(text: str) -> torch.Tensor:
    """A map out of base64 of a 16-bit grey PNG."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as picture:
            samples = np.array(picture, dtype=np.uint16) if picture.mode == "I;16" else None
    except (binascii.Error, OSError, SyntaxError, ValueError) as error:
        raise WireError("score reply", "map", "base64 of a PNG", str(error)) from error
    if samples is None:
        raise WireError("score reply", "map", "16-bit grey samples", "another kind of picture")
    return torch.from_numpy(from_samples(samples))
