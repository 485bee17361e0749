"""A client's own limits: one deadline, requests that a server takes, a token that is never shown, no more drawn than is sent."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest
import torch
from PIL import Image

from finpercep.async_client import AsyncRewardClient
from finpercep.client import RewardClient
from finpercep.errors import ConfigError, RewardUnavailable
from finpercep.exchange.pictures import Picture, in_groups
from finpercep.exchange.tensors import MAX_IMAGES
from rm_server.app import create_app
from rm_server.settings import Settings
from tests.fakes import AppTransport, fake_ladder, photo, registry_of


@contextmanager
def server(handle):
    """A server that has ``handle(connection, over)`` do with each connection what it will, until the event ``over``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        over = threading.Event()

        def serve():
            while not over.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    handle(connection, over)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            listener.close()
            thread.join(5)


def trickling(connection, over):
    """Sends a byte of its answer now and then, and never ends."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not over.wait(0.1):
        connection.sendall(b" ")


def sipping(connection, over):
    """Takes a little of the request now and then."""
    while not over.wait(0.02):
        connection.recv(2**17)


def ask(url: str) -> None:
    with RewardClient(url, timeout=0.5, patience=0) as client:
        client.model()


def ask_awaited(url: str) -> None:
    async def ask_it():
        async with AsyncRewardClient(url, timeout=0.5, patience=0) as client:
            await client.model()

    asyncio.run(ask_it())


@pytest.mark.parametrize("way", [ask, ask_awaited])
def test_the_deadline_is_of_the_whole_answer(way):
    with server(trickling) as url:
        begun = time.monotonic()
        with pytest.raises(RewardUnavailable, match="did not answer in time"):
            way(url)
        assert time.monotonic() - begun < 5


def upload(url: str, images: torch.Tensor) -> None:
    with RewardClient(url, timeout=0.5, patience=0) as client:
        client.score_tensor(images)


def upload_awaited(url: str, images: torch.Tensor) -> None:
    async def upload_them():
        async with AsyncRewardClient(url, timeout=0.5, patience=0) as client:
            await client.score_tensor(images)

    asyncio.run(upload_them())


@pytest.mark.parametrize("way", [upload, upload_awaited])
def test_the_deadline_is_of_the_whole_request(way):
    with server(sipping) as url:
        begun = time.monotonic()
        with pytest.raises(RewardUnavailable, match="did not answer in time"):
            way(url, torch.zeros(1, 3, 4096, 6144, dtype=torch.uint8))  # 72 MiB: 11 s, with no long pause
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize("client", [RewardClient, AsyncRewardClient])
@pytest.mark.parametrize("token", ["secret-of-mine\n", " secret-of-mine", "secret-öf-mine", "secret\x00of-mine"])
def test_a_token_that_cannot_be_one_is_refused_and_not_shown(client, token):
    with pytest.raises(ConfigError, match="printable ASCII") as refused:
        client("http://127.0.0.1:1", token=token)
    assert "mine" not in str(refused.value)


def test_more_images_than_a_server_takes_go_up_in_parts():
    app = create_app(registry_of(fake_ladder()), Settings())
    with RewardClient("http://test", transport=AppTransport(app)) as client:
        response = client.score_tensor(torch.zeros(MAX_IMAGES + 9, 3, 32, 32, dtype=torch.uint8))
    assert len(response) == MAX_IMAGES + 9 and response.score.isfinite().all()


def jpeg(height: int, width: int) -> bytes:
    """A flat picture: few bytes, many pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "grey").save(buffer, "JPEG")
    return buffer.getvalue()


def test_groups_of_pictures_are_bounded_by_their_pixels():
    """Nine photos of 12 MP are few bytes and few pictures, but more pixels than a server takes at once."""
    photos = [Picture(f"{index}.jpg", body) for index, body in enumerate([jpeg(3000, 4000)] * 9)]
    assert [len(group) for group in in_groups(photos)] == [1] * 9 and Settings().max_pixels < 9 * 12_000_000
    five, broken, low = jpeg(2000, 2500), b"\xff\xd8\xff\xe0 nonsense", jpeg(1000, 1000)
    bodies = [five, broken, five, five, broken, five, jpeg(4000, 5000), five]  # one above the limit goes alone
    groups = [[picture.body for picture in group] for group in in_groups(Picture("a.jpg", body) for body in bodies)]
    assert groups == [bodies[:5], bodies[5:6], bodies[6:7], bodies[7:]]
    beside = [len(group) for group in in_groups([Picture("a.jpg", five, low)] * 4)]  # LR pictures count, too
    assert beside == [2, 2]


def test_many_large_photos_go_up_in_requests_that_a_server_takes(monkeypatch, tmp_path):
    monkeypatch.setattr("finpercep.exchange.pictures.MAX_PIXELS", 160_000)
    paths = [tmp_path / f"{index}.jpg" for index in range(9)]
    for path in paths:
        path.write_bytes(jpeg(300, 400))
    app = create_app(registry_of(fake_ladder()), Settings(max_pixels=1_000_000, house_pixels=1_000_000))
    with RewardClient("http://test", transport=AppTransport(app)) as client:
        assert len(client.score_files(paths)) == 9


def test_pictures_are_drawn_as_they_are_sent(monkeypatch):
    monkeypatch.setattr("finpercep.exchange.pictures.MAX_PICTURES", 1)
    drawn, seen, at_work = [], [], asyncio.Event()

    def pictures():
        for number in range(12):
            drawn.append(number)
            yield photo(32, 32, number)

    async def score_all():
        async with AsyncRewardClient("http://test", concurrency=2) as client:

            async def send(method, path, **content):
                seen.append(len(drawn))
                at_work.set()
                await asyncio.sleep(0.01)
                raise ConfigError("enough")

            monkeypatch.setattr(client._connection, "send", send)
            await client.score_images(pictures())

    with pytest.raises(ConfigError, match="enough"):
        asyncio.run(score_all())
    assert seen[0] <= 4 and len(drawn) < 8  # a group is known to be whole when the next picture is drawn
