"""`RewardClient` for an event loop: the same requests and the same errors, awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx
import torch

from data_synth.schema.pixels import RGB8, encode_png
from finpercep.connection import DEFAULT_PATIENCE, DEFAULT_TIMEOUT, AsyncConnection, RetryPolicy
from finpercep.errors import RewardRejected
from finpercep.exchange.answers import Pins, reading
from finpercep.exchange.pictures import (
    Failures,
    ImageScore,
    Picture,
    failed_alone,
    files_of,
    in_groups,
    named_files,
    query_of,
    read_scores,
)
from finpercep.exchange.tensors import Part, checked_request, in_chunks, joined, lone_failure, read_response
from finpercep.reward import RewardWeights
from finpercep.wire import TENSOR_MEDIA_TYPE, ModelReply, ScoreRequest, ScoreResponse, encode_request, parse_reply

T = TypeVar("T")
U = TypeVar("U")


class AsyncRewardClient:
    """A connection to one reward server, or to several that serve the same. Arguments and methods are `RewardClient`'s."""

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        timeout: float = DEFAULT_TIMEOUT,
        patience: float = DEFAULT_PATIENCE,
        token: str | None = None,
        digests: Mapping[str, str] | None = None,
        concurrency: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        policy = RetryPolicy(timeout, patience)
        self._connection = AsyncConnection(url, policy, token=token, transport=transport, sleep=sleep, clock=clock)
        self._pins = Pins(digests)
        self._places = asyncio.Semaphore(concurrency)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    @property
    def url(self) -> str:
        """Address of the server that is asked next."""
        return self._connection.url

    async def close(self) -> None:
        """Give the connections back."""
        await self._connection.close()

    async def model(self) -> ModelReply:
        """What the server serves; as `RewardClient.model`."""
        answer = await self._connection.send("GET", "/model")
        with reading(self.url):
            reply = parse_reply(ModelReply, answer.content)
        for rung in reply.rungs:
            self._pins.pin(self.url, rung.name, rung.digest)
        return reply

    async def score_tensor(
        self,
        images: torch.Tensor | Sequence[torch.Tensor],
        rung: str | None = None,
        weights: RewardWeights | None = None,
        grad: bool = False,
        map: bool = False,
        lr: torch.Tensor | Sequence[torch.Tensor] | None = None,
    ) -> ScoreResponse:
        """Score tensors losslessly; as `RewardClient.score_tensor`."""
        request = checked_request(images, rung, weights, grad, map, lr)
        return joined(request, await self._each(self._score_chunk, in_chunks(request)))

    async def score_files(
        self,
        paths: Iterable[str | Path],
        *,
        rung: str | None = None,
        weights: RewardWeights | None = None,
        map: bool = False,
        lr: Iterable[str | Path] | None = None,
        failures: Failures = "raise",
    ) -> list[ImageScore]:
        """Score picture files as they are; as `RewardClient.score_files`."""
        pictures = await asyncio.to_thread(lambda: list(named_files(paths, lr)))
        return await self._score_pictures(pictures, rung, weights or RewardWeights(), map, failures)

    async def score_images(
        self,
        images: Iterable[RGB8],
        *,
        rung: str | None = None,
        weights: RewardWeights | None = None,
        map: bool = False,
        failures: Failures = "raise",
    ) -> list[ImageScore]:
        """Score uint8 H×W×3 RGB pictures; as `RewardClient.score_images`."""
        pictures = [Picture(f"image-{index}.png", encode_png(pixels)) for index, pixels in enumerate(images)]
        return await self._score_pictures(pictures, rung, weights or RewardWeights(), map, failures)

    async def _score_chunk(self, request: ScoreRequest) -> Part:
        headers = {"content-type": TENSOR_MEDIA_TYPE}
        body = await asyncio.to_thread(encode_request, request)
        try:
            answer = await self._connection.send("POST", "/score", content=body, headers=headers)
        except RewardRejected as error:
            return lone_failure(error, request)
        return read_response(self.url, answer.content, request, self._pins)

    async def _score_pictures(
        self, pictures: Iterable[Picture], rung: str | None, weights: RewardWeights, map: bool, failures: Failures
    ) -> list[ImageScore]:
        query = query_of(rung, weights, map)

        async def ask(group: list[Picture]) -> list[ImageScore]:
            try:
                answer = await self._connection.send("POST", "/score", params=query, files=files_of(group))
            except RewardRejected as error:
                return failed_alone(error, group, failures)
            return read_scores(self.url, answer.content, group, rung, self._pins, failures)

        return [score for scores in await self._each(ask, in_groups(pictures)) for score in scores]

    async def _each(self, ask: Callable[[T], Awaitable[U]], parts: Iterable[T]) -> list[U]:
        """``ask`` of every part, in order, some at once; the first error ends the others."""

        async def in_turn(part: T) -> U:
            async with self._places:
                return await ask(part)

        tasks = [asyncio.ensure_future(in_turn(part)) for part in parts]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
