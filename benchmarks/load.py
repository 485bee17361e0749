"""Load on an HTTP server, as cheap as it can be made: requests are bytes made beforehand, and one event loop sends them all.

The generator shares the cores with the server it measures, so what it spends is missing there. Knows nothing of rewards.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np

IDLE_SECONDS = 2.0
"""A connection that was idle for longer is not used again: servers close such ones (uvicorn after 5 s) without a word."""

HEAD_END = b"\r\n\r\n"


def request_bytes(url: str, method: str = "POST", **content: Any) -> bytes:
    """A request as it goes over the wire; ``content`` as `httpx.Request` takes it."""
    request = httpx.Request(method, url, **content)
    body = request.read()
    head = [
        f"{method} {request.url.raw_path.decode()} HTTP/1.1",
        *(f"{name}: {value}" for name, value in request.headers.items()),
    ]
    return "\r\n".join(head).encode() + HEAD_END + body


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Connections:
    """To one server, kept open and used again."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        self._address = (parts.hostname, parts.port)
        self._free: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, request: bytes) -> Answer:
        """One request and its whole answer. Raises `OSError` or `asyncio.IncompleteReadError` when the server hangs up."""
        reader, writer = self._kept() or await asyncio.open_connection(*self._address)
        try:
            writer.write(request)
            await writer.drain()
            answer = await _read(reader)
        except BaseException:
            writer.close()
            raise
        if answer.headers.get("connection") == "close":
            writer.close()
        else:
            self._free.append((time.monotonic(), reader, writer))
        return answer

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """The connection that was used last, if there is one that the server has not closed."""
        while self._free:
            since, reader, writer = self._free.pop()
            if not reader.at_eof() and time.monotonic() - since < IDLE_SECONDS:
                return reader, writer
            writer.close()
        return None

    async def close(self) -> None:
        for *_, writer in self._free:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def _read(reader: asyncio.StreamReader) -> Answer:
    status, *lines = (await reader.readuntil(HEAD_END))[: -len(HEAD_END)].decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(int(status.split()[1]), headers, await reader.readexactly(int(headers["content-length"])))


@dataclass
class Load:
    """What came of it.

    Attributes:
        seconds: of the window that counts.
        latencies: seconds, of every answer with status 200 in the window.
    """

    seconds: float
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def percentile_ms(self, share: float) -> float:
        """In ms."""
        return 1000 * float(np.quantile(self.latencies, share))


def closed_loop(url: str, requests: Sequence[bytes], clients: int, seconds: float, warm: float = 1.0) -> Load:
    """Every client asks again as soon as it has its answer; counted are answers within a window that begins after ``warm`` s.

    A request that fails ends the benchmark.
    """

    async def run() -> Load:
        connections, load = Connections(url), Load(seconds)
        begin = time.perf_counter() + warm
        end = begin + seconds

        async def client(number: int) -> None:
            while (asked := time.perf_counter()) < end:
                answer = await connections.ask(requests[number % len(requests)])
                _require_success(url, answer)
                if begin <= (done := time.perf_counter()) <= end:
                    load.latencies.append(done - asked)
                number += clients

        try:
            await asyncio.gather(*(client(number) for number in range(clients)))
        finally:
            await connections.close()
        return load

    return _counted(url, asyncio.run(run()))


def open_loop(url: str, requests: Sequence[bytes], rate: float, seconds: float, seed: int = 0) -> Load:
    """Requests arrive at random moments (Poisson, ``rate`` a second), whether or not the server has answered those before.

    A latency counts from the moment of arrival, so that one who waits to be sent has waited.
    """

    async def run() -> Load:
        connections, load = Connections(url), Load(seconds)

        async def one(number: int, due: float) -> None:
            answer = await connections.ask(requests[number % len(requests)])
            _require_success(url, answer)
            load.latencies.append(time.perf_counter() - due)

        try:
            await _arriving(one, arrivals(rate, seconds, seed))
        finally:
            await connections.close()
        return load

    return _counted(url, asyncio.run(run()))


def arrivals(rate: float, seconds: float, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Moments of a Poisson process, in seconds from its beginning."""
    rng = np.random.default_rng(seed)
    moments = np.cumsum(rng.exponential(1 / rate, size=round(1.2 * rate * seconds) + 100))
    return moments[moments < seconds]


async def _arriving(one: Callable[[int, float], Any], moments: Iterable[float]) -> None:
    """Start ``one(number, due)`` at each moment, and wait for all."""
    begin = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number, moment in enumerate(moments):
            due = begin + float(moment)
            if (left := due - time.perf_counter()) > 0:
                await asyncio.sleep(left)
            group.create_task(one(number, due))


def _require_success(url: str, answer: Answer) -> None:
    if answer.status != 200:
        raise RuntimeError(f"{url} answered {answer.status}: {answer.body[:200]!r}")


def _counted(url: str, load: Load) -> Load:
    if not load.latencies:
        raise RuntimeError(f"{url} answered nothing in {load.seconds} s; give it more --seconds")
    return load


@dataclass
class Overload:
    """What came of asking a server for much more than it can do.

    Attributes:
        sent: requests that arrived and were sent.
        unsent: arrivals that found as many connections open as this machine was to have; nobody was asked.
        answer_seconds: of each answer with status 200 and the right result, from sending.
        refusal_seconds: of each refusal with 429 or 503 and a Retry-After.
        wrong: answers with another image's result, refusals without Retry-After, any other status: a sentence each, the first 20.
        lost: requests that got no whole answer: a sentence each, the first 20.
        faults: of both, how many.
    """

    sent: int = 0
    unsent: int = 0
    answer_seconds: list[float] = field(default_factory=list)
    refusal_seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    faults: int = 0

    def note_fault(self, kind: list[str], sentence: str) -> None:
        """Count a fault, and keep the first ones' sentences."""
        self.faults += 1
        if len(kind) < 20:
            kind.append(sentence)


def overload(
    url: str,
    requests: Sequence[bytes],
    is_right: Callable[[int, bytes], bool],
    rate: float,
    seconds: float,
    *,
    most_open: int = 2000,
    seed: int = 0,
) -> Overload:
    """`open_loop` that expects refusals, and looks at every answer. Ends when the last request is answered.

    Args:
        url: of the server.
        requests: sent in turn.
        is_right: whether a body answers ``requests[index]``.
        rate: arrivals a second.
        seconds: for how long they arrive.
        most_open: connections at once.
        seed: of the arrivals.
    """

    async def run() -> Overload:
        connections, seen = Connections(url), Overload()
        is_open = 0

        async def one(number: int, _: float) -> None:
            nonlocal is_open
            if is_open >= most_open:
                seen.unsent += 1
                return
            index = number % len(requests)
            seen.sent += 1
            is_open += 1
            began = time.perf_counter()
            try:
                answer = await connections.ask(requests[index])
            except (OSError, asyncio.IncompleteReadError) as error:
                seen.note_fault(seen.lost, f"{type(error).__name__}: {error}")
                return
            finally:
                is_open -= 1
            elapsed = time.perf_counter() - began
            if answer.status == 200 and is_right(index, answer.body):
                seen.answer_seconds.append(elapsed)
            elif answer.status in {429, 503} and answer.headers.get("retry-after", "").isdecimal():
                seen.refusal_seconds.append(elapsed)
            else:
                seen.note_fault(seen.wrong, f"{answer.status} {answer.body[:100]!r}")

        try:
            await _arriving(one, arrivals(rate, seconds, seed))
        finally:
            await connections.close()
        return seen

    return asyncio.run(run())
