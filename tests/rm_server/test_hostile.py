"""What a caller could do to a server that asks too late, counts too little, or waits for ever."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
import socket

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from safetensors.torch import save

from data_synth.schema.pixels import decode_rgb, encode_png
from finpercep.errors import ImageError
from finpercep.wire import TENSOR_MEDIA_TYPE, ScoreRequest, encode_request
from rm_server.admission import PART_BYTES, BodyGate
from rm_server.app import create_app
from rm_server.batching import Batcher, BatchLimits
from rm_server.bodies import JsonUploads
from rm_server.engine import Engine
from rm_server.observability import Observed
from rm_server.problems import ReaderStalled
from rm_server.service import Service
from rm_server.settings import Settings
from rm_server.tokens import LoopbackNames
from tests.fakes import AppTransport, fake_ladder, photo, registry_of
from tests.rm_server.test_app import ADMIN, PNG, TOKEN, http_of, items, refusal, upload

JSON = {"content-type": "application/json"}


def picture(kind: str, size: tuple[int, int], mode: str = "L") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((name, 200) for name in ("localhost", "LOCALHOST:8000", "127.0.0.1:8000", "127.8.8.8", "[::1]", "[::1]:8000")),
        *((name, 400) for name in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "")),
    ],
)
def test_without_a_token_only_loopback_names_are_answered(host, status):
    app = LoopbackNames(create_app(registry_of(fake_ladder()), Settings()))
    with httpx.Client(transport=AppTransport(app), base_url="http://server") as http:
        answer = http.get("/model", headers={"host": host})
    assert answer.status_code == status
    if status == 400:
        assert f"got {host!r}; set FINPERCEP_TOKEN" in refusal(answer)


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize("body", [b"{", b"x" * 10_000, b'{"source": "a"}'])
def test_a_new_rungs_body_is_not_read_before_its_token(token, body):
    read = []

    async def receive():
        read.append(True)
        return {"type": "http.request", "body": body, "more_body": False}

    async def ask():
        sent = []

        async def send(message):
            sent.append(message)

        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers += [(b"authorization", f"Bearer {token}".encode())] if token else []
        scope = {"type": "http", "method": "PUT", "path": "/rungs/x", "raw_path": b"/rungs/x", "query_string": b"",
                 "headers": headers, "http_version": "1.1", "scheme": "http", "server": ("s", 80), "client": ("c", 1),
                 "root_path": ""}  # fmt: skip
        await create_app(registry_of(fake_ladder()), Settings(token=TOKEN, admin_token=ADMIN))(scope, receive, send)
        return sent[0]["status"]

    assert asyncio.run(ask()) == 401
    assert read == []


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"{", 422, "body"),
        (b'{"source": 3}', 422, "source"),
        (b'{"source": "a", "digest": ["b"]}', 422, "digest"),
        (b'{"source": "' + b"a" * 5000 + b'"}', 413, "body"),
    ],
)
def test_a_new_rungs_body_is_refused_for_what_is_wrong(tmp_path, body, status, field):
    with http_of(fake_ladder(), model_root=tmp_path, admin_token=ADMIN) as http:
        answer = http.put("/rungs/RM_2", content=body, headers={**JSON, "authorization": f"Bearer {ADMIN}"})
    assert answer.status_code == status and refusal(answer)
    assert answer.json()["field"] == field


def test_pictures_that_are_small_as_files_and_large_as_pixels_are_counted_together():
    bomb = picture("PNG", (3000, 3000))
    assert len(bomb) < 10_000
    with http_of(fake_ladder(), max_pixels=10_000_000, house_pixels=10_000_000) as http:
        answer = http.post("/score", files=upload(*[bomb] * 4))
        assert answer.status_code == 413
        assert "at most 10000000 pixels together, got 36000000" in refusal(answer)
    with http_of(fake_ladder(), house_pixels=1000) as http:
        assert len(items(http.post("/score", files=upload(PNG)))) == 1  # a single larger one still gets in


def test_maps_larger_than_their_images_are_counted():
    with http_of(fake_ladder(), max_pixels=1_000_000, house_pixels=1_000_000) as http:
        ask = {"files": upload(PNG, PNG)}
        assert http.post("/score", **ask, params={"map": "png", "map_size": 256}).status_code == 200
        answer = http.post("/score", **ask, params={"map": "png", "map_size": 1024})
        assert answer.status_code == 413 and "pixels together" in refusal(answer)
        assert http.post("/score", **ask, params={"map_size": 1024}).status_code == 200  # no map, no pixels


def test_an_image_whose_gradient_is_wanted_has_a_limit_of_its_own():
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    with http_of(fake_ladder(), max_grad_pixels=32 * 64) as http:
        for grad, status in ((False, 200), (True, 413)):
            body = encode_request(ScoreRequest(images, grad=grad))
            answer = http.post("/score", content=body, headers={"content-type": TENSOR_MEDIA_TYPE})
            assert answer.status_code == status
        assert "at most 2048 pixels for its gradient, got 64x64" in refusal(answer)


@pytest.mark.parametrize("count", [300, 600, 10_000])
def test_tensors_that_are_too_many_are_refused_by_the_header(count):
    body = save({f"image.{index}": torch.zeros(3, 1, 1, dtype=torch.uint8) for index in range(count)}, metadata={"wire": "1"})
    with http_of(fake_ladder()) as http:
        answer = http.post("/score", content=body, headers={"content-type": TENSOR_MEDIA_TYPE})
    assert answer.status_code == 413 and "expected at most 256 images" in refusal(answer)


def test_no_picture_starts_another_program(tmp_path, monkeypatch):
    started = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert shutil.which("gs") == str(tmp_path / "gs")
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"
    with pytest.raises(ImageError, match="not a picture in a format that can be read"):
        decode_rgb(script)
    assert not started.exists()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000", "PPM"])
def test_pictures_of_every_kind_that_is_named_are_read(kind):
    assert decode_rgb(picture(kind, (40, 30), "RGB" if kind != "GIF" else "P")).shape == (30, 40, 3)


def test_an_icon_is_not_decoded_to_learn_its_size():
    with pytest.raises(ImageError, match="not a picture in a format that can be read"):
        decode_rgb(picture("ICO", (64, 64), "RGBA"))


@pytest.mark.parametrize("value", ['""', "[]", "{}", "1"])
def test_a_json_body_of_a_million_values_is_refused_before_it_is_parsed(value, monkeypatch):
    monkeypatch.setattr(JsonUploads, "model_validate_json", lambda _: pytest.fail("parsed"))
    body = ('{"image": [' + ",".join([value] * 1_000_000) + "]}").encode()
    with http_of(fake_ladder()) as http:
        answer = http.post("/score", content=body, headers=JSON)
    assert answer.status_code == 413 and "at most 256 images" in refusal(answer)


def test_a_large_json_body_is_scored_like_a_small_one():
    large = encode_png(np.random.default_rng(0).integers(0, 255, (500, 500, 3), dtype=np.uint8))
    body = {"image": ["data:image/png;base64," + base64.b64encode(large).decode()] * 2}
    with http_of(fake_ladder()) as http:
        in_json = items(http.post("/score", json=body))
        assert in_json == items(http.post("/score", files=upload(large, large)))


def test_the_deepest_fault_of_a_json_body_is_named_and_nothing_false_is_said():
    with http_of(fake_ladder()) as http:
        answer = http.post("/score", content=json.dumps({"image": ["aGk=", 5]}), headers=JSON)
        assert answer.json()["field"] == "image.1" and "valid string" in refusal(answer)
        small = http.post("/score", files=upload(encode_png(photo(20, 64)))).json()
        assert small["field"] == "image" and "received" not in small
        (_, second) = items(http.post("/score", files=[*upload(PNG, PNG), *upload(PNG, b"hi", field="lr")]))
        assert second.error.startswith("LR picture: 2 bytes: not a picture")


@pytest.mark.parametrize("rung", ["--1", "-", "٣", "1" * 5])
def test_a_rung_that_is_nearly_an_index_is_unknown(rung):
    with http_of(fake_ladder()) as http:
        answer = http.post("/score", files=upload(PNG), params={"rung": rung})
    assert answer.status_code == 404 and "unknown rung" in refusal(answer)


def test_a_failure_of_the_servers_own_is_a_500_with_its_headers_in_metrics_and_log(monkeypatch, caplog):
    def broken(self):
        raise ZeroDivisionError("of our own")

    with http_of(fake_ladder()) as http:
        monkeypatch.setattr("rm_server.registry.Registry.describe", broken)
        answer = http.get("/model")
        assert answer.status_code == 500 and "its log says why" in refusal(answer)
        assert "x-request-id" in answer.headers and answer.headers["x-content-type-options"] == "nosniff"
        assert 'finpercep_requests_total{route="/model",status="500"} 1.0' in http.get("/metrics").text
    assert "of our own" in caplog.text


async def _asgi(app, messages_out, *, stall_after: int | None = None):
    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        if stall_after is not None and len(messages_out) > stall_after:
            await asyncio.sleep(60)
        messages_out.append(message)

    await app({"type": "http", "headers": [], "method": "GET", "path": "/"}, receive, send)


def answering(body: bytes):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return app


def test_a_large_answer_goes_out_in_parts_and_counts_until_it_is_taken():
    body = bytes(range(256)) * (3 * PART_BYTES // 256) + b"end"
    sent: list[dict] = []
    gate = BodyGate(answering(body), body_bytes=1000, house_bytes=1000, body_seconds=5)
    asyncio.run(_asgi(gate, sent))
    assert b"".join(message.get("body", b"") for message in sent) == body
    assert [message.get("more_body") for message in sent[1:]] == [True, True, True, False]
    assert gate.inside == 0


@pytest.mark.parametrize(
    ("size", "messages", "taken"), [(2 * PART_BYTES, 1, 0), (2 * PART_BYTES, 2, PART_BYTES), (10, 1, 0), (10, 0, 0)]
)
def test_a_reader_that_takes_no_more_is_left(size, messages, taken):
    gate = BodyGate(answering(b"x" * size), body_bytes=1000, house_bytes=1000, body_seconds=0.05)
    with pytest.raises(ReaderStalled, match=rf"was not taken in 0\.05 s; {taken} bytes were"):
        asyncio.run(_asgi(gate, [], stall_after=messages - 1))
    assert gate.inside == 0


def test_a_reader_that_stalled_is_logged_and_raises_nothing():
    gate = BodyGate(answering(b"x" * 10), body_bytes=1000, house_bytes=1000, body_seconds=0.05)
    service = Service(registry_of(fake_ladder()), Settings())
    try:
        asyncio.run(_asgi(Observed(gate, service.metrics), [], stall_after=0))  # logged, not raised
    finally:
        service.close()


def test_a_connection_that_asks_and_reads_nothing_is_left():
    """A real server: small answers, until one cannot be begun because those before it were not taken."""
    gate = BodyGate(answering(b"x" * PART_BYTES), body_bytes=1000, house_bytes=1000, body_seconds=0.5)

    async def ask() -> None:
        left = asyncio.Event()

        async def app(scope, receive, send):
            try:
                await gate(scope, receive, send)
            except ReaderStalled:
                left.set()

        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(server.serve([listener]))
            with socket.create_connection(listener.getsockname()) as client:
                client.sendall((b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n" + b"x" * 9) * 40)
                await asyncio.wait_for(left.wait(), 20)
                assert gate.inside == 0
            server.should_exit = True
            await serving

    asyncio.run(ask())


def test_a_canary_always_gets_in():
    batcher = Batcher([lambda works: works], BatchLimits(10, 10))
    try:
        with batcher.enter(50), batcher.enter(0):
            assert batcher.pixels_inside == 50
    finally:
        batcher.close()


def test_probes_that_come_together_share_a_canary(monkeypatch):
    asked = []
    score = Engine.score

    async def counted(self, visit, works):
        asked.extend(works)
        return await score(self, visit, works)

    monkeypatch.setattr(Engine, "score", counted)
    service = Service(registry_of(fake_ladder()), Settings())

    async def probes():
        return await asyncio.gather(*(service.readiness_fault() for _ in range(30)))

    try:
        assert asyncio.run(probes()) == [None] * 30 and len(asked) == 1
    finally:
        service.close()


def test_the_warm_up_is_done_once_and_waited_for():
    service = Service(registry_of(fake_ladder()), Settings(warm_up="64"))

    async def twice():
        assert await service.readiness_fault() == "it is warming up"
        await asyncio.gather(service.warm_up(), service.warm_up())
        return await service.readiness_fault()

    try:
        assert asyncio.run(twice()) is None
    finally:
        service.close()


def test_a_request_whose_time_was_up_is_to_be_sent_again_as_a_whole():
    with http_of(fake_ladder(), request_seconds=1e-9) as http:
        answer = http.post("/score", files=upload(PNG, PNG))
    assert answer.status_code == 503 and answer.headers["retry-after"] == "5" and "in time" in refusal(answer)
