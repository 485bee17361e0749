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
        """Pass the call on with a ``receive`` that counts."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        held = announced = _announced(scope)
        if announced > self.body_bytes:
            held = 0  # refused when it is read
        elif not self._has_room(held):
            await answer(self._full(held))(scope, receive, send)
            return
        self.inside += held
        received, ended = 0, False
        deadline: float | None = None

        async def counted() -> Message:
            nonlocal received, held, ended, deadline
            if announced > self.body_bytes:
                raise self._too_large(announced)
            if ended:
                return await receive()  # the end of the connection
            now = asyncio.get_running_loop().time()
            deadline = deadline or now + self.body_seconds
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise Problem("too-slow", f"the body did not come in {self.body_seconds:g} s; {received} bytes had") from None
            received += len(message.get("body", b""))
            ended = not message.get("more_body", False)
            if received > self.body_bytes:
                raise self._too_large(received)
            if received > held:
                if not self._has_room(received - held):
                    raise self._full(received)
                self.inside += received - held
                held = received
            return message

        async def paced(message: Message) -> None:
            """A large answer goes out in parts, each of which must be taken in time; meanwhile it counts as inside."""
            nonlocal held
            body = message.get("body", b"")
            if len(body) <= PART_BYTES:
                await send(message)
                return
            self.inside += len(body)
            held += len(body)
            for start in range(0, len(body), PART_BYTES):
                more = message.get("more_body", False) or start + PART_BYTES < len(body)
                try:
                    async with asyncio.timeout(self.body_seconds):
                        await send({**message, "body": body[start : start + PART_BYTES], "more_body": more})
                except TimeoutError:
                    raise ReaderStalled(f"the answer was not taken in {self.body_seconds:g} s; {start} bytes were") from None

        try:
            await self.app(scope, counted, paced)
        finally:
            self.inside -= held

    def _has_room(self, more: int) -> bool:
        return not self.inside or self.inside + more <= self.house_bytes

    def _too_large(self, size: int) -> Problem:
        return Problem(
            "too-large",
            f"body must have at most {self.body_bytes} bytes, got {size} or more; send fewer images at a time",
            field="body",
            expected=f"at most {self.body_bytes} bytes",
            received=size,
        )

    def _full(self, size: int) -> Problem:
        return busy(
            f"bodies of {self.inside} bytes are being answered and {size} more would pass {self.house_bytes}", RETRY_AFTER
        )


def _announced(scope: Scope) -> int:
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(lengths[0]) if lengths and lengths[0].isdigit() else 0
