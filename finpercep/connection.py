"""HTTP peers, one or several of a kind: tries again what may be tried again, and turns every failure into a typed error.

What to do next is decided by `attempts`, a generator that knows no sockets; `Connection` and `AsyncConnection` do what it says.
Scoring changes nothing on a server, so every request may be asked again, of any of the servers. Knows nothing of scores.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from finpercep.errors import ConfigError, RewardError, RewardRejected, RewardUnavailable, ServerFailed

DEFAULT_TIMEOUT = 120.0
DEFAULT_PATIENCE = 3.0
CONNECT_TIMEOUT = 5.0
"""Seconds for one connection to be made."""

SLICE = 2**18
"""Bytes that are sent between two looks at the clock."""

FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0
"""Seconds before the second try, and at most before any later one: they double, and a random part up to half is taken off."""

_LOST = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)
_LOOPBACK = re.compile(r"https?://(localhost|127\.[0-9.]+|\[::1\])(:|/|$)")
_BUSY = {429, 502, 503, 504}
_OF_THE_TRANSFER = {"content-encoding", "content-length", "transfer-encoding"}
"""Headers that say how a body came, not what it is."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long a call may take.

    Attributes:
        timeout: seconds for one call, all its tries and pauses together.
        patience: of these, seconds during which servers that cannot be reached are tried again. Busy ones are asked again,
            when they say, until the time is up.
    """

    timeout: float = DEFAULT_TIMEOUT
    patience: float = DEFAULT_PATIENCE


class Endpoints:
    """Addresses of servers that serve the same; the one that answered last is asked first."""

    def __init__(self, urls: str | Sequence[str]) -> None:
        self.urls = tuple(dict.fromkeys(url.rstrip("/") for url in ([urls] if isinstance(urls, str) else urls)))
        if not self.urls:
            raise RewardUnavailable("a client needs at least one address, got none")
        self._current = 0

    @property
    def current(self) -> str:
        """The one to ask."""
        return self.urls[self._current]

    def go_on_from(self, url: str) -> None:
        """Ask the one after ``url`` next."""
        self._current = (self.urls.index(url) + 1) % len(self.urls)


@dataclass(frozen=True)
class Attempt:
    """Ask ``url`` now, and wait ``timeout`` seconds at most."""

    url: str
    timeout: float


@dataclass(frozen=True)
class Pause:
    """Wait."""

    seconds: float


Answer = httpx.Response | httpx.HTTPError | httpx.InvalidURL
Attempts = Generator[Attempt | Pause, Answer | None, httpx.Response]


def attempts(
    endpoints: Endpoints, policy: RetryPolicy, clock: Callable[[], float], jitter: Callable[[], float] = random.random
) -> Attempts:
    """One call: what to do, given what came of it.

    Returns:
        The successful answer.

    Raises:
        RewardUnavailable: no connection, no room or no answer in time.
        RewardRejected: status 4xx, with the server's sentence.
        ServerFailed: status 500, with the server's sentence.
        RewardError: any other status that is not success.
    """
    deadline = clock() + policy.timeout
    lost_until: float | None = None
    tries = 0
    while True:
        url = endpoints.current
        answer = yield Attempt(url, max(0.0, deadline - clock()))
        pause = min(LONGEST_DELAY, FIRST_DELAY * 2**tries) * (1 - 0.5 * jitter())
        until = deadline
        if isinstance(answer, httpx.Response) and _lost_its_server(answer):
            problem = RewardUnavailable(f"{url}: {_sentence(answer)}")
            lost_until = lost_until if lost_until is not None else clock() + policy.patience
            until = min(deadline, lost_until)
        elif isinstance(answer, httpx.Response):
            if answer.status_code not in _BUSY:
                return _checked(url, answer)
            problem = RewardUnavailable(f"{url}: {_sentence(answer)}")
            pause = max(pause, _retry_after(answer.headers))
            lost_until = None
        elif isinstance(answer, _LOST):
            problem = RewardUnavailable(f"no reward server answers at {url} ({_words(answer)}); start one with: finpercep serve")
            lost_until = lost_until if lost_until is not None else clock() + policy.patience
            until = min(deadline, lost_until)
        elif isinstance(answer, httpx.TimeoutException):
            raise RewardUnavailable(
                f"{url} did not answer in time ({_words(answer)}); raise the timeout or send fewer images at a time"
            ) from answer
        else:
            assert answer is not None
            raise RewardUnavailable(
                f"{url} is not an address of a reward server ({_words(answer)}); expected http://HOST:PORT"
            ) from answer
        endpoints.go_on_from(url)
        tries += 1
        if tries % len(endpoints.urls):
            continue  # another server may have room right now
        if clock() + pause > until:
            raise problem
        yield Pause(pause)


class Connection:
    """Requests to one server, or to one of several that serve the same.

    Args:
        urls: ``http://127.0.0.1:8000``, or several.
        policy: how long a call may take.
        token: sent as a bearer token.
        transport: what carries the requests; the network when None.
        sleep: waits between tries.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        policy: RetryPolicy | None = None,
        *,
        token: str | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.endpoints, self.policy = Endpoints(urls), policy or RetryPolicy()
        self._sleep, self._clock = sleep, clock
        self._http = httpx.Client(transport=transport, headers=_authorisation(token), trust_env=_is_outside(self.endpoints))

    @property
    def url(self) -> str:
        """Of the server that is asked next."""
        return self.endpoints.current

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def send(self, method: str, path: str, *, only: str | None = None, **content: Any) -> httpx.Response:
        """One request, and its successful answer, of any server or of the ``only`` one; raises as `attempts`."""
        call = attempts(Endpoints(only) if only else self.endpoints, self.policy, self._clock)
        step = next(call)
        while True:
            answer: Answer | None = None
            if isinstance(step, Pause):
                self._sleep(step.seconds)
            else:
                try:
                    answer = self._ask(step, method, path, content)
                except (httpx.HTTPError, httpx.InvalidURL) as error:
                    answer = error
            try:
                step = call.send(answer)
            except StopIteration as end:
                done: httpx.Response = end.value
                return done

    def _ask(self, step: Attempt, method: str, path: str, content: dict[str, Any]) -> httpx.Response:
        """The answer, whole: httpx's own time-outs are of each read and write, and a server may move a byte now and then."""
        until = self._clock() + step.timeout
        request = self._http.build_request(method, f"{step.url}{path}", timeout=_timeout(step), **content)
        assert isinstance(request.stream, httpx.SyncByteStream)
        request.stream = _InSlices(request.stream, lambda: self._clock() > until)
        answer = self._http.send(request, stream=True)
        try:
            parts = []
            for part in answer.iter_bytes():
                parts.append(part)
                if self._clock() > until:
                    raise httpx.ReadTimeout("the answer took too long", request=request)
        finally:
            answer.close()
        decoded = [(name, value) for name, value in answer.headers.multi_items() if name not in _OF_THE_TRANSFER]
        return httpx.Response(answer.status_code, headers=decoded, content=b"".join(parts), request=request)


