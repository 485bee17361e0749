"""The load generator of the benchmarks, against servers whose behaviour is known: it must see what is there to be seen."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading

import pytest

from benchmarks.load import Connections, arrivals, closed_loop, open_loop, overload, request_bytes

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nright"
ANSWERS = {
    "right": GOOD,
    "wrong": GOOD.replace(b"right", b"wrong"),
    "refused": b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3\r\nContent-Length: 0\r\n\r\n",
    "told no time": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
    "failed": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno",
    "hung up on": b"",
    "right, and closed without a word": GOOD,
}


@contextlib.contextmanager
def serving(*kinds: str, seconds: float = 0.0, writers: list[asyncio.StreamWriter] | None = None):
    """A server that gives these answers in turn, each after some time; its address, and the bodies it was sent.

    ``writers`` is given one for each connection.
    """
    loop, bodies, turn = asyncio.new_event_loop(), [], itertools.cycle(kinds)
    writers = [] if writers is None else writers

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.split("content-length: ")[1].split("\r\n")[0])
                bodies.append(await reader.readexactly(length))
                kind = next(turn)
                await asyncio.sleep(seconds)
                writer.write(ANSWERS[kind])
                await writer.drain()
                if kind.startswith(("failed", "hung up", "right,")):
                    break
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = loop.run_until_complete(asyncio.start_server(handle, "127.0.0.1", 0))
    port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def end() -> None:
        server.close()
        for writer in writers:
            writer.close()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)

    try:
        yield f"http://127.0.0.1:{port}", bodies
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def requests(url: str) -> list[bytes]:
    return [request_bytes(f"{url}/score", content=body) for body in (b"one", b"two", b"three")]


def test_every_kind_of_answer_is_counted_as_what_it_is():
    kinds = list(ANSWERS)[:-1]
    with serving(*kinds) as (url, bodies):
        seen = overload(url, requests(url), lambda index, body: body == b"right", rate=120, seconds=1.0)
    assert len(bodies) == seen.sent > 60 and seen.unsent == 0
    each = seen.sent / len(kinds)
    assert len(seen.answer_seconds) == pytest.approx(each, abs=1)
    assert len(seen.refusal_seconds) == pytest.approx(each, abs=1)
    assert seen.faults == seen.sent - len(seen.answer_seconds) - len(seen.refusal_seconds)
    assert len(seen.wrong) == 20 and {sentence[:3] for sentence in seen.wrong} == {"200", "503", "500"}
    assert seen.lost and all("IncompleteReadError" in sentence for sentence in seen.lost)
    assert set(bodies) == {b"one", b"two", b"three"}


@pytest.mark.parametrize(("kind", "opened"), [("right", 1), ("right, and closed without a word", 3)])
def test_a_connection_is_used_again_unless_it_was_closed(kind, opened):
    writers = []
    with serving(kind, writers=writers) as (url, bodies):

        async def ask() -> list[int]:
            connections, statuses = Connections(url), []
            for request in requests(url):
                statuses.append((await connections.ask(request)).status)
                await asyncio.sleep(0.2)
            await connections.close()
            return statuses

        assert asyncio.run(ask()) == [200] * 3
        assert len(bodies) == 3 and len(writers) == opened


def test_an_answer_is_compared_with_its_own_request():
    asked = []
    with serving("right") as (url, bodies):
        overload(url, requests(url), lambda index, body: asked.append(index) or True, rate=100, seconds=0.3)
    assert sorted(asked) == sorted([b"one", b"two", b"three"].index(body) for body in bodies)


def test_more_connections_than_allowed_are_not_opened():
    with serving("right", seconds=0.4) as (url, bodies):
        seen = overload(url, requests(url), lambda *_: True, rate=200, seconds=0.6, most_open=5)
    assert len(bodies) == seen.sent <= 10 and seen.unsent > 50 and not seen.faults


def test_a_closed_loop_has_the_rate_and_latency_of_its_server():
    with serving("right", seconds=0.05) as (url, _):
        load = closed_loop(url, requests(url), clients=4, seconds=1.0, warm=0.2)
    assert 20 < load.rate <= 80 and load.percentile_ms(0.5) >= 50


def test_an_open_loop_brings_as_many_as_it_should_and_waiting_counts():
    with serving("right", seconds=0.05) as (url, bodies):
        load = open_loop(url, requests(url), rate=40, seconds=1.0)
    assert len(bodies) == len(load.latencies) == len(arrivals(40, 1.0, 0))
    assert min(load.latencies) >= 0.05


def test_arrivals_are_a_poisson_process_of_the_rate():
    moments = arrivals(500, 20, seed=3)
    assert len(moments) == pytest.approx(500 * 20, rel=0.05) and moments[-1] < 20
    gaps = moments[1:] - moments[:-1]
    assert gaps.mean() == pytest.approx(gaps.std(), rel=0.05)  # of an exponential distribution they are the same


@pytest.mark.parametrize("kind", ["refused", "failed"])
def test_loops_that_expect_no_refusal_end_with_it(kind):
    with serving(kind) as (url, _), pytest.raises((RuntimeError, ExceptionGroup)) as caught:
        closed_loop(url, requests(url), clients=1, seconds=0.5, warm=0.0)
    assert "answered 50" in str(caught.value)


def test_nothing_answered_is_said():
    with serving("right", seconds=0.3) as (url, _), pytest.raises(RuntimeError, match=r"answered nothing in 0\.1 s"):
        closed_loop(url, requests(url), clients=1, seconds=0.1, warm=0.0)
