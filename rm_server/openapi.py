"""What the OpenAPI document says beyond what the routes' types do: bodies, their examples, and problem replies."""

from __future__ import annotations

from typing import Any

from finpercep.wire import TENSOR_MEDIA_TYPE
from rm_server.bodies import JsonUploads
from rm_server.problems import MEDIA_TYPE

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

PROBLEM_REPLIES: dict[int | str, dict[str, Any]] = {
    status: {
        "description": f"{text} (RFC 9457).",
        "content": {
            MEDIA_TYPE: {
                "schema": _PROBLEM,
                "example": {"type": f"urn:finpercep:{kind}", "title": text, "status": status, "detail": detail},
            }
        },
    }
    for status, kind, text, detail in (
        (400, "bad-request", "The request cannot be understood", "the body must have at least one file named 'image', got none"),
        (401, "unauthorised", "A token is needed", "send the server's token: Authorization: Bearer TOKEN"),
        (404, "not-found", "There is no such thing here", "unknown rung 'RM_9'; this server has RM_0, RM_1, RM_2"),
        (408, "too-slow", "The body did not come in time", "the body did not come in 60 s; 1024 bytes had"),
        (413, "too-large", "The request is larger than this server takes", "a request must have at most 256 images, got 300"),
        (
            415,
            "unsupported-media-type",
            "The body is of a kind this server does not read",
            "content type must be …, got text/plain",
        ),
        (422, "unprocessable", "The request breaks the contract", "image must be at least 32 px on each side, got 64x20"),
        (503, "busy", "The server has no room now", "…; try again in 2 s"),
    )
}
