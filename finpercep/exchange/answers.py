"""What is checked of every reply: that it can be read, is complete, and comes from the model it should."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from finpercep.errors import RewardChanged, RewardError, WireError
from finpercep.wire import ModelId

ITEM_STATUSES = frozenset({413, 422, 500})
"""Statuses by which a request of one image says what is wrong with that image, or that the model failed on it."""

_INDEX = re.compile(r"-?[0-9]+", re.ASCII)
"""How a rung is asked for by its place in the ladder: ``0``, ``-1``."""


class Pins:
    """Which model may answer: a rung is held to the digest it had first.

    One that is asked for by its place, or not at all (the server's default), is held to the rung that answered there first.

    Args:
        digests: rung → digest it must have from the beginning.
    """

    def __init__(self, digests: Mapping[str, str] | None) -> None:
        self._digests = dict(digests or {})
        self._places: dict[str | None, str] = {}
        self._lock = threading.Lock()

    def check(self, url: str, asked: str | None, model: ModelId) -> None:
        """Raises `RewardChanged` when another model answers than before."""
        with self._lock:
            expected = self._places.get(asked) if _is_place(asked) else asked
            if expected is not None and expected not in {model.rung, model.digest}:
                raise RewardChanged(f"{url}: {expected} was expected to answer, {model.rung} did; restart to go on with it")
            if _is_place(asked):
                self._places[asked] = model.rung
        self.pin(url, model.rung, model.digest)

    def known(self, asked: str | None) -> tuple[str, str] | None:
        """Name and digest of the rung that must answer, or None before that is known."""
        with self._lock:
            wanted = self._places.get(asked, asked)
            return next(((rung, digest) for rung, digest in self._digests.items() if wanted in {rung, digest}), None)

    def replace(self, rung: str, digest: str, default: str) -> None:
        """Expect a rung's new digest, and that the server now answers by ``default`` when it is asked for no rung by name."""
        with self._lock:
            self._digests[rung] = digest
            self._places = {None: default} if None in self._places else {}  # a rung that is new moves the others' places

    def pin(self, url: str, rung: str, digest: str) -> None:
        """Hold a rung to its digest; raises `RewardChanged` when it had another before."""
        with self._lock:
            expected = self._digests.setdefault(rung, digest)
        if digest != expected:
            raise RewardChanged(
                f"{url}: the model behind {rung} has changed (digest {digest}, expected {expected}); "
                "rewards of two models cannot be compared: serve the old one again, or start a new run"
            )


def _is_place(asked: str | None) -> bool:
    return asked is None or _INDEX.fullmatch(asked) is not None


@contextmanager
def reading(url: str) -> Iterator[None]:
    """A reply that breaks the contract is no reward."""
    try:
        yield
    except WireError as error:
        raise RewardError(f"{url} sent a reply that this client cannot read: {error}") from error


def check_count(url: str, asked: int, answered: int) -> None:
    """A reply must be about as many images as were asked about. Raises `RewardError`."""
    if asked != answered:
        raise RewardError(f"{url} was asked about {asked} images and answered about {answered}")
