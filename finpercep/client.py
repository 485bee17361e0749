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

from data_synth.schema.pixels import RGB8
from finpercep.async_client import AsyncRewardClient
from finpercep.connection import DEFAULT_PATIENCE, DEFAULT_TIMEOUT, Connection, RetryPolicy
from finpercep.errors import RewardRejected, ServerFailed
from finpercep.exchange.calls import Ask, Call, Calls
from finpercep.exchange.pictures import Failures, ImageScore, named_files, named_images
from finpercep.remote_reward import RemoteReward
from finpercep.reward import RewardFn, RewardWeights
from finpercep.wire import ModelReply, RungReply, ScoreResponse

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
        cache_bytes: memory for scores that are kept by model, options and content of the image, so that what was asked before is
            not asked again (`finpercep.exchange.cache`); 0 keeps none.
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
        cache_bytes: int = 0,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        policy = RetryPolicy(timeout, patience)
        self._connection = Connection(url, policy, token=token, transport=transport, sleep=sleep, clock=clock)
        self._calls = Calls(digests, cache_bytes)
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
        return self._perform(self._calls.model())

    def rungs(self) -> Sequence[str]:
        """Names of the rungs, RM_0 first."""
        return tuple(rung.name for rung in self.model().rungs)

    def has_map(self, rung: str) -> bool:
        """Whether a rung has a degradation map. Raises as `reward_fn` does."""
        return self._served(rung).has_map

    def reward_fn(self, rung: str, weights: RewardWeights) -> RewardFn:
        """The differentiable reward of one rung.

        Raises:
            RewardRejected: the server has no such rung.
        """
        served = self._served(rung)
        return RemoteReward(self, served.name, weights, takes_lr=served.takes_lr)

    def put_rung(self, name: str, source: str, *, admin_token: str, digest: str | None = None) -> ModelReply:
        """Have the server load a rung and serve it as ``name`` from now on; this client expects it then.

        Several servers are told one after the other, up to the first that refuses.

        Other clients that hold ``name`` to its former digest raise `RewardChanged` at their next request.

        Args:
            name: ``RM_2``; a name that is new comes last and becomes the default.
            source: the folder in the server's model root that has it: of a ladder, or of that rung alone.
            admin_token: the server's.
            digest: that the rung must have; without it any is taken.

        Raises:
            RewardRejected: it cannot be loaded, has another digest, or does not score a canary as it should; that server serves
                its former rung still. Of several, those before it serve the new one: call again, or put the former one back.
        """
        for url in self._connection.endpoints.urls:
            reply = self._perform(self._calls.put_rung(url, name, source, digest, admin_token))
        return reply

    def _served(self, rung: str) -> RungReply:
        served = {reply.name: reply for reply in self.model().rungs}
        if rung not in served:
            raise RewardRejected(f"{self.url}: unknown rung {rung!r}; there are {', '.join(served)}")
        return served[rung]

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
            rung: its name, index (``0``, ``-1``) or digest; None for the server's default.
            weights: of the reward.
            grad: whether gradients are wanted.
            map: whether maps are wanted.
            lr: the low-resolution pictures they were made from, one for each, for a rung that takes them.

        Returns:
            The response; an image that failed is in its ``errors`` and has NaN for every number.
        """
        return self._perform(self._calls.tensors(images, rung, weights, grad, map, lr))

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
            rung: its name, index (``0``, ``-1``) or digest; None for the server's default.
            weights: of the reward.
            map: whether maps are wanted.
            lr: the low-resolution pictures they were made from, one for each, for a rung that takes them.
            failures: what to do about an image that has no score.

        Raises:
            RewardError: an image has no score, and ``failures`` is "raise"; the message names it and says why.
        """
        return self._perform(self._calls.pictures(named_files(paths, lr), rung, weights, map, failures))

    def score_images(
        self,
        images: Iterable[RGB8],
        *,
        rung: str | None = None,
        weights: RewardWeights | None = None,
        map: bool = False,
        lr: Iterable[RGB8] | None = None,
        failures: Failures = "raise",
    ) -> list[ImageScore]:
        """Score uint8 H×W×3 RGB pictures (sent as PNG, which loses nothing); otherwise as `score_files`."""
        return self._perform(self._calls.pictures(named_images(images, lr), rung, weights, map, failures))

    def _perform(self, call: Call[T, U]) -> U:
        return call.finish(list(self._each(call.asks)))

    def _ask(self, ask: Ask[T]) -> T:
        try:
            answer = self._connection.send(ask.method, ask.path, only=ask.url, **ask.content())
        except (RewardRejected, ServerFailed) as error:
            return ask.refused(error)
        return ask.read(ask.url or self.url, answer.content)

    def _each(self, asks: Iterable[Ask[T]]) -> Iterator[T]:
        """What comes of each, in order, some at once; no more are drawn than are in flight."""
        waiting = []
        try:
            for ask in asks:
                waiting.append(self._pool.submit(self._ask, ask))
                if len(waiting) == self._concurrency:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
