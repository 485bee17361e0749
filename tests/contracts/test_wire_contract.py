"""Contract 3: the snapshot that makes a silent change fail, round trips, and a decoder nothing can upset."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import struct

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from safetensors import deserialize
from safetensors.torch import save

from finpercep import wire
from finpercep.reward import RewardWeights
from finpercep.wire import (
    ItemReply,
    ModelId,
    ModelReply,
    RegionReply,
    RungReply,
    ScoreReply,
    ScoreRequest,
    ScoreResponse,
    Timing,
    WireError,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from finpercep.wire.codec import TooManyImages

MODEL = ModelId(name="ladder", rung="RM_2", digest="abc")
TIMING = Timing(queue_ms=0.5, batch_ms=1, compute_ms=2.25)
QUICK = settings(max_examples=60, deadline=None)


def metadata_of(body: bytes) -> dict[str, str]:
    return json.loads(body[8 : 8 + struct.unpack("<Q", body[:8])[0]])["__metadata__"]


def response(count: int = 2, **changes: object) -> ScoreResponse:
    numbers = {name: torch.linspace(0.1, 0.9, count) for name in ("score", "reward", "max_degradation", "mean_degradation")}
    return ScoreResponse(**(numbers | {"model": MODEL, "timing": TIMING} | changes))


# --- the snapshot: changing any of this is a new WIRE_VERSION ---


def test_json_names_are_those_of_the_architecture():
    fields = {kind.__name__: list(kind.model_fields) for kind in (ScoreReply, ItemReply, ModelId, Timing, RegionReply)}
    assert wire.WIRE_VERSION == 1
    assert fields == {
        "ScoreReply": ["items", "model", "timing"],
        "ItemReply": ["score", "reward", "max_degradation", "mean_degradation", "regions", "map", "error"],
        "ModelId": ["name", "rung", "digest"],
        "Timing": ["queue_ms", "batch_ms", "compute_ms"],
        "RegionReply": ["box", "area", "mean", "peak"],
    }
    assert list(ModelReply.model_fields) == ["name", "rung", "digest", "rungs", "wire"]
    assert list(RungReply.model_fields) == ["name", "digest", "has_map", "takes_lr"]
    assert (wire.WIRE_HEADER, wire.TENSOR_MEDIA_TYPE) == ("finpercep-wire", "application/x-safetensors")


def test_a_reply_reads_as_it_always_did():
    region = RegionReply(box=(1, 2, 3, 4), area=4, mean=0.5, peak=0.75)
    good = ItemReply(score=0.5, reward=1.25, max_degradation=0.5, mean_degradation=0.25, regions=(region,), map="cG5n")
    reply = ScoreReply(items=(good, ItemReply(error="not a picture")), model=MODEL, timing=TIMING)
    text = (
        '{"items":[{"score":0.5,"reward":1.25,"max_degradation":0.5,"mean_degradation":0.25,'
        '"regions":[{"box":[1,2,3,4],"area":4,"mean":0.5,"peak":0.75}],"map":"cG5n","error":null},'
        '{"score":null,"reward":null,"max_degradation":null,"mean_degradation":null,"regions":null,"map":null,'
        '"error":"not a picture"}],"model":{"name":"ladder","rung":"RM_2","digest":"abc"},'
        '"timing":{"queue_ms":0.5,"batch_ms":1.0,"compute_ms":2.25}}'
    )
    assert reply.model_dump_json() == text
    assert wire.parse_reply(ScoreReply, text) == reply


def test_request_bytes_have_the_contracts_names():
    body = encode_request(ScoreRequest(torch.zeros(2, 3, 4, 4), "RM_1", RewardWeights(1, 2, 3, 0.5), grad=True))
    weights = '{"score": 1, "max": 2, "mean": 3, "top_fraction": 0.5}'
    assert metadata_of(body) == {"wire": "1", "rung": "RM_1", "weights": weights, "grad": "true", "map": "false"}
    assert [name for name, _ in deserialize(body)] == ["images"]
    several = encode_request(ScoreRequest((torch.zeros(3, 4, 4), torch.zeros(3, 5, 6))))
    assert sorted(name for name, _ in deserialize(several)) == ["image.0", "image.1"]


def test_response_bytes_have_the_contracts_names():
    stacked = response(maps=torch.zeros(2, 4, 4), grads=torch.zeros(2, 3, 4, 4))
    body = encode_response(stacked)
    assert sorted(metadata_of(body)) == ["errors", "model", "timing", "wire"]
    names = {"score", "reward", "max_degradation", "mean_degradation", "maps", "grads"}
    assert {name for name, _ in deserialize(body)} == names
    apart = response(maps=(torch.zeros(4, 4), torch.zeros(5, 5)), grads=(torch.zeros(3, 4, 4), torch.zeros(3, 5, 5)))
    names = {name for name, _ in deserialize(encode_response(apart))}
    assert {"map.0", "map.1", "grad.0", "grad.1"} < names


# --- round trips ---

dtypes = st.sampled_from(wire.PIXEL_DTYPES)
sides = st.integers(1, 5)
weights = st.builds(
    RewardWeights, *[st.floats(0, 1e6)] * 3, top_fraction=st.floats(0, 1, exclude_min=True, allow_subnormal=False)
)


def pixels(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(shape, generator=generator)
    return (values * 255).byte() if dtype == torch.uint8 else values.to(dtype)


@st.composite
def requests(draw: st.DrawFn) -> ScoreRequest:
    dtype, seed = draw(dtypes), draw(st.integers(0, 1000))
    if draw(st.booleans()):
        images = pixels((draw(sides), 3, draw(sides), draw(sides)), dtype, seed)
    else:
        sizes = draw(st.lists(st.tuples(sides, sides), min_size=1, max_size=12))
        images = tuple(pixels((3, *size), dtype, seed + index) for index, size in enumerate(sizes))
    rung = draw(st.none() | st.text(max_size=8))
    return ScoreRequest(images, rung, draw(weights), draw(st.booleans()), draw(st.booleans()))


def equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def same(one: object, other: object) -> bool:
    return all(equal(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one))


@QUICK
@given(requests())
def test_request_round_trip_is_exact(request):
    assert same(decode_request(encode_request(request)), request)


@st.composite
def responses(draw: st.DrawFn) -> ScoreResponse:
    count = draw(st.integers(1, 5))
    failed = draw(st.sets(st.integers(0, count - 1)))
    numbers = torch.rand(4, count, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    numbers[:, list(failed)] = float("nan")
    sizes = [(draw(sides), draw(sides)) for _ in range(count)]
    grads = tuple(None if i in failed else torch.randn(3, *size) for i, size in enumerate(sizes))
    maps = tuple(None if i in failed else torch.rand(size) for i, size in enumerate(sizes))
    none = len(failed) == count or draw(st.booleans())
    errors = {index: draw(st.text(max_size=10)) for index in failed}
    return ScoreResponse(*numbers, MODEL, TIMING, None if none else maps, None if none else grads, errors)


@QUICK
@given(responses())
def test_response_round_trip_is_exact(given_response):
    assert same(decode_response(encode_response(given_response)), given_response)


def test_stacked_response_round_trip_is_exact():
    stacked = response(maps=torch.rand(2, 4, 5), grads=torch.randn(2, 3, 4, 5))
    assert same(decode_response(encode_response(stacked)), stacked)


def test_views_of_one_batch_can_be_sent_apart():
    batch = torch.rand(2, 3, 4, 4)
    assert same(decode_request(encode_request(ScoreRequest(tuple(batch)))), ScoreRequest(tuple(batch)))


# --- a decoder that names what is wrong, and raises nothing else ---


@pytest.mark.parametrize(
    ("images", "field", "expected"),
    [
        (torch.full((1, 3, 4, 4), float("nan")), "images", "finite"),
        (torch.full((1, 3, 4, 4), float("inf")), "images", "finite"),
        (torch.full((1, 3, 4, 4), 1.5), "images", "[0, 1]"),
        (torch.full((1, 3, 4, 4), -0.5, dtype=torch.bfloat16), "images", "[0, 1]"),
        (torch.zeros(3, 4, 4), "images", "N×3×H×W"),
        (torch.zeros(1, 4, 4, 4), "images", "N×3×H×W"),
        (torch.zeros(1, 3, 0, 4), "images", "empty"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.float64), "images", "dtype"),
        ((torch.zeros(3, 4, 4), torch.zeros(1, 4, 4)), "image.1", "3×H×W"),
        ((), "images", "at least one"),
    ],
)
def test_bad_images_are_named_by_sender_already(images, field, expected):
    with pytest.raises(WireError) as caught:
        ScoreRequest(images)
    assert caught.value.field == field
    assert expected in caught.value.expected


def body_with(tensors: dict[str, torch.Tensor] | None = None, **metadata: str) -> bytes:
    return save({"images": torch.zeros(1, 3, 4, 4)} if tensors is None else tensors, metadata={"wire": "1"} | metadata)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"\x89PNG not safetensors", "body"),
        (save({"images": torch.zeros(1, 3, 4, 4)}), "wire"),
        (body_with(wire="2"), "wire"),
        (body_with(colour="red"), "metadata"),
        (body_with(grad="yes"), "grad"),
        (body_with(map="1"), "map"),
        (body_with(weights="{"), "body"),
        (body_with(weights='{"score": 1}'), "max"),
        (body_with(weights='{"score": NaN, "max": 0, "mean": 0, "top_fraction": 0.1}'), "score"),
        (body_with(weights='{"score": -1, "max": 0, "mean": 0, "top_fraction": 0.1}'), "weights"),
        (body_with(weights='{"score": 1, "max": 0, "mean": 0, "top_fraction": 0.1, "worst": 1}'), "worst"),
        (body_with({}), "images"),
        (body_with({"images": torch.zeros(1, 3, 4, 4), "reference": torch.zeros(1)}), "tensors"),
        (body_with({"images": torch.zeros(1, 3, 4, 4), "image.0": torch.zeros(3, 4, 4)}), "images"),
        (body_with({"image.1": torch.zeros(3, 4, 4)}), "image.i"),
        (body_with({"image.00": torch.zeros(3, 4, 4)}), "tensors"),
        (body_with({"images": torch.zeros(1, 3, 4, 4, dtype=torch.float64)}), "images"),
        (body_with({"images": torch.full((1, 3, 4, 4), 2.0)}), "images"),
        (body_with({"images": torch.zeros(0, 3, 4, 4)}), "images"),
        (body_with({"images": torch.tensor(0.5)}), "images"),
    ],
)
def test_bad_requests_are_named(body, field):
    with pytest.raises(WireError) as caught:
        decode_request(body, max_images=2)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def numbered(name: str, count: int) -> dict[str, torch.Tensor]:
    return {f"{name}.{index}": torch.zeros(3, 1, 1, dtype=torch.uint8) for index in range(count)}


def with_header(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(64)


def test_as_many_images_as_a_reader_takes_are_taken():
    body = body_with(numbered("image", 300) | numbered("lr", 300))
    assert len(decode_request(body, max_images=300)) == 300
    assert len(decode_request(body)) == 300


@pytest.mark.parametrize(
    ("body", "received"),
    [
        (body_with({"images": torch.zeros(3, 3, 1, 1)}), 3),
        (body_with(numbered("image", 3)), 3),
        (body_with(numbered("image", 5)), "5 tensors"),
        (body_with(numbered("image", 1) | numbered("lr", 4)), "5 tensors"),
        (body_with(rung="x" * 6000), "a header of 61"),
        (with_header(b" " * 10_000), "a header of 10000 bytes"),
    ],
)
def test_more_images_than_a_reader_takes_are_refused(body, received):
    with pytest.raises(TooManyImages) as caught:
        decode_request(body, max_images=2)
    assert caught.value.field == "images" and caught.value.expected.startswith("at most 2 images")
    assert str(caught.value.received).startswith(str(received))


def test_tensors_that_are_too_many_are_refused_before_one_is_made(monkeypatch):
    body = body_with(numbered("image", 5))
    monkeypatch.setattr("safetensors.deserialize", lambda _: pytest.fail("made"))
    with pytest.raises(TooManyImages):
        decode_request(body, max_images=2)


@pytest.mark.parametrize("header", [b"[]", b"3", b"{", b"[" * 4000, b'{"images": 3}', b'{"__metadata__": 3}', b"1" * 4400])
def test_a_header_of_another_kind_is_refused(header):
    for limit in (None, 2):
        with pytest.raises(WireError) as caught:
            decode_request(with_header(header), max_images=limit)
        assert caught.value.field == "body"


NAN = torch.tensor([0.5, float("nan")])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"score": NAN}, "score"),
        ({"score": torch.tensor([0.5, 1.5])}, "score"),
        ({"reward": torch.tensor([0.5, float("inf")])}, "reward"),
        ({"reward": torch.zeros(3)}, "reward"),
        ({"mean_degradation": torch.zeros(2, dtype=torch.float64)}, "mean_degradation"),
        ({"errors": {2: "there is no image 2"}}, "errors"),
        ({"errors": {1: "failed, and yet a number"}}, "score"),
        ({"maps": torch.full((2, 4, 4), 2.0)}, "maps[0]"),
        ({"maps": torch.zeros(1, 4, 4)}, "maps"),
        ({"maps": (torch.zeros(4, 4), None)}, "maps[1]"),
        ({"grads": torch.full((2, 3, 4, 4), float("nan"))}, "grads[0]"),
        ({"grads": torch.zeros(2, 4, 4, 4)}, "grads[0]"),
    ],
)
def test_bad_responses_are_named(changes, field):
    with pytest.raises(WireError) as caught:
        response(**changes)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"items": []}',
        b'{"items":[{"score":null}],"model":{"name":"l","rung":"r","digest":"d"},"timing":{"queue_ms":0,"batch_ms":0,"compute_ms":0}}',
        b'{"items":[{"score":NaN,"reward":1}],"model":{"name":"l","rung":"r","digest":"d"},"timing":{"queue_ms":0,"batch_ms":0,"compute_ms":0}}',
        b'{"items":[{"score":1,"reward":1,"error":"x"}],"model":{"name":"","rung":"","digest":""},"timing":{"queue_ms":0,"batch_ms":0,"compute_ms":0}}',
    ],
)
def test_bad_json_replies_are_refused(text):
    with pytest.raises(WireError):
        wire.parse_reply(ScoreReply, text)


REQUEST_BODY = encode_request(ScoreRequest((pixels((3, 4, 4), torch.float16, 0), pixels((3, 2, 5), torch.uint8, 1)), "RM_1"))
RESPONSE_BODY = encode_response(response(maps=(torch.zeros(4, 4), torch.zeros(5, 5)), grads=torch.zeros(2, 3, 4, 4)))
edits = st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=6), st.integers(0, 8)), min_size=1, max_size=4)


def mutate(body: bytes, changes: list[tuple[int, bytes, int]]) -> bytes:
    """Cut and insert a few bytes; the first kilobyte holds the header, where most faults are."""
    for position, inserted, cut in changes:
        at = position % (len(body) + 1)
        body = body[:at] + inserted + body[at + cut :]
    return body


@settings(max_examples=400, deadline=None)
@given(edits, st.booleans())
def test_mutated_bytes_never_raise_anything_else(changes, repair_length):
    for original, decode in ((REQUEST_BODY, decode_request), (RESPONSE_BODY, decode_response)):
        body = mutate(original, changes)
        if repair_length and b"}}" in body:  # so that mutations reach past the header's length check
            body = struct.pack("<Q", body.index(b"}}") - 6) + body[8:]
        with contextlib.suppress(WireError):
            decode(body)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_raise_anything_else(body):
    for decode in (decode_request, decode_response):
        with pytest.raises(WireError):
            decode(body)
