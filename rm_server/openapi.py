"""What the OpenAPI document says beyond what the routes' types do: bodies, their examples, and problem replies."""

from __future__ import annotations

from typing import Any

from finpercep.wire import TENSOR_MEDIA_TYPE
from rm_server.bodies import JsonUploads, NewRung
from rm_server.problems import KINDS, MEDIA_TYPE

_BINARY = {"type": "string", "format": "binary"}
_PICTURES = {"type": "array", "items": _BINARY}
_FILES = {
    "type": "object",
    "required": ["image"],
    "properties": {
        "image": {**_PICTURES, "description": "Picture files."},
        "lr": {**_PICTURES, "description": "The low-resolution picture of each image, for a rung that takes them."},
    },
}
_DOT = "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAAAAABWESUoAAAAE0lEQVR4nGNgGAWjYBSMglEABAAEIAABN2cm5AAAAABJRU5ErkJggg=="

SCORE_DOCUMENT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _FILES},
            "image/*": {"schema": _BINARY},
            "application/json": {"schema": JsonUploads.model_json_schema(), "example": {"image": _DOT}},
            TENSOR_MEDIA_TYPE: {"schema": _BINARY},
        },
    }
}
"""Of ``POST /score``."""

RUNG_DOCUMENT: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": NewRung.model_json_schema()}}}
}
"""Of ``PUT /rungs/NAME``."""

_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": "urn:finpercep:KIND"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was required, what was received, what to do next."},
        "field": {"type": "string", "description": "The part of the request that is wrong."},
        "expected": {"type": "string"},
        "received": {},
    },
}

_EXAMPLES = {
    "bad-request": "the body must have at least one file named 'image', got none",
    "unauthorised": "send the server's token: Authorization: Bearer TOKEN",
    "not-found": "unknown rung 'RM_9'; this server has RM_0, RM_1, RM_2",
    "too-slow": "the body did not come in 60 s; 1024 bytes had",
    "too-large": "a request must have at most 256 images, got 300",
    "unsupported-media-type": "content type must be …, got text/plain",
    "unprocessable": "image must be at least 32 px on each side, got 64x20",
    "failed": "the server failed on this request; its log says why",
    "busy": "…; try again in 2 s",
}


def _reply(kind: str, detail: str) -> dict[str, Any]:
    status, title = KINDS[kind]
    example = {"type": f"urn:finpercep:{kind}", "title": title, "status": status, "detail": detail}
    return {"description": f"{title} (RFC 9457).", "content": {MEDIA_TYPE: {"schema": _PROBLEM, "example": example}}}


PROBLEM_REPLIES: dict[int | str, dict[str, Any]] = {KINDS[kind][0]: _reply(kind, detail) for kind, detail in _EXAMPLES.items()}
"""Of every route."""

RUNG_REPLIES: dict[int | str, dict[str, Any]] = {
    KINDS["conflict"][0]: _reply("conflict", "round-2/RM_2 has digest sha256:…, not the one that was asked for")
}
"""Of ``PUT /rungs/NAME`` besides."""
