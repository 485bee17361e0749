"""Middleware at the door: how large a body may be, how much all of them together, and how long one may take in or out."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rm_server.problems import Problem, ReaderStalled, answer, busy

RETRY_AFTER = 1

PART_BYTES = 1024 * 1024
"""Of an answer that goes out at once."""


class BodyGate:
    """Counts the bytes of every body as they come, and holds them against the house until its answer is sent.

    Whatever is wrong is raised where the route reads the body; a house that is full is answered before the route is asked.

    Args:
        app: what is behind the door.
        body_bytes: of one body.
        house_bytes: of all of them together; a single larger one still gets in when there is no other.
        body_seconds: from the first read of a body to its end; and for each part of an answer.
    """

    def __init__(self, app: ASGIApp, *, body_bytes: int, house_bytes: int, body_seconds: float) -> None:
        self.app = app
        self.body_bytes, self.house_bytes, self.body_seconds = body_bytes, house_bytes, body_seconds
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on with a ``receive`` that counts and a ``send`` that waits only so long."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = _Visit(self, _announced(scope), receive, send)
        if visit.announced <= self.body_bytes:  # a larger one is refused when it is read
            if not self.has_room(visit.announced):
                await answer(self.full(visit.announced))(scope, receive, visit.send)
                return
            visit.hold(visit.announced)
        try:
            await self.app(scope, visit.receive, visit.send)
        finally:
            self.inside -= visit.held

    def has_room(self, more: int) -> bool:
        """Whether so many bytes more may come in."""
        return not self.inside or self.inside + more <= self.house_bytes

    def too_large(self, size: int) -> Problem:
        """What a body of that size is told."""
        return Problem(
            "too-large",
            f"body must have at most {self.body_bytes} bytes, got {size} or more; send fewer images at a time",
            field="body",
            expected=f"at most {self.body_bytes} bytes",
            received=size,
        )

    def full(self, size: int) -> Problem:
        """What so many bytes more are told while there is no room."""
        return busy(
            f"bodies of {self.inside} bytes are being answered and {size} more would pass {self.house_bytes}", RETRY_AFTER
        )


class _Visit:
    """One request at the gate, and the bytes it holds of the house."""

    def __init__(self, gate: BodyGate, announced: int, receive: Receive, send: Send) -> None:
        self.gate, self.announced = gate, announced
        self.held = 0
        self._receive, self._send = receive, send
        self._received, self._ended, self._taken = 0, False, 0
        self._deadline: float | None = None

    def hold(self, size: int) -> None:
        """Count so many bytes more as inside."""
        self.gate.inside += size
        self.held += size

    async def receive(self) -> Message:
        """The next part of the body. Raises `Problem` when it is too large, too slow, or there is no room for it."""
        gate = self.gate
        if self.announced > gate.body_bytes:
            raise gate.too_large(self.announced)
        if self._ended:
            return await self._receive()  # the end of the connection
        self._deadline = self._deadline or asyncio.get_running_loop().time() + gate.body_seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            sentence = f"the body did not come in {gate.body_seconds:g} s; {self._received} bytes had"
            raise Problem("too-slow", sentence) from None
        self._received += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        if self._received > gate.body_bytes:
            raise gate.too_large(self._received)
        if (more := self._received - self.held) > 0:
            if not gate.has_room(more):
                raise gate.full(self._received)
            self.hold(more)
        return message

    async def send(self, message: Message) -> None:
        """A large answer goes out in parts, and meanwhile counts as inside. Raises `ReaderStalled`."""
        body = message.get("body", b"")
        if len(body) <= PART_BYTES:
            await self._sent(message)
            return
        self.hold(len(body))
        for start in range(0, len(body), PART_BYTES):
            more = message.get("more_body", False) or start + PART_BYTES < len(body)
            await self._sent({**message, "body": body[start : start + PART_BYTES], "more_body": more})

    async def _sent(self, message: Message) -> None:
        seconds = self.gate.body_seconds
        try:
            async with asyncio.timeout(seconds):
                await self._send(message)
        except TimeoutError:
            raise ReaderStalled(f"the answer was not taken in {seconds:g} s; {self._taken} bytes were") from None
        self._taken += len(message.get("body", b""))


def _announced(scope: Scope) -> int:
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(lengths[0]) if lengths and lengths[0].isdigit() else 0
