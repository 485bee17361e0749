"""CONTRACT 3, version 1: what a reward server and its clients say to each other.

    reply.py      JSON for people: the reply of POST /score and of GET /model
    messages.py   safetensors for machines: the request and the response as validated dataclasses
    codec.py      those dataclasses ⇄ bytes, lossless both ways

Pixels are never compressed lossily and nothing is ever pickled. Knows nothing about servers, clients or models.
Changing a name, a type or a meaning here is a new `WIRE_VERSION` (`tests/contracts/test_wire_contract.py` holds the snapshot).
"""

from finpercep.errors import WireError
from finpercep.wire.codec import decode_request, decode_response, encode_request, encode_response
from finpercep.wire.messages import PIXEL_DTYPES, ScoreRequest, ScoreResponse, check_images
from finpercep.wire.reply import (
    TENSOR_MEDIA_TYPE,
    WIRE_HEADER,
    WIRE_VERSION,
    ItemReply,
    ModelId,
    ModelReply,
    RegionReply,
    RungReply,
    ScoreReply,
    Timing,
    parse_reply,
)

__all__ = [
    "PIXEL_DTYPES",
    "TENSOR_MEDIA_TYPE",
    "WIRE_HEADER",
    "WIRE_VERSION",
    "ItemReply",
    "ModelId",
    "ModelReply",
    "RegionReply",
    "RungReply",
    "ScoreReply",
    "ScoreRequest",
    "ScoreResponse",
    "Timing",
    "WireError",
    "check_images",
    "decode_request",
    "decode_response",
    "encode_request",
    "encode_response",
    "parse_reply",
]
