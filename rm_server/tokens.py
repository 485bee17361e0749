"""Who may call: bearer tokens, compared in constant time; without one, whoever knows the server by a loopback name."""

from __future__ import annotations

import hmac
import re

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from rm_server.problems import Problem, answer
from rm_server.settings import is_loopback

_PORT = re.compile(r":[0-9]*$", re.ASCII)


def require(request: Request, token: SecretStr | None) -> None:
    """Let a request pass that carries ``token``; without a token to ask for, every one.

    Raises:
        Problem: it carries none, or another.
    """
    if token is None:
        return
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and hmac.compare_digest(given.encode(), token.get_secret_value().encode()):
        return
    raise Problem(
        "unauthorised",
        "send the server's token: Authorization: Bearer TOKEN",
        field="Authorization",
        expected="Bearer TOKEN",
        received="another token" if given else "none",
        headers={"WWW-Authenticate": 'Bearer realm="finpercep"'},
    )


class LoopbackNames:
    """Middleware of a server without a token: refuses requests for other names than localhost and loopback addresses.

    A web page whose own name was made to lead to this machine (DNS rebinding) would otherwise be answered.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, or refuse it."""
        host = Headers(scope=scope).get("host", "")[:80] if scope["type"] == "http" else "localhost"
        if is_loopback(_PORT.sub("", host).strip("[]").lower()):
            await self.app(scope, receive, send)
            return
        sentence = (
            f"without a token this server answers to localhost and loopback addresses alone, got {host!r}; set FINPERCEP_TOKEN"
        )
        problem = Problem("bad-request", sentence, field="Host", expected="localhost or a loopback address", received=host)
        await answer(problem)(scope, receive, send)
