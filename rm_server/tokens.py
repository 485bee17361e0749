"""Who may call: bearer tokens, compared in constant time."""

from __future__ import annotations

import hmac

from pydantic import SecretStr
from starlette.requests import Request

from rm_server.problems import Problem


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
