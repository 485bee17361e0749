"""What a client's methods come to: requests, and what is made of their replies. Opens no connection and never waits.

`RewardClient` and `AsyncRewardClient` carry out the same `Call`s, one with threads, the other in an event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import torch

from finpercep.errors import Refusal, RewardError
from finpercep.exchange.answers import Pins, reading
from finpercep.exchange.cache import ScoreCache, content_of
from finpercep.exchange.pictures import (
    Failures,
    ImageScore,
    Picture,
    failed_alone,
    files_of,
    in_groups,
    query_of,
    read_scores,
    settled,
)
from finpercep.exchange.tensors import Part, checked_request, in_chunks, joined, lone_failure, part_of, read_response, singles
from finpercep.reward import RewardWeights
from finpercep.wire import TENSOR_MEDIA_TYPE, ModelId, ModelReply, ScoreRequest, ScoreResponse, encode_request, parse_reply

T = TypeVar("T")
U = TypeVar("U")


def _raised(error: Refusal) -> Any:
    raise error


@dataclass(frozen=True)
class Ask(Generic[T]):
    """One request.

    Attributes:
        method: of HTTP.
        path: on the server.
        read: the answer to (address, body).
        content: makes what `httpx.Client.request` is given besides; it may take a while.
        refused: what a refusal, or the server's failure, comes to; it is raised by default.
        url: the one server that is asked; None: any.
    """

    method: str
    path: str
    read: Callable[[str, bytes], T]
    content: Callable[[], Mapping[str, Any]] = dict
    refused: Callable[[Refusal], T] = _raised
    url: str | None = None


@dataclass(frozen=True)
class Call(Generic[T, U]):
    """Requests, and what their results come to, in the requests' order.

    Attributes:
        asks: made as they are drawn, which may take a while: files are read, pictures encoded.
        finish: is given the results when all are there.
    """

    asks: Iterable[Ask[T]]
    finish: Callable[[Sequence[T]], U]


class Calls:
    """The calls of one client, which remember what servers said before.

    Args:
        digests: rung → digest it must have; a rung that is not named is held to the digest it has first.
        cache_bytes: most memory for scores that are kept (`ScoreCache`); 0 keeps none.
    """

    def __init__(self, digests: Mapping[str, str] | None, cache_bytes: int) -> None:
        self._pins = Pins(digests)
        self._cache = ScoreCache(cache_bytes) if cache_bytes else None

    def model(self) -> Call[ModelReply, ModelReply]:
        """``GET /model``."""

        def read(url: str, body: bytes) -> ModelReply:
            reply = _model_reply(url, body)
            for rung in reply.rungs:
                self._pins.pin(url, rung.name, rung.digest)
            return reply

        return Call([Ask("GET", "/model", read)], _only)

    def put_rung(self, url: str, name: str, source: str, digest: str | None, admin_token: str) -> Call[ModelReply, ModelReply]:
        """``PUT /rungs/NAME`` on one server; from then on this client expects the new rung."""

        def read(url: str, body: bytes) -> ModelReply:
            reply = _model_reply(url, body)
            served = {rung.name: rung.digest for rung in reply.rungs}
            if name not in served:
                raise RewardError(f"{url} was told to serve {name} and serves {', '.join(served)}")
            self._pins.replace(name, served[name], reply.rung)
            return reply

        content = {
            "json": {"source": source} | ({} if digest is None else {"digest": digest}),
            "headers": {"Authorization": f"Bearer {admin_token}"},
        }
        return Call([Ask("PUT", f"/rungs/{quote(name, safe='')}", read, lambda: content, url=url)], _only)

    def tensors(
        self,
        images: torch.Tensor | Sequence[torch.Tensor],
        rung: str | None,
        weights: RewardWeights | None,
        grad: bool,
        map: bool,
        lr: torch.Tensor | Sequence[torch.Tensor] | None,
    ) -> Call[Part, ScoreResponse]:
        """``POST /score`` of tensors, in chunks. Raises `RewardRejected` where they are not what a reward can be had of."""
        request = checked_request(images, rung, weights, grad, map, lr)
        if self._cache is None:
            return Call([self._chunk(chunk) for chunk in in_chunks(request)], lambda parts: joined(request, parts))
        return self._remembered_tensors(request, self._cache)

    def pictures(
        self, pictures: Iterable[Picture], rung: str | None, weights: RewardWeights | None, map: bool, failures: Failures
    ) -> Call[list[ImageScore], list[ImageScore]]:
        """``POST /score`` of pictures, in groups."""
        weights = weights or RewardWeights()
        query = query_of(rung, weights, map)

        def asked(some: Iterable[Picture]) -> Iterator[Ask[list[ImageScore]]]:
            return (self._group(group, rung, query, failures) for group in in_groups(some))

        if self._cache is None:
            return Call(asked(pictures), lambda groups: settled([one for group in groups for one in group], failures))
        return self._remembered_pictures(pictures, rung, weights, map, failures, asked, self._cache)

    def _chunk(self, chunk: ScoreRequest) -> Ask[Part]:
        return Ask(
            "POST",
            "/score",
            lambda url, body: read_response(url, body, chunk, self._pins),
            lambda: {"content": encode_request(chunk), "headers": {"content-type": TENSOR_MEDIA_TYPE}},
            lambda error: lone_failure(error, chunk),
        )

    def _group(
        self, group: Sequence[Picture], rung: str | None, query: Mapping[str, str], failures: Failures
    ) -> Ask[list[ImageScore]]:
        return Ask(
            "POST",
            "/score",
            lambda url, body: read_scores(url, body, group, rung, self._pins, failures),
            lambda: {"params": query, "files": files_of(group)},
            lambda error: failed_alone(error, group, failures),
        )

    def _remembered_tensors(self, request: ScoreRequest, cache: ScoreCache) -> Call[Part, ScoreResponse]:
        """Only what is not in the cache is asked for."""
        lrs = [None] * len(request) if request.lr is None else list(request.lr)
        options = ("tensor", request.weights, request.grad, request.map)
        contents = [content_of(image, lr) for image, lr in zip(request.images, lrs, strict=True)]
        model = self._pins.known(request.rung)
        found: list[Part | None] = [model and cache.get((*model, *options, content)) for content in contents]
        missing = [index for index, part in enumerate(found) if part is None]

        def finish(parts: Sequence[Part]) -> ScoreResponse:
            fresh = [one for part in parts for one in singles(part)]
            for index, one in zip(missing, fresh, strict=True):
                found[index] = one
                if isinstance(one, ScoreResponse) and not one.errors:
                    cache.put((*_identity(one.model), *options, contents[index]), one)
            return joined(request, [part for part in found if part is not None])

        chunks = in_chunks(part_of(request, missing)) if missing else []
        return Call([self._chunk(chunk) for chunk in chunks], finish)

    def _remembered_pictures(
        self,
        pictures: Iterable[Picture],
        rung: str | None,
        weights: RewardWeights,
        map: bool,
        failures: Failures,
        asked: Callable[[Iterable[Picture]], Iterator[Ask[list[ImageScore]]]],
        cache: ScoreCache,
    ) -> Call[list[ImageScore], list[ImageScore]]:
        """Only what is not in the cache is asked for."""
        options = ("picture", weights, map)
        contents: list[bytes] = []
        found: list[ImageScore | None] = []

        def missing() -> Iterator[Picture]:
            for picture in pictures:
                contents.append(content_of(picture.body, picture.lr))
                model = self._pins.known(rung)
                found.append(model and cache.get((*model, *options, contents[-1])))
                if found[-1] is None:
                    yield picture

        def finish(groups: Sequence[list[ImageScore]]) -> list[ImageScore]:
            fresh = (one for group in groups for one in group)
            for index, known in enumerate(found):
                if known is None:
                    one = found[index] = next(fresh)
                    if one.error is None and one.model is not None:
                        cache.put((*_identity(one.model), *options, contents[index]), one)
            return settled([one for one in found if one is not None], failures)

        return Call(asked(missing()), finish)


def _identity(model: ModelId) -> tuple[str, str]:
    return model.rung, model.digest


def _model_reply(url: str, body: bytes) -> ModelReply:
    with reading(url):
        return parse_reply(ModelReply, body)


def _only(replies: Sequence[T]) -> T:
    (reply,) = replies
    return reply
