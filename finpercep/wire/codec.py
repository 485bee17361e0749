"""`ScoreRequest` and `ScoreResponse` ⇄ safetensors bytes. Whatever the bytes, decoding raises nothing but `WireError`.

A tensor's name says its shape: ``images`` is N×3×H×W, ``image.0``, ``image.1``, … are 3×H×W each; ``lr``/``lr.i``,
``maps``/``map.i`` and ``grads``/``grad.i`` likewise. Everything else travels in the file's string metadata, under the names
listed below.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import safetensors
import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from safetensors.torch import save

from finpercep.errors import ConfigError, WireError
from finpercep.reward import RewardWeights
from finpercep.wire.messages import REQUEST, RESPONSE, ScoreRequest, ScoreResponse
from finpercep.wire.reply import WIRE_VERSION, ModelId, Timing, first_fault

REQUEST_METADATA = ("wire", "rung", "weights", "grad", "map")
RESPONSE_METADATA = ("wire", "model", "errors", "timing")
NUMBERS = ("score", "reward", "max_degradation", "mean_degradation")

DTYPES = {"U8": torch.uint8, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
"""safetensors' names of the dtypes that may travel."""

ENTRY_BYTES, METADATA_BYTES = 256, 4096
"""Of a request's header, at most: for each tensor it may name, and for its metadata."""

Tensors = dict[str, torch.Tensor]
Stack = torch.Tensor | tuple[torch.Tensor | None, ...] | None
Model = TypeVar("Model", bound=BaseModel)

_ERRORS = TypeAdapter(dict[int, str])


class TooManyImages(WireError):
    """A request of more images than its reader takes."""


class _WeightsJson(BaseModel):
    """`RewardWeights` as they travel."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    score: float
    max: float
    mean: float
    top_fraction: float


def encode_request(request: ScoreRequest) -> bytes:
    """A request as the body of ``POST /score``."""
    metadata = {
        "wire": str(WIRE_VERSION),
        "weights": json.dumps(dataclasses.asdict(request.weights)),
        "grad": json.dumps(request.grad),
        "map": json.dumps(request.map),
    }
    if request.rung is not None:
        metadata["rung"] = request.rung
    tensors = _pack(request.images, "images", "image") | _pack(request.lr, "lr", "lr")
    return save(tensors, metadata=metadata)


def decode_request(body: bytes, *, max_images: int | None = None) -> ScoreRequest:
    """The inverse of `encode_request`; options that are absent take their defaults.

    Args:
        body: the message.
        max_images: most images that are taken, each with an LR picture at most; None: any number.

    Raises:
        TooManyImages: it has more. Where the header says so, no tensor is made before.
        WireError: names the field, what was expected and what was received.
    """
    tensors, metadata = _open(REQUEST, body, REQUEST_METADATA, max_images)
    images = _unpack(REQUEST, tensors, "images", "image", None)
    lr = _unpack(REQUEST, tensors, "lr", "lr", None)
    if tensors:
        raise WireError(REQUEST, "tensors", "images, or image.0, image.1, …; lr likewise", sorted(tensors)[0])
    request = ScoreRequest(
        images=() if images is None else images,  # type: ignore[arg-type]  # with no count given no entry is None
        rung=metadata.get("rung"),
        weights=_weights(metadata.get("weights")),
        grad=_flag("grad", metadata.get("grad", "false")),
        map=_flag("map", metadata.get("map", "false")),
        lr=lr,  # type: ignore[arg-type]
    )
    if max_images is not None and len(request) > max_images:
        raise TooManyImages(REQUEST, "images", f"at most {max_images} images", len(request))
    return request


def encode_response(response: ScoreResponse) -> bytes:
    """A response as the body of the reply."""
    metadata = {
        "wire": str(WIRE_VERSION),
        "model": response.model.model_dump_json(),
        "errors": json.dumps({str(index): text for index, text in response.errors.items()}),
        "timing": response.timing.model_dump_json(),
    }
    tensors = {name: getattr(response, name).detach().cpu().clone() for name in NUMBERS}  # clone: see `_pack`
    return save(tensors | _pack(response.maps, "maps", "map") | _pack(response.grads, "grads", "grad"), metadata=metadata)


def decode_response(body: bytes) -> ScoreResponse:
    """The inverse of `encode_response`.

    Raises:
        WireError: names the field, what was expected and what was received.
    """
    tensors, metadata = _open(RESPONSE, body, RESPONSE_METADATA)
    for name in NUMBERS:
        if name not in tensors:
            raise WireError(RESPONSE, name, "a tensor", "none")
    numbers = {name: tensors.pop(name) for name in NUMBERS}
    count = numbers["score"].numel()
    maps = _unpack(RESPONSE, tensors, "maps", "map", count)
    grads = _unpack(RESPONSE, tensors, "grads", "grad", count)
    if tensors:
        raise WireError(RESPONSE, "tensors", "a tensor of contract 3", sorted(tensors)[0])
    try:
        errors = _ERRORS.validate_json(metadata.get("errors", "{}"))
    except ValidationError as error:
        raise first_fault(f"{RESPONSE}: errors", error) from None
    model = _parsed(ModelId, "model", metadata)
    return ScoreResponse(
        **numbers, model=model, timing=_parsed(Timing, "timing", metadata), maps=maps, grads=grads, errors=errors
    )


def _open(where: str, body: bytes, known: Collection[str], max_images: int | None = None) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of a safetensors body, the version checked first so that an old peer gets a clear answer."""
    try:
        header = _header(where, body, max_images)
        views = safetensors.deserialize(body)  # type: ignore[no-untyped-call]
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise WireError(where, "body", "a safetensors file", f"{len(body)} bytes: {error}") from None
    metadata: dict[str, str] = header.get("__metadata__") or {}
    if metadata.get("wire") != str(WIRE_VERSION):
        raise WireError(where, "wire", f"version {WIRE_VERSION}", metadata.get("wire"))
    for key in metadata:
        if key not in known:
            raise WireError(where, "metadata", f"one of {', '.join(known)}", key)
    return {name: _tensor(where, name, view) for name, view in views}, metadata


