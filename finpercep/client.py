"""The reward over HTTP: scores of pictures for people, and a differentiable `RewardFn` for fine-tuning loops.

Imports neither the server nor anything a model needs. A reward that cannot be had is an error, never a number; a server whose
model changes under a client is an error too, since rewards of two models cannot be compared.
"""

from __future__ import annotations

import base64
import binascii
import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import numpy as np
import torch
from PIL import Image

from data_synth.schema.pixels import RGB8, encode_png
from finpercep.connection import DEFAULT_TIMEOUT, Connection
from finpercep.errors import RewardChanged, RewardError, RewardRejected, WireError
from finpercep.heatmap import from_samples
from finpercep.regions import Region
from finpercep.remote_reward import RemoteReward
from finpercep.reward import RewardFn, RewardWeights
from finpercep.wire import (
    TENSOR_MEDIA_TYPE,
    ItemReply,
    ModelId,
    ModelReply,
    ScoreReply,
    ScoreRequest,
    ScoreResponse,
    decode_response,
    encode_request,
    parse_reply,
)

__all__ = ["ImageScore", "RemoteReward", "RewardClient"]

MAX_UPLOAD = 32 * 1024 * 1024
"""Pictures go up in requests of about this many bytes at most."""


@dataclass(frozen=True, eq=False)
class ImageScore:
    """What a served rung says of one picture: `finpercep.predictor.Assessment`, plus the model that answered.

    Attributes:
        score: in [0, 1], higher is better.
        reward: the fused reward; higher is better.
        map: float32 (H, W) in [0, 1] in steps of 1/65535, 1 = degraded; None when not asked, or when the rung has none.
        max_degradation: mean of the top fraction of the map; None without a map.
        mean_degradation: mean of the map; None without a map.
        regions: connected degraded regions, worst first.
        model: which model answered.
    """

    score: float
    reward: float
    map: torch.Tensor | None
    max_degradation: float | None
    mean_degradation: float | None
    regions: tuple[Region, ...]
    model: ModelId


