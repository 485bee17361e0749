"""A real server process that is asked for too much, changed, and ended, while clients wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
import time
from collections import Counter

import httpx
import psutil
import pytest
import torch

from finpercep.cli.server_process import ServerProcess
from finpercep.client import RewardClient
from finpercep.errors import RewardChanged
from finpercep.predictor import load_predictors
from finpercep.reward import RewardWeights
from finpercep.wire import TENSOR_MEDIA_TYPE, ScoreRequest, decode_response, encode_request
from tests.fakes import photo

SIDE = 96
ADMIN = "an-admin-token-for-tests"


def image(seed: int) -> torch.Tensor:
    return torch.tensor(photo(SIDE, SIDE, seed)).permute(2, 0, 1)


def body(seed: int, rung: str = "RM_2") -> bytes:
    return encode_request(ScoreRequest(image(seed)[None], rung))


@contextlib.contextmanager
def serving(ladder, **settings):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(f"FINPERCEP_{name.upper()}", str(value))
        with ServerProcess(ladder) as server:
            yield server


@pytest.fixture(scope="module")
def expected(small_ladder):
    predictor = load_predictors(small_ladder)["RM_2"]
    return [float(predictor.score(image(seed)[None].float() / 255).score) for seed in range(8)]


def test_an_overloaded_server_refuses_at_once_and_answers_what_it_took_in(small_ladder, expected):
    """Twenty times what fits in the house, for some seconds: 200 and right, or 503 with Retry-After; memory stays."""
    house = 4

    async def ask(client: httpx.AsyncClient, number: int, seen: Counter[int], until: float) -> None:
        seed = number % len(expected)
        while time.monotonic() < until:
            answer = await client.post("/score", content=body(seed), headers={"content-type": TENSOR_MEDIA_TYPE})
            seen[answer.status_code] += 1
            if answer.status_code == 200:
                assert float(decode_response(answer.content).score) == pytest.approx(expected[seed], abs=1e-5)
            else:
                assert answer.status_code == 503 and 1 <= int(answer.headers["retry-after"]) <= 60
                assert answer.json()["type"] == "urn:finpercep:busy"

    async def flood(url: str, seconds: float) -> Counter[int]:
        seen: Counter[int] = Counter()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits, trust_env=False) as client:
            until = time.monotonic() + seconds
            await asyncio.gather(*(ask(client, number, seen, until) for number in range(20 * house)))
        return seen

    with serving(small_ladder, house_pixels=house * SIDE * SIDE) as server:
        process = psutil.Process(server.pid)
        asyncio.run(flood(server.url, 1.0))
        before = process.memory_info().rss
        seen = asyncio.run(flood(server.url, 6.0))
        grown = process.memory_info().rss - before
        assert set(seen) == {200, 503} and seen[200] >= house
        assert grown < 64 * 1024 * 1024
        assert httpx.get(f"{server.url}/readyz", timeout=30, trust_env=False).status_code == 200
        metrics = httpx.get(f"{server.url}/metrics", timeout=30, trust_env=False).text
        assert "finpercep_pixels_inside 0.0" in metrics and "finpercep_queue_images 0.0" in metrics


def test_work_of_clients_that_hang_up_is_dropped(small_ladder):
    """Many large requests whose senders do not wait: the next client is not made to wait for them."""
    large = encode_request(ScoreRequest(torch.rand(1, 3, 512, 512), grad=True))
    headers = {"content-type": TENSOR_MEDIA_TYPE}
    with serving(small_ladder, batch_pixels=512 * 512) as server:
        begun = time.monotonic()
        httpx.post(f"{server.url}/score", content=large, headers=headers, timeout=60, trust_env=False)
        one = time.monotonic() - begun

        async def hang_up() -> None:
            async with httpx.AsyncClient(base_url=server.url, trust_env=False) as client:
                asked = [client.post("/score", content=large, headers=headers, timeout=0.5) for _ in range(40)]
                await asyncio.gather(*asked, return_exceptions=True)

        asyncio.run(hang_up())
        begun = time.monotonic()
        with RewardClient(server.url) as client:
            client.score_tensor(image(0)[None])
        assert time.monotonic() - begun < 20 * one


def test_a_rung_is_swapped_under_load_without_a_failed_or_mixed_reply(small_ladder, tmp_path, expected):
    shutil.copytree(small_ladder, tmp_path / "same")
    ladder = tmp_path / "other"
    shutil.copytree(small_ladder, ladder)
    swapped = make_other_finest(ladder)
    other = load_predictors(ladder)["RM_2"]
    truths = {swapped: [float(other.score(image(seed)[None].float() / 255).score) for seed in range(8)]}
    with serving(small_ladder, model_root=tmp_path, admin_token=ADMIN) as server:
        headers = {"content-type": TENSOR_MEDIA_TYPE}
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http:
            truths[http.get("/model").json()["digest"]] = expected
            assert len(truths) == 2
            stop, failures, seen = threading.Event(), [], Counter()

            def load(number: int) -> None:
                with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as mine:
                    while not stop.is_set():
                        seed = number % 8
                        answer = mine.post("/score", content=body(seed), headers=headers)
                        if answer.status_code != 200:
                            failures.append(answer.text)
                            continue
                        reply = decode_response(answer.content)
                        seen[reply.model.digest] += 1
                        if abs(float(reply.score) - truths[reply.model.digest][seed]) > 1e-5:
                            failures.append("a score of another model")

            threads = [threading.Thread(target=load, args=(number,)) for number in range(6)]
            for thread in threads:
                thread.start()
            for source in ("other", "same", "other"):
                time.sleep(0.5)
                answer = http.put("/rungs/RM_2", json={"source": source}, headers={"authorization": f"Bearer {ADMIN}"})
                assert answer.status_code == 200, answer.text
            time.sleep(0.5)
            stop.set()
            for thread in threads:
                thread.join()
        assert not failures
        assert set(seen) == set(truths) and min(seen.values()) > 0


def make_other_finest(ladder) -> str:
    """Give RM_2 of a ladder other weights, in place. Returns its digest."""
    from finpercep.checkpoint import LadderRung, read_ladder, write_checkpoint, write_ladder
    from finpercep.reward_model.model import FinPercepRM

    model = FinPercepRM.load(ladder / "RM_2")
    state = {name: tensor * 1.5 if name.startswith("score_head.") else tensor for name, tensor in model.state_dict().items()}
    digest = write_checkpoint(ladder / "RM_2", model.config.to_json(), state)
    record = read_ladder(ladder)
    rungs = [LadderRung(one.rung, one.path, digest if one.rung == "RM_2" else one.digest) for one in record.rungs]
    write_ladder(ladder, record.name, rungs)
    return digest


def test_a_client_outlives_its_servers_death(small_ladder, expected):
    """Killed and started again on the same port while a client works: every image is scored, once, and right."""
    first = ServerProcess(small_ladder).__enter__()
    port = int(first.url.rsplit(":", 1)[1])
    scores: list[float] = []
    with RewardClient(first.url, patience=60) as client:
        reward = client.reward_fn("RM_2", RewardWeights(1, 0, 0))
        failure: list[Exception] = []

        def work() -> None:
            try:
                for number in range(60):
                    scores.append(float(reward(image(number % 8)[None].float() / 255).reward))
            except Exception as error:
                failure.append(error)

        worker = threading.Thread(target=work)
        worker.start()
        while len(scores) < 10:
            time.sleep(0.01)
        first.kill()
        with ServerProcess(small_ladder, port=port):
            worker.join(60)
    assert not failure and not worker.is_alive()
    assert scores == pytest.approx([expected[number % 8] for number in range(60)], abs=1e-5)


def test_a_client_notices_that_the_server_came_back_with_another_model(small_ladder, tmp_path):
    ladder = tmp_path / "other"
    shutil.copytree(small_ladder, ladder)
    with ServerProcess(small_ladder) as first, RewardClient(first.url, patience=60) as client:
        port = int(first.url.rsplit(":", 1)[1])
        client.score_tensor(image(0)[None], "RM_2")
        first.kill()
        make_other_finest(ladder)
        with ServerProcess(ladder, port=port), pytest.raises(RewardChanged, match="the model behind RM_2 has changed"):
            client.score_tensor(image(0)[None], "RM_2")


def test_a_server_asked_to_end_answers_what_it_took_in(small_ladder):
    large = encode_request(ScoreRequest(torch.rand(4, 3, 512, 512), grad=True))
    answers: list[int] = []
    server = ServerProcess(small_ladder).__enter__()

    def ask() -> None:
        headers = {"content-type": TENSOR_MEDIA_TYPE}
        answers.append(httpx.post(f"{server.url}/score", content=large, headers=headers, timeout=60, trust_env=False).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    while "finpercep_pixels_inside 0.0" in httpx.get(f"{server.url}/metrics", timeout=30, trust_env=False).text:
        time.sleep(0.01)
    server.stop()
    asking.join()
    assert answers == [200]
