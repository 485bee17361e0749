"""What a request, or one image of it, is told when it gets no result: RFC 9457 problem details. Knows no route.

A `Problem` is raised anywhere and answered by `answer`; in a reply about several images its sentence is that image's ``error``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse

from finpercep.errors import FinpercepError, SchemaError
from finpercep.wire.codec import TooManyImages

MEDIA_TYPE = "application/problem+json"

KINDS = {
    "bad-request": (400, "The request cannot be understood"),
    "unauthorised": (401, "A token is needed"),
    "not-found": (404, "There is no such thing here"),
    "too-slow": (408, "The body did not come in time"),
    "conflict": (409, "The rung was not put in place"),
    "too-large": (413, "The request is larger than this server takes"),
    "unsupported-media-type": (415, "The body is of a kind this server does not read"),
    "unprocessable": (422, "The request breaks the contract"),
    "failed": (500, "The server failed"),
    "not-ready": (503, "The server is not ready"),
    "busy": (503, "The server has no room now"),
}
"""Kind of problem → status and title. The type is ``urn:finpercep:KIND``."""

GONE = 499
"""Status of a request whose client hung up before its answer; it stands in logs and metrics alone."""


UNSAID: Any = object()
"""What was received is not said; it may be None."""

_UNION_TAGS = ("str", "list[str]")
"""What pydantic says of the member of a union it tried, between the names of fields."""


class Problem(FinpercepError):
    """No result, and why.

    Args:
        kind: a key of `KINDS`.
        sentence: what was required, what was received, what to do next.
        field: the part of the request that is wrong.
        expected: what it must be.
        received: what it is, where that is worth saying.
        headers: of the answer, ``Retry-After`` for one.
        status: HTTP status, where it is not that of ``kind``.

    Attributes:
        status: HTTP status, used when the whole request fails.
    """

    def __init__(
        self,
        kind: str,
        sentence: str,
        *,
        field: str | None = None,
        expected: str | None = None,
        received: object = UNSAID,
        headers: Mapping[str, str] | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(sentence)
        self.kind, self.field, self.expected, self.received = kind, field, expected, received
        self.headers, self.status = dict(headers or {}), status or KINDS[kind][0]

    @classmethod
    def of_schema(cls, error: SchemaError) -> Problem:
        """A message that breaks a contract, or is larger than this server takes."""
        kind = "too-large" if isinstance(error, TooManyImages) else "unprocessable"
        return cls(kind, str(error), field=error.field, expected=error.expected, received=error.received)

    @classmethod
    def of_json(cls, error: ValidationError) -> Problem:
        """A JSON body of another shape: the fault that lies deepest, since those above it follow from it."""
        fault = max(error.errors(include_url=False, include_input=False), key=lambda one: len(one["loc"]))
        field = ".".join(str(part) for part in fault["loc"] if part not in _UNION_TAGS) or "body"
        return cls("unprocessable", f"{field}: {fault['msg']}", field=field)


class ReaderStalled(Exception):
    """Whoever asked does not take its answer."""


def busy(sentence: str, retry_after: int) -> Problem:
    """No room now; there may be after so many seconds."""
    return Problem("busy", f"{sentence}; try again in {retry_after} s", headers={"Retry-After": str(retry_after)})


def answer(problem: Problem) -> JSONResponse:
    """The HTTP answer of a problem."""
    record: dict[str, Any] = {
        "type": f"urn:finpercep:{problem.kind}",
        "title": KINDS[problem.kind][1],
        "status": problem.status,
        "detail": str(problem),
    }
    for name in ("field", "expected"):
        if (value := getattr(problem, name)) is not None:
            record[name] = value
    if problem.received is not UNSAID:
        record["received"] = problem.received if isinstance(problem.received, str | int | bool) else repr(problem.received)
    return JSONResponse(record, status_code=problem.status, media_type=MEDIA_TYPE, headers=problem.headers)
