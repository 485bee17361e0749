"""The reward over HTTP: scores of pictures for people, and a differentiable `RewardFn` for fine-tuning loops.

Imports neither the server nor anything a model needs. A reward that cannot be had is an error, never a number; a server whose
model changes under a client is an error too, since rewards of two models cannot be compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx
import torch

from data_synth.schema.pixels import RGB8, encode_png
from finpercep.async_client import AsyncRewardClient
from finpercep.connection import DEFAULT_PATIENCE, DEFAULT_TIMEOUT, Connection, RetryPolicy
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
from finpercep.remote_reward import RemoteReward
from finpercep.reward import RewardFn, RewardWeights
from finpercep.wire import TENSOR_MEDIA_TYPE, ModelReply, ScoreRequest, ScoreResponse, encode_request, parse_reply

__all__ = ["AsyncRewardClient", "ImageScore", "RemoteReward", "RewardClient"]

T = TypeVar("T")
U = TypeVar("U")


class RewardClient:
    """A connection to one reward server, or to several that serve the same; implements `RewardSource`.

    Threads may share one. Use it as a context manager, or call `close`.

    Args:
        url: a server's address, ``http://127.0.0.1:8000``; or several: when one cannot be reached or is busy, the next is asked.
        timeout: seconds for one request, all its tries together.
        patience: of these, seconds during which a server that cannot be reached is tried again.
        token: the server's, if it asks for one.
        digests: rung → digest it must have; a rung that is not named is held to the digest it has first.
        concurrency: requests in flight at once, where a call is made of several.
        transport: what carries the requests, for tests; the network when None.
        sleep: waits between tries.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        timeout: float = DEFAULT_TIMEOUT,
        patience: float = DEFAULT_PATIENCE,
        token: str | None = None,
        digests: Mapping[str, str] | None = None,
        concurrency: int = 4,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        policy = RetryPolicy(timeout, patience)
        self._connection = Connection(url, policy, token=token, transport=transport, sleep=sleep, clock=clock)
        self._pins = Pins(digests)
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="reward-client")
        self._concurrency = concurrency

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Address of the server that is asked next."""
        return self._connection.url

    def close(self) -> None:
        """Give the connections back."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._connection.close()

    def model(self) -> ModelReply:
        """What the server serves.

        Raises:
            RewardChanged: a rung has another digest than before.
        """
        answer = self._connection.send("GET", "/model")
        with reading(self.url):
            reply = parse_reply(ModelReply, answer.content)
        for rung in reply.rungs:
            self._pins.pin(self.url, rung.name, rung.digest)
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
        lr: torch.Tensor | Sequence[torch.Tensor] | None = None,
    ) -> ScoreResponse:
        """Score tensors losslessly; numbers, maps and ∂R/∂image come back as tensors on the CPU.

        What is large goes up in several requests, some at a time; all must be answered by one model.

        Args:
            images: N×3×H×W, or 3×H×W each; RGB, uint8 or floats in [0, 1].
            rung: None for the server's default.
            weights: of the reward.
            grad: whether gradients are wanted.
            map: whether maps are wanted.
            lr: the low-resolution pictures they were made from, one for each, for a rung that takes them.

        Returns:
            The response; an image that failed is in its ``errors`` and has NaN for every number.
        """
        request = checked_request(images, rung, weights, grad, map, lr)
        return joined(request, list(self._each(self._score_chunk, in_chunks(request))))

    def score_files(
        self,
        paths: Iterable[str | Path],
        *,
        rung: str | None = None,
        weights: RewardWeights | None = None,
        map: bool = False,
        lr: Iterable[str | Path] | None = None,
        failures: Failures = "raise",
    ) -> list[ImageScore]:
        """Score picture files as they are, in the order given.

        Args:
            paths: files in any format the server reads.
            rung: None for the server's default.
            weights: of the reward.
            map: whether maps are wanted.
            lr: the low-resolution pictures they were made from, one for each, for a rung that takes them.
            failures: what to do about an image that has no score.

        Raises:
            RewardError: an image has no score, and ``failures`` is "raise"; the message names it and says why.
        """
        pictures = named_files(paths, lr)
        return self._score_pictures(pictures, rung, weights or RewardWeights(), map, failures)

    def score_images(
        self,
        images: Iterable[RGB8],
        *,
        rung: str | None = None,
        weights: RewardWeights | None = None,
        map: bool = False,
        failures: Failures = "raise",
    ) -> list[ImageScore]:
        """Score uint8 H×W×3 RGB pictures (sent as PNG, which loses nothing); otherwise as `score_files`."""
        pictures = (Picture(f"image-{index}.png", encode_png(pixels)) for index, pixels in enumerate(images))
        return self._score_pictures(pictures, rung, weights or RewardWeights(), map, failures)

    def _score_chunk(self, request: ScoreRequest) -> Part:
        headers = {"content-type": TENSOR_MEDIA_TYPE}
        try:
            answer = self._connection.send("POST", "/score", content=encode_request(request), headers=headers)
        except RewardRejected as error:
            return lone_failure(error, request)
        return read_response(self.url, answer.content, request, self._pins)

    def _score_pictures(
        self, pictures: Iterable[Picture], rung: str | None, weights: RewardWeights, map: bool, failures: Failures
    ) -> list[ImageScore]:
        query = query_of(rung, weights, map)

        def ask(group: list[Picture]) -> list[ImageScore]:
            try:
                answer = self._connection.send("POST", "/score", params=query, files=files_of(group))
            except RewardRejected as error:
                return failed_alone(error, group, failures)
            return read_scores(self.url, answer.content, group, rung, self._pins, failures)

        return [score for scores in self._each(ask, in_groups(pictures)) for score in scores]

    def _each(self, ask: Callable[[T], U], parts: Iterable[T]) -> Iterator[U]:
        """``ask`` of every part, in order, some at once; no more parts are drawn than are in flight."""
        waiting = []
        try:
            for part in parts:
                waiting.append(self._pool.submit(ask, part))
                if len(waiting) == self._concurrency:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
