"""Files of pictures → requests in groups, and their replies → scores."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from PIL import Image

from data_synth.schema.pixels import RGB8, encode_png, stored_size
from finpercep.errors import ImageError, Refusal, RewardError, RewardRejected, WireError
from finpercep.exchange.answers import ITEM_STATUSES, Pins, check_count, reading
from finpercep.heatmap import from_samples
from finpercep.regions import Region
from finpercep.reward import RewardWeights
from finpercep.wire import ItemReply, ModelId, ScoreReply, parse_reply

T = TypeVar("T")

MAX_UPLOAD = 32 * 1024 * 1024
"""Pictures go up in requests of about this many bytes at most."""

MAX_PIXELS = 16_000_000
"""And of this many pixels, LR pictures' with them: a server bounds those of a request, and few bytes may be a large picture."""

MAX_PICTURES = 64
"""And of this many pictures."""

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
    """Files, read as they are asked for; ``lr``, where given, has one for each. Raises `RewardRejected` where it has not."""
    for path, low in _paired(paths, lr):
        yield Picture(Path(path).name, Path(path).read_bytes(), None if low is None else Path(low).read_bytes())


def named_images(images: Iterable[RGB8], lr: Iterable[RGB8] | None) -> Iterator[Picture]:
    """Pixels as PNG, which loses nothing, encoded as they are asked for; otherwise as `named_files`."""
    for index, (pixels, low) in enumerate(_paired(images, lr)):
        yield Picture(f"image-{index}.png", encode_png(pixels), None if low is None else encode_png(low))


def _paired(images: Iterable[T], lr: Iterable[T] | None) -> Iterator[tuple[T, T | None]]:
    if lr is None:
        yield from ((image, None) for image in images)
        return
    lows = iter(lr)
    count = 0
    for count, image in enumerate(images, start=1):
        low = next(lows, None)
        if low is None:
            raise RewardRejected(f"there must be one LR picture for each image, got {count - 1} for more images")
        yield image, low
    if next(lows, None) is not None:
        raise RewardRejected(f"there must be one LR picture for each image, got more than the {count} images")


def query_of(rung: str | None, weights: RewardWeights, map: bool) -> dict[str, str]:
    """The options of `POST /score` for pictures."""
    query = {"w_score": weights.score, "w_max": weights.max, "w_mean": weights.mean, "top_fraction": weights.top_fraction}
    options = {name: repr(float(value)) for name, value in query.items()} | {"map": "png" if map else "none"}
    return options if rung is None else options | {"rung": rung}


def in_groups(pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
    """Pictures in order, in groups of `MAX_UPLOAD` bytes, `MAX_PIXELS` and `MAX_PICTURES` at most, and at least one picture."""
    group: list[Picture] = []
    size = pixels = 0
    for picture in pictures:
        more = _pixels(picture)
        is_full = len(group) == MAX_PICTURES or size + len(picture) > MAX_UPLOAD or pixels + more > MAX_PIXELS
        if group and is_full:
            yield group
            group, size, pixels = [], 0, 0
        group.append(picture)
        size += len(picture)
        pixels += more
    if group:
        yield group


def _pixels(picture: Picture) -> int:
    """From the headers of picture and LR picture; one that cannot be read counts as none, and the server says why it cannot."""
    pixels = 0
    for body in (picture.body, picture.lr):
        if body is not None:
            with suppress(ImageError):
                pixels += math.prod(stored_size(body))
    return pixels


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
        check_count(url, len(group), len(reply.items))
        pins.check(url, rung, reply.model)
        scores = [_image_score(one.name, item, reply.model) for one, item in zip(group, reply.items, strict=True)]
    return scores if failures != "raise" else settled(scores, failures)


def failed_alone(error: Refusal, group: Sequence[Picture], failures: Failures) -> list[ImageScore]:
    """The scores of a group whose request failed: a request of one picture fails with that picture; raises otherwise."""
    if failures == "raise" or len(group) > 1 or error.status not in ITEM_STATUSES:
        raise error
    return [ImageScore(math.nan, math.nan, None, None, None, (), None, error=f"{group[0].name}: {error}")]


def settled(scores: Sequence[ImageScore], failures: Failures) -> list[ImageScore]:
    """What ``failures`` says about those without a score."""
    if failures == "raise":
        for score in scores:
            if score.error is not None:
                raise RewardError(score.error)
    return [score for score in scores if failures != "drop" or score.error is None]


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