class _InSlices(httpx.SyncByteStream):
    """A body in slices of at most `SLICE`, until it is late."""

    def __init__(self, body: httpx.SyncByteStream, is_late: Callable[[], bool]) -> None:
        self._body, self._is_late = body, is_late

    def __iter__(self) -> Iterator[bytes]:
        for part in self._body:
            for start in range(0, len(part), SLICE):
                if self._is_late():
                    raise httpx.WriteTimeout("the request took too long")
                yield part[start : start + SLICE]

    def close(self) -> None:
        self._body.close()


class AsyncConnection:
    """`Connection` for an event loop."""

    def __init__(
        self,
        urls: str | Sequence[str],
        policy: RetryPolicy | None = None,
        *,
        token: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.endpoints, self.policy = Endpoints(urls), policy or RetryPolicy()
        self._sleep, self._clock = sleep, clock
        self._http = httpx.AsyncClient(transport=transport, headers=_authorisation(token), trust_env=_is_outside(self.endpoints))

    @property
    def url(self) -> str:
        """Of the server that is asked next."""
        return self.endpoints.current

    async def close(self) -> None:
        """Give the connections back."""
        await self._http.aclose()

    async def send(self, method: str, path: str, *, only: str | None = None, **content: Any) -> httpx.Response:
        """One request, and its successful answer, of any server or of the ``only`` one; raises as `attempts`."""
        call = attempts(Endpoints(only) if only else self.endpoints, self.policy, self._clock)
        step = next(call)
        while True:
            answer: Answer | None = None
            if isinstance(step, Pause):
                await self._sleep(step.seconds)
            else:
                try:
                    async with asyncio.timeout(step.timeout):
                        answer = await self._http.request(method, f"{step.url}{path}", timeout=_timeout(step), **content)
                except (httpx.HTTPError, httpx.InvalidURL) as error:
                    answer = error
                except TimeoutError:
                    answer = httpx.ReadTimeout("the answer took too long")
            try:
                step = call.send(answer)
            except StopIteration as end:
                done: httpx.Response = end.value
                return done


def _timeout(attempt: Attempt) -> httpx.Timeout:
    return httpx.Timeout(attempt.timeout, connect=min(attempt.timeout, CONNECT_TIMEOUT))


def _authorisation(token: str | None) -> dict[str, str]:
    """Raises `ConfigError`, without the token, where it cannot be one."""
    if token is not None and not (token.isascii() and token.isprintable() and token == token.strip()):
        raise ConfigError("token: expected printable ASCII without blanks around it; a file's end of line must be stripped")
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _is_outside(endpoints: Endpoints) -> bool:
    """Whether proxies count: one that is meant for the outside cannot reach this machine's loopback."""
    return not all(_LOOPBACK.match(url) for url in endpoints.urls)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds a server asks to wait; 0 where it does not say so in seconds."""
    text = headers.get("retry-after", "")
    return float(text) if text.isdecimal() and len(text) < 6 else 0.0


def _lost_its_server(answer: httpx.Response) -> bool:
    """Whether something between here and the servers answered because one died under the request: Ray Serve's proxy does so.

    A server's own 500 has a sentence; asking again would not help then.
    """
    return answer.status_code == 500 and _own_sentence(answer) is None


def _checked(url: str, answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    message = f"{url}: {_sentence(answer)}"
    if answer.is_client_error:
        raise RewardRejected(message, answer.status_code)
    if answer.status_code == 500:  # with a sentence; one without is not the server's own (`_lost_its_server`)
        raise ServerFailed(message, answer.status_code)
    raise RewardError(message)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _sentence(answer: httpx.Response) -> str:
    """The server's own sentence, or the status when something else answered."""
    return _own_sentence(answer) or f"answered {answer.status_code} {answer.reason_phrase}"


def _own_sentence(answer: httpx.Response) -> str | None:
    try:
        detail = json.loads(answer.content)["detail"]
    except (ValueError, KeyError, TypeError):
        return None
    return detail if isinstance(detail, str) else None
