"""Middleware that refuses a body over a limit, whether its length was announced or not."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rm_server.refusal import Refusal


class BodyLimit:
    """Counts the bytes of each request's body as they come; over ``limit`` the route's read raises `Refusal` 413."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on with a counting ``receive``."""
        announced = 0
        if scope["type"] == "http":
            lengths = [value for name, value in scope["headers"] if name == b"content-length"]
            announced = int(lengths[0]) if lengths and lengths[0].isdigit() else 0
        received = 0

        async def counted() -> Message:
            nonlocal received
            if announced > self.limit:
                raise self._refusal(announced)
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                raise self._refusal(received)
            return message

        await self.app(scope, counted, send)

    def _refusal(self, size: int) -> Refusal:
        return Refusal(413, f"body must have at most {self.limit} bytes, got {size} or more; send fewer images at a time")
