"""The page at ``/`` and the description at ``/docs``: a fixed list of files, read once, served with strict headers.

A request chooses among `FILES` by name; no path of a client is ever opened. The page loads nothing from anywhere else, and its
policy lets it run no script and no style but its own files.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import FastAPI, Request, Response

from rm_server.problems import Problem

FILES = {
    "index.html": "text/html; charset=utf-8",
    "docs.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "sample.jpg": "image/jpeg",
    **dict.fromkeys(
        (
            "api.js",
            "clipboard.js",
            "colours.js",
            "curl.js",
            "defects.js",
            "docs.js",
            "downloads.js",
            "elements.js",
            "intake.js",
            "map_png.js",
            "messages.js",
            "numbers.js",
            "openapi.js",
            "page.js",
            "picture.js",
            "planting.js",
            "region_list.js",
            "regions.js",
            "scoring.js",
            "viewer.js",
        ),
        "text/javascript; charset=utf-8",
    ),
}
"""Every file of the page → its media type."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Content-Security-Policy of the page."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",  # asked again each time, and answered 304 while nothing changed
}


@dataclass(frozen=True)
class WebFile:
    """A file of the page, ready to be sent.

    Attributes:
        body: its bytes.
        media_type: of `FILES`.
        etag: a strong entity tag, in its quotes.
    """

    body: bytes
    media_type: str
    etag: str


def read_files() -> dict[str, WebFile]:
    """All of `FILES`, from the installed package."""
    folder = files("rm_server").joinpath("web")
    found = {}
    for name, media_type in FILES.items():
        body = folder.joinpath(name).read_bytes()
        found[name] = WebFile(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
    return found


def add_web_page(app: FastAPI) -> None:
    """Add ``/``, ``/docs`` and ``/web/NAME``; open to everyone, because they hold nothing of the model's or a caller's."""
    served = read_files()

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        return _answer(request, served["index.html"])

    @app.api_route("/docs", methods=["GET", "HEAD"], include_in_schema=False)
    async def docs(request: Request) -> Response:
        return _answer(request, served["docs.html"])

    @app.api_route("/web/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def web_file(request: Request, name: str) -> Response:
        if name not in served:
            raise Problem("not-found", "the page has no file of this name")
        return _answer(request, served[name])


def _answer(request: Request, file: WebFile) -> Response:
    """The file, or 304 for a browser that has it."""
    headers = {**HEADERS, "ETag": file.etag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.etag in known or known == ["*"]:
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=file.media_type, headers=headers)
