"""The body of ``POST /score`` for pictures: multipart, one raw picture, or JSON with base64 → `Upload`s."""

from __future__ import annotations

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


class JsonUploads(BaseModel):
    """Pictures in base64."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str | list[str] = Field(description="A picture file in base64, or several.")
    lr: str | list[str] | None = Field(default=None, description="The low-resolution picture of each image, in base64.")


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
        raise Problem("bad-request", f"multipart body cannot be read: {error.detail}", field="body") from error
    return _paired(found["image"], found["lr"], max_images)


async def _read_json(request: Request, max_images: int) -> list[Upload]:
    """``{"image": BASE64 | [BASE64, …], "lr": …}``."""
    try:
        sent = JsonUploads.model_validate_json(await request.body())
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in fault["loc"]) or "body"
        raise Problem("unprocessable", f"{field}: {fault['msg']}", field=field) from None
    decoded = {name: [_decoded(name, text) for text in _listed(getattr(sent, name))] for name in FIELDS}
    return _paired(decoded["image"], decoded["lr"], max_images)


def _paired(images: list[bytes], lrs: list[bytes], max_images: int) -> list[Upload]:
    """Images with their low-resolution pictures; raises `Problem` where there are too many, too few, or not as many."""
    if not images:
        raise Problem("bad-request", "the body must have at least one file named 'image', got none", field="image")
    if len(images) > max_images:
        sentence = f"a request must have at most {max_images} images, got {len(images)}"
        raise Problem("too-large", sentence, field="image", expected=f"at most {max_images}", received=len(images))
    if lrs and len(lrs) != len(images):
        sentence = f"there must be one 'lr' for each of the {len(images)} images, or none, got {len(lrs)}"
        raise Problem("bad-request", sentence, field="lr", expected=str(len(images)), received=len(lrs))
    return [Upload(image, lrs[index] if lrs else None) for index, image in enumerate(images)]


def _listed(value: str | list[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else value


def _decoded(field: str, text: str) -> bytes:
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem("unprocessable", f"{field}: not base64: {error}", field=field, expected="base64") from None
