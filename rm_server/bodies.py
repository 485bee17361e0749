"""Bodies: of ``POST /score`` for pictures (multipart, one raw picture, JSON with base64) → `Upload`s; of ``PUT /rungs/NAME``."""

from __future__ import annotations

import asyncio
import base64
import binascii

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from finpercep.wire import TENSOR_MEDIA_TYPE
from rm_server.pictures import Upload
from rm_server.problems import Problem

FIELDS = ("image", "lr")

_STRUCTURE = (b'"', b",", b":", b"[", b"{")
"""Of JSON; a body for N images has few more of these than N."""

RUNG_BYTES = 4096
"""Of the body that names a rung."""

INLINE_BYTES = 512 * 1024
"""A body up to this size is parsed on the event loop: handing it to another thread would take longer."""


class JsonUploads(BaseModel):
    """Pictures in base64."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str | list[str] = Field(description="A picture file in base64, or several.")
    lr: str | list[str] | None = Field(default=None, description="The low-resolution picture of each image, in base64.")


class NewRung(BaseModel):
    """Body of ``PUT /rungs/NAME``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(
        description="Folder in the model root: of a ladder that has the rung, or of that rung alone.",
        max_length=200,
        examples=["round-2", "run-7/rungs/RM_2"],
    )
    digest: str | None = Field(default=None, description="Digest that the rung must have.", max_length=200)


async def read_new_rung(request: Request) -> NewRung:
    """The body of ``PUT /rungs/NAME``. Raises `Problem`."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > RUNG_BYTES:
            sentence = f"body must have at most {RUNG_BYTES} bytes, got {len(body)} or more"
            raise Problem("too-large", sentence, field="body", expected=f"at most {RUNG_BYTES} bytes", received=len(body))
    try:
        return NewRung.model_validate_json(body)
    except ValidationError as error:
        raise Problem.of_json(error) from None


async def read_uploads(request: Request, kind: str, max_images: int) -> list[Upload]:
    """The pictures of a request whose content type is ``kind``. Raises `Problem`."""
    if kind == "multipart/form-data":
        return await _read_multipart(request, max_images)
    if kind == "application/json":
        return await _read_json(request, max_images)
    if kind.startswith("image/"):
        return [Upload(await request.body())]
    raise Problem(
        "unsupported-media-type",
        f"content type must be multipart/form-data with fields 'image', image/*, application/json or {TENSOR_MEDIA_TYPE}, "
        f"got {kind[:80] or 'none'}; try: curl -F image=@photo.png URL/score",
        field="Content-Type",
        expected=f"multipart/form-data, image/*, application/json or {TENSOR_MEDIA_TYPE}",
        received=kind[:80] or "none",
    )


async def _read_multipart(request: Request, max_images: int) -> list[Upload]:
    """Files named ``image``, and none or as many named ``lr``."""
    found: dict[str, list[bytes]] = {name: [] for name in FIELDS}
    try:
        async with request.form(max_files=2 * max_images, max_fields=8) as form:
            for name, value in form.multi_items():
                if name not in found or not isinstance(value, UploadFile):
                    received = f"a file {name[:40]!r}" if isinstance(value, UploadFile) else f"a text {name[:40]!r}"
                    raise Problem(
                        "bad-request",
                        f"multipart fields must be files named 'image' or 'lr' (curl -F image=@photo.png), got {received}",
                        field="body",
                        expected="files named 'image' or 'lr'",
                        received=received,
                    )
                found[name].append(await value.read())
    except HTTPException as error:
        if error.detail.startswith("Too many files"):  # Starlette's words are all that tells it from a damaged body
            raise _too_many(max_images, f"more than {2 * max_images} files") from error
        raise Problem("bad-request", f"multipart body cannot be read: {error.detail}", field="body") from error
    _check_counts(len(found["image"]), len(found["lr"]), max_images)
    return _paired(found["image"], found["lr"])


async def _read_json(request: Request, max_images: int) -> list[Upload]:
    """``{"image": BASE64 | [BASE64, …], "lr": …}``."""
    body = await request.body()
    if len(body) <= INLINE_BYTES:
        return _json_uploads(body, max_images)
    return await asyncio.to_thread(_json_uploads, body, max_images)


def _json_uploads(body: bytes, max_images: int) -> list[Upload]:
    if sum(map(body.count, _STRUCTURE)) > 16 * max_images + 64:  # before millions of small values become Python objects
        sentence = f"a request must have at most {max_images} images, and the body has many more values"
        raise Problem("too-large", sentence, field="body", expected=f"at most {max_images} images")
    try:
        sent = JsonUploads.model_validate_json(body)
    except ValidationError as error:
        raise Problem.of_json(error) from None
    images, lrs = (_listed(getattr(sent, name)) for name in FIELDS)
    _check_counts(len(images), len(lrs), max_images)
    return _paired([_decoded("image", text) for text in images], [_decoded("lr", text) for text in lrs])


def _paired(images: list[bytes], lrs: list[bytes]) -> list[Upload]:
    """Images with their low-resolution pictures, of which there are as many or none."""
    return [Upload(image, lrs[index] if lrs else None) for index, image in enumerate(images)]


def _check_counts(images: int, lrs: int, max_images: int) -> None:
    """Raises `Problem` where there are too many, too few, or not as many."""
    if not images:
        raise Problem("bad-request", "the body must have at least one file named 'image', got none", field="image")
    if images > max_images:
        raise _too_many(max_images, images)
    if lrs and lrs != images:
        sentence = f"there must be one 'lr' for each of the {images} images, or none, got {lrs}"
        raise Problem("bad-request", sentence, field="lr", expected=str(images), received=lrs)


def _too_many(max_images: int, received: int | str) -> Problem:
    sentence = f"a request must have at most {max_images} images, got {received}"
    return Problem("too-large", sentence, field="image", expected=f"at most {max_images} images", received=received)


def _listed(value: str | list[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else value


def _decoded(field: str, text: str) -> bytes:
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem("unprocessable", f"{field}: not base64: {error}", field=field, expected="base64") from None