class RewardClient:
    """A connection to one reward server; implements `RewardSource`. Use it as a context manager, or call `close`.

    Args:
        url: the server's address, ``http://127.0.0.1:8000``.
        timeout: seconds to wait for one answer.
        digests: rung → digest it must have; a rung that is not named is held to the digest it has first.
        transport: what carries the requests, for tests; the network when None.
        sleep: waits between retries.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        digests: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._connection = Connection(url, timeout, transport, sleep)
        self._digests = dict(digests or {})
        self._default: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The server's address."""
        return self._connection.url

    def close(self) -> None:
        """Give the connections back."""
        self._connection.close()

    def model(self) -> ModelReply:
        """What the server serves.

        Raises:
            RewardChanged: a rung has another digest than before.
        """
        answer = self._connection.send("GET", "/model")
        with self._reading():
            reply = parse_reply(ModelReply, answer.content)
        for rung in reply.rungs:
            self._pin(rung.name, rung.digest)
        return reply

    def rungs(self) -> Sequence[str]:
        """Names of the rungs, RM_0 first."""
        return tuple(rung.name for rung in self.model().rungs)

    def reward_fn(self, rung: str, weights: RewardWeights) -> RewardFn:
        """The differentiable reward of one rung.

        Raises:
            RewardRejected: the server has no such rung.
        """
        if rung not in (served := self.rungs()):
            raise RewardRejected(f"{self.url}: unknown rung {rung!r}; there are {', '.join(served)}")
        return RemoteReward(self, rung, weights)

    def score_tensor(
        self,
        images: torch.Tensor | Sequence[torch.Tensor],
        rung: str | None = None,
        weights: RewardWeights | None = None,
        grad: bool = False,
        map: bool = False,
    ) -> ScoreResponse:
        """Score tensors losslessly; numbers, maps and ∂R/∂image come back as tensors on the CPU.

        Args:
            images: N×3×H×W, scored as one batch, or 3×H×W each; RGB, uint8 or floats in [0, 1].
            rung: None for the server's default.
            weights: of the reward.
            grad: whether gradients are wanted.
            map: whether maps are wanted.

        Returns:
            The response; an image that failed is in its ``errors`` and has NaN for every number.
        """
        packed = images if isinstance(images, torch.Tensor) else tuple(images)
        try:
            body = encode_request(ScoreRequest(packed, rung, weights or RewardWeights(), grad, map))
        except WireError as error:
            raise RewardRejected(str(error)) from error
        answer = self._connection.send("POST", "/score", content=body, headers={"content-type": TENSOR_MEDIA_TYPE})
        with self._reading():
            response = decode_response(answer.content)
        self._check_count(len(packed), len(response))
        self._check_model(rung, response.model)
        return response

    def score_files(
        self, paths: Iterable[str | Path], *, rung: str | None = None, weights: RewardWeights | None = None, map: bool = False
    ) -> list[ImageScore]:
        """Score picture files as they are, in the order given.

        Args:
            paths: files in any format the server reads.
            rung: None for the server's default.
            weights: of the reward.
            map: whether maps are wanted.

        Raises:
            RewardError: an image has no score; the message names it and says why.
        """
        pictures = ((Path(path).name, Path(path).read_bytes()) for path in paths)
        return self._score_pictures(pictures, rung, weights or RewardWeights(), map)

    def score_images(
        self, images: Iterable[RGB8], *, rung: str | None = None, weights: RewardWeights | None = None, map: bool = False
    ) -> list[ImageScore]:
        """Score uint8 H×W×3 RGB pictures (sent as PNG, which loses nothing); otherwise as `score_files`."""
        pictures = ((f"image-{index}.png", encode_png(pixels)) for index, pixels in enumerate(images))
        return self._score_pictures(pictures, rung, weights or RewardWeights(), map)

    def _score_pictures(
        self, pictures: Iterable[tuple[str, bytes]], rung: str | None, weights: RewardWeights, map: bool
    ) -> list[ImageScore]:
        query = _query(rung, weights, map)
        scores: list[ImageScore] = []
        for group in _groups(pictures, MAX_UPLOAD):
            files = [("image", (name, body, "application/octet-stream")) for name, body in group]
            answer = self._connection.send("POST", "/score", params=query, files=files)
            with self._reading():
                reply = parse_reply(ScoreReply, answer.content)
                self._check_count(len(group), len(reply.items))
                self._check_model(rung, reply.model)
                scores += [_image_score(name, item, reply.model) for (name, _), item in zip(group, reply.items, strict=True)]
        return scores

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """A reply that breaks the contract is no reward."""
        try:
            yield
        except WireError as error:
            raise RewardError(f"{self.url} sent a reply that this client cannot read: {error}") from error

    def _check_count(self, asked: int, answered: int) -> None:
        if asked != answered:
            raise RewardError(f"{self.url} was asked about {asked} images and answered about {answered}")

    def _check_model(self, asked: str | None, model: ModelId) -> None:
        """The rung that was asked for answered, with the digest it had before; without a name, the rung that answered before."""
        expected = asked or self._default
        if expected is not None and expected not in {model.rung, model.digest}:
            raise RewardChanged(f"{self.url}: {expected} was expected to answer, {model.rung} did; restart to go on with it")
        if asked is None:
            self._default = model.rung
        self._pin(model.rung, model.digest)

    def _pin(self, rung: str, digest: str) -> None:
        expected = self._digests.setdefault(rung, digest)
        if digest != expected:
            raise RewardChanged(
                f"{self.url}: the model behind {rung} has changed (digest {digest}, expected {expected}); "
                "rewards of two models cannot be compared: serve the old one again, or start a new run"
            )


def _query(rung: str | None, weights: RewardWeights, map: bool) -> dict[str, str]:
    """The options of `POST /score` for pictures."""
    query = {"w_score": weights.score, "w_max": weights.max, "w_mean": weights.mean, "top_fraction": weights.top_fraction}
    options = {name: repr(float(value)) for name, value in query.items()} | {"map": "png" if map else "none"}
    return options if rung is None else options | {"rung": rung}


def _groups(pictures: Iterable[tuple[str, bytes]], size: int) -> Iterator[list[tuple[str, bytes]]]:
    """Pictures in order, in groups of about ``size`` bytes at most and at least one picture."""
    group: list[tuple[str, bytes]] = []
    for picture in pictures:
        if group and sum(len(body) for _, body in group) + len(picture[1]) > size:
            yield group
            group = []
        group.append(picture)
    if group:
        yield group


def _image_score(name: str, item: ItemReply, model: ModelId) -> ImageScore:
    if item.error is not None or item.score is None or item.reward is None:
        raise RewardError(f"{name}: {item.error}")
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
