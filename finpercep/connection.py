"""One HTTP peer: retries what a lost connection cost, and turns every failure into a typed error. Knows nothing of scores."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import httpx

from finpercep.errors import RewardError, RewardRejected, RewardUnavailable

DEFAULT_TIMEOUT = 120.0
"""Seconds for one answer; connecting gets at most `CONNECT_TIMEOUT` of it."""

CONNECT_TIMEOUT = 5.0
RETRY_DELAYS = (0.1, 0.5, 2.0)
"""Seconds before each further try after a lost connection. Scoring changes nothing on the server, so it may be asked again."""

_LOST = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)
_LOOPBACK = re.compile(r"https?://(localhost|127\.[0-9.]+|\[::1\])(:|/|$)")
_NOT_READY = {502, 503, 504}


class Connection:
    """Requests to one server.

    Args:
        url: ``http://127.0.0.1:8000``.
        timeout: seconds to wait for one answer.
        transport: what carries the requests; the network when None.
        sleep: waits between retries.
    """

    def __init__(
        self,
        url: str,
        timeout: float = DEFAULT_TIMEOUT,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url.rstrip("/")
        self._sleep = sleep
        self._http = httpx.Client(
            timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT)),
            transport=transport,
            trust_env=not _LOOPBACK.match(self.url),  # a proxy meant for the outside cannot reach this machine's loopback
        )

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def send(self, method: str, path: str, **content: Any) -> httpx.Response:
        """One request, and its successful answer.

        Raises:
            RewardUnavailable: no connection after all retries, no answer in time, or a server that is not ready.
            RewardRejected: status 4xx, with the server's sentence.
            RewardError: any other status that is not success.
        """
        for delay in (*RETRY_DELAYS, None):
            try:
                return self._checked(self._http.request(method, f"{self.url}{path}", **content))
            except _LOST as error:
                if delay is None:
                    raise RewardUnavailable(
                        f"no reward server answers at {self.url} ({_words(error)}); start one with: finpercep serve"
                    ) from error
                self._sleep(delay)
            except httpx.TimeoutException as error:
                raise RewardUnavailable(
                    f"{self.url} did not answer in time ({_words(error)}); raise the timeout or send fewer images at a time"
                ) from error
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise RewardUnavailable(
                    f"{self.url} is not an address of a reward server ({_words(error)}); expected http://HOST:PORT"
                ) from error
        raise AssertionError("the last try returns or raises")

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_success:
            return answer
        message = f"{self.url}: {_sentence(answer)}"
        if answer.status_code in _NOT_READY:
            raise RewardUnavailable(message)
        if answer.is_client_error:
            raise RewardRejected(message, answer.status_code)
        raise RewardError(message)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _sentence(answer: httpx.Response) -> str:
    """The server's own sentence, or the status when something else answered."""
    try:
        detail = json.loads(answer.content)["detail"]
    except (ValueError, KeyError, TypeError):
        detail = None
    return detail if isinstance(detail, str) else f"answered {answer.status_code} {answer.reason_phrase}"
