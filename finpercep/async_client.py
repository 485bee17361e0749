"""`RewardClient` for an event loop: the same requests and the same errors, awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx
import torch

from data_synth.schema.pixels import RGB8
from finpercep.connection import DEFAULT_PATIENCE, DEFAULT_TIMEOUT, AsyncConnection, RetryPolicy
from finpercep.errors import RewardRejected, ServerFailed
from finpercep.exchange.calls import Ask, Call, Calls
from finpercep.exchange.pictures import Failures, ImageScore, named_files, named_images
from finpercep.reward import RewardWeights
from finpercep.wire import ModelReply, ScoreResponse

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
        cache_bytes: int = 0,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        policy = RetryPolicy(timeout, patience)
        self._connection = AsyncConnection(url, policy, token=token, transport=transport, sleep=sleep, clock=clock)
        self._calls = Calls(digests, cache_bytes)
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
        return await self._perform(self._calls.model())

    async def put_rung(self, name: str, source: str, *, admin_token: str, digest: str | None = None) -> ModelReply:
        """Have the server serve another rung; as `RewardClient.put_rung`."""
        for url in self._connection.endpoints.urls:
            reply = await self._perform(self._calls.put_rung(url, name, source, digest, admin_token))
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
        return await self._perform(self._calls.tensors(images, rung, weights, grad, map, lr))

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
        return await self._perform(self._calls.pictures(named_files(paths, lr), rung, weights, map, failures))

    async def score_images(
        self,
        images: Iterable[RGB8],
        *,
        rung: str | None = None,
        weights: RewardWeights | None = None,
        map: bool = False,
        lr: Iterable[RGB8] | None = None,
        failures: Failures = "raise",
    ) -> list[ImageScore]:
        """Score uint8 H×W×3 RGB pictures; as `RewardClient.score_images`."""
        return await self._perform(self._calls.pictures(named_images(images, lr), rung, weights, map, failures))

    async def _perform(self, call: Call[T, U]) -> U:
        """Results in order, some requests at once, each drawn when there is a place for it; the first error ends the others."""
        asks, tasks = iter(call.asks), list[asyncio.Task[T]]()
        try:
            while (ask := await self._drawn(asks)) is not None:
                tasks.append(asyncio.create_task(self._ask(ask)))
                if any(task.done() and task.exception() for task in tasks):
                    break
            return call.finish(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _drawn(self, asks: Iterator[Ask[T]]) -> Ask[T] | None:
        """The next request with a place, which `_ask` gives back; None, without a place, at the end."""
        await self._places.acquire()
        try:
            ask = await asyncio.to_thread(next, asks, None)
        except BaseException:
            self._places.release()
            raise
        if ask is None:
            self._places.release()
        return ask

    async def _ask(self, ask: Ask[T]) -> T:
        try:
            content = await asyncio.to_thread(ask.content)
            try:
                answer = await self._connection.send(ask.method, ask.path, only=ask.url, **content)
            except (RewardRejected, ServerFailed) as error:
                return ask.refused(error)
            return ask.read(ask.url or self.url, answer.content)
        finally:
            self._places.release()