def _header(where: str, body: bytes, max_images: int | None) -> dict[str, Any]:
    """The JSON at the head of a safetensors body. Raises `TooManyImages`, and `ValueError` where there is none."""
    length = int.from_bytes(body[:8], "little")
    if length > len(body) - 8:
        raise ValueError(f"a header of {length} bytes is announced")
    most = None if max_images is None else 2 * max_images
    if most is not None and length > METADATA_BYTES + ENTRY_BYTES * most:
        expected = f"at most {max_images} images, and a header of at most {METADATA_BYTES + ENTRY_BYTES * most} bytes"
        raise TooManyImages(where, "images", expected, f"a header of {length} bytes")
    header = json.loads(body[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    tensors = len(header) - ("__metadata__" in header)
    if most is not None and tensors > most:
        raise TooManyImages(where, "images", f"at most {max_images} images", f"{tensors} tensors")
    return header


def _tensor(where: str, name: str, view: Mapping[str, object]) -> torch.Tensor:
    dtype, shape, data = view["dtype"], view["shape"], view["data"]
    if dtype not in DTYPES:
        raise WireError(where, name, f"dtype {', '.join(DTYPES)}", dtype)
    assert isinstance(shape, list) and isinstance(data, bytearray)
    if not data:
        raise WireError(where, name, "a tensor that is not empty", f"shape {tuple(shape)}")
    return torch.frombuffer(data, dtype=DTYPES[dtype]).reshape(shape)


def _pack(stack: torch.Tensor | Sequence[torch.Tensor | None] | None, stacked: str, single: str) -> Tensors:
    if stack is None:
        return {}
    if isinstance(stack, torch.Tensor):
        return {stacked: stack.detach().cpu().contiguous()}
    # clone: safetensors refuses two names for one memory, and views of one batch are just that
    form = torch.contiguous_format
    return {
        f"{single}.{index}": one.detach().cpu().clone(memory_format=form) for index, one in enumerate(stack) if one is not None
    }


def _unpack(where: str, tensors: Tensors, stacked: str, single: str, count: int | None) -> Stack:
    """Take ``stacked``, or ``single.0``, ``single.1``, … out of ``tensors``.

    Args:
        count: how many there are, missing ones being None; or None when they must be numbered without a gap.
    """
    pattern = re.compile(re.escape(single) + r"\.(0|[1-9][0-9]{0,5})", re.ASCII)
    found = {int(match[1]): tensors.pop(name) for name in list(tensors) if (match := pattern.fullmatch(name))}
    if stacked in tensors:
        if found:
            raise WireError(where, stacked, f"either {stacked} or {single}.i", "both")
        return tensors.pop(stacked)
    if not found:
        return None
    size = len(found) if count is None else count
    if max(found) >= size:
        raise WireError(where, f"{single}.i", f"numbers 0 … {size - 1}", max(found))
    return tuple(found.get(index) for index in range(size))


def _weights(text: str | None) -> RewardWeights:
    if text is None:
        return RewardWeights()
    try:
        return RewardWeights(**_WeightsJson.model_validate_json(text).model_dump())
    except ValidationError as error:
        raise first_fault(f"{REQUEST}: weights", error) from None
    except ConfigError as error:
        raise WireError(REQUEST, "weights", str(error), text) from None


def _flag(name: str, text: str) -> bool:
    if text not in {"true", "false"}:
        raise WireError(REQUEST, name, "true or false", text)
    return text == "true"


def _parsed(kind: type[Model], name: str, metadata: Mapping[str, str]) -> Model:
    if name not in metadata:
        raise WireError(RESPONSE, name, "metadata", "none")
    try:
        return kind.model_validate_json(metadata[name])
    except ValidationError as error:
        raise first_fault(f"{RESPONSE}: {name}", error) from None
