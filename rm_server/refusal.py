"""A request, or one image of it, that gets no result: an HTTP status and one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from finpercep.errors import FinpercepError

UNPROCESSABLE = 422
SERVER_FAULT = 500


class Refusal(FinpercepError):
    """No result, because of the request (status 4xx) or because the model failed (500).

    Attributes:
        status: HTTP status, used when the whole request fails.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def refuse_single(results: Sequence[object]) -> None:
    """A request of one image fails with that image; in a larger one the neighbours still get their results."""
    if len(results) == 1 and isinstance(results[0], Refusal):
        raise results[0]
