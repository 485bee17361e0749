"""The server on Ray Serve: a real cluster of two nodes on this machine, with a small real ladder, while clients ask."""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context

import httpx
import pytest
import torch

from data_synth.schema.pixels import encode_png
from finpercep.client import RewardClient
from finpercep.errors import ConfigError
from finpercep.predictor import load_predictors
from finpercep.reward import RewardWeights
from finpercep.wire import TENSOR_MEDIA_TYPE, ScoreRequest, decode_response, encode_request
from rm_server.app import create_app
from rm_server.problems import Problem
from rm_server.registry import Registry
from rm_server.settings import Settings
from tests.fakes import AppTransport, photo
from tests.rm_server import serve_cluster
from tests.rm_server.test_server_under_load import make_other_finest

pytestmark = [
    pytest.mark.timeout(900),  # a cluster's many processes start slowly where cores are few and busy
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray Serve's own
]

TOKEN, ADMIN = "a-token-for-the-tests", "an-admin-token-for-tests"
HEADERS = {"authorization": f"Bearer {TOKEN}", "content-type": TENSOR_MEDIA_TYPE}
SIDE, SEEDS = 64, 4


def image(seed: int) -> torch.Tensor:
    return torch.tensor(photo(SIDE, SIDE, seed)).permute(2, 0, 1)


def body(seed: int) -> bytes:
    return encode_request(ScoreRequest(image(seed)[None], "RM_2"))


@pytest.fixture(scope="module")
def ladders(small_ladder, tmp_path_factory):
    """The model root: the ladder that is served, and one with another RM_2."""
    root = tmp_path_factory.mktemp("models")
    shutil.copytree(small_ladder, root / "first")
    shutil.copytree(small_ladder, root / "round-2")
    make_other_finest(root / "round-2")
    return root


@pytest.fixture(scope="module")
def truths(ladders):
    """Digest of an RM_2 → its scores."""
    predictors = [load_predictors(ladders / name)["RM_2"] for name in ("first", "round-2")]
    assert predictors[0].digest != predictors[1].digest
    return {one.digest: [float(one.score(image(seed)[None].float() / 255).score) for seed in range(SEEDS)] for one in predictors}


@pytest.fixture(scope="module")
def owner(ladders):
    """The process that owns the cluster: Ray leaves threads behind, and ends a process whose node is lost."""
    if find_spec("ray") is None:
        pytest.skip("needs Ray")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = {"FINPERCEP_TOKEN": TOKEN, "FINPERCEP_ADMIN_TOKEN": ADMIN}
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        try:
            process.submit(serve_cluster.start, 2, port, environment).result()
            process.url = f"http://127.0.0.1:{port}"
            yield process
        finally:
            process.submit(serve_cluster.stop).result()


@pytest.fixture
def cluster(owner, ladders):
    """Two replicas on two nodes, serving the first ladder; what a test before left is undone."""
    arguments = {"model": str(ladders / "first"), "model_root": str(ladders)}
    options = {"num_replicas": 2, "health_check_period_s": 2, "user_config": {"rungs": {}}}
    owner.submit(serve_cluster.deploy, arguments, options).result()
    owner.submit(serve_cluster.wait_until_running, 2).result()
    return owner


def digests(cluster) -> list[dict[str, str]]:
    return cluster.submit(serve_cluster.digests).result()


def put(url: str, source: str, name: str = "RM_2", token: str = ADMIN) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"}
    return httpx.put(f"{url}/rungs/{name}", json={"source": source}, headers=headers, timeout=200, trust_env=False)


class Load:
    """Threads that ask without a pause for as long as a ``with`` block lasts; every answer is held against the truth.

    Args:
        url: of the cluster.
        truths: digest → scores.
        patience: seconds that a client tries again; None: a request that fails is a failure.
    """

    def __init__(self, url: str, truths: dict[str, list[float]], patience: float | None, clients: int = 4) -> None:
        self.truths, self.failures, self.seen = truths, [], Counter()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(url, patience, number)) for number in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        self.wait_for(8)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, more: int, seconds: float = 120) -> None:
        """Until so many more answers have come."""
        until, wanted = time.monotonic() + seconds, self.seen.total() + more
        while self.seen.total() < wanted and not self.failures and time.monotonic() < until:
            time.sleep(0.02)
        assert not self.failures and self.seen.total() >= wanted

    def _ask(self, url: str, patience: float | None, number: int) -> None:
        try:
            if patience is None:
                with httpx.Client(base_url=url, timeout=120, trust_env=False) as http:
                    while not self._stop.is_set():
                        answer = http.post("/score", content=body(number % SEEDS), headers=HEADERS)
                        assert answer.status_code == 200, answer.text
                        self._check(decode_response(answer.content), number)
            else:
                with RewardClient(url, token=TOKEN, patience=patience) as client:
                    while not self._stop.is_set():
                        self._check(client.score_tensor(image(number % SEEDS)[None], "RM_2"), number)
        except Exception as error:
            self.failures.append(error)

    def _check(self, response, number: int) -> None:
        assert float(response.score) == pytest.approx(self.truths[response.model.digest][number % SEEDS], abs=1e-5)
        self.seen[response.model.digest] += 1


@pytest.mark.slow
def test_answers_are_those_of_the_single_server(cluster, ladders):
    predictors = load_predictors(ladders / "first")
    app = create_app(Registry({rung: [one] for rung, one in predictors.items()}), Settings(token=TOKEN))
    answers = []
    for transport, url in ((None, cluster.url), (AppTransport(app), "http://server")):
        with RewardClient(url, token=TOKEN, transport=transport) as client:
            scored = client.score_images([photo(90, 130), photo(64, 64)], map=True)
            tensors = client.score_tensor(
                torch.stack([image(seed) for seed in range(3)]), "RM_1", RewardWeights(1, 0.5, 0.2), grad=True
            )
        answers.append((client, scored, tensors))
    (_, pictures, tensors), (_, expected_pictures, expected_tensors) = answers
    for got, expected in zip(pictures, expected_pictures, strict=True):
        assert (got.model, got.score, got.reward) == (
            expected.model,
            pytest.approx(expected.score, abs=1e-6),
            pytest.approx(expected.reward, abs=1e-6),
        )
        torch.testing.assert_close(got.map, expected.map, rtol=0, atol=2e-5)
    torch.testing.assert_close(tensors.reward, expected_tensors.reward, rtol=0, atol=1e-5)
    scale = expected_tensors.grads.abs().max()
    assert scale > 0 and (tensors.grads - expected_tensors.grads).abs().max() < 1e-4 * scale


@pytest.mark.slow
def test_doors_are_those_of_the_single_server(cluster):
    """Tokens, limits and problem details are the application's; a rung that cannot be put changes nothing."""
    before = digests(cluster)
    with httpx.Client(base_url=cluster.url, timeout=60, trust_env=False) as http:
        assert http.get("/model").status_code == 401
        assert http.get("/livez").status_code == http.get("/readyz").status_code == 200
        bad = http.post("/score", content=b"not safetensors", headers=HEADERS)
        assert (bad.status_code, bad.headers["content-type"]) == (422, "application/problem+json")
        small = http.post(
            "/score", files={"image": encode_png(photo(20, 20))}, headers={"authorization": HEADERS["authorization"]}
        )
        assert small.status_code == 422 and "32" in small.json()["detail"]
    assert put(cluster.url, "round-2", token=TOKEN).status_code == 401
    absent = put(cluster.url, "nowhere")
    assert absent.status_code == 404 and "first, round-2" in absent.json()["detail"]
    assert digests(cluster) == before and len(before) == 2


@pytest.mark.slow
def test_a_rung_is_updated_on_every_replica_without_a_failed_or_mixed_reply(cluster, truths):
    first, second = truths
    with Load(cluster.url, truths, patience=None) as load:
        answer = put(cluster.url, "round-2")
        assert answer.status_code == 200, answer.text
        assert answer.json()["digest"] == second
        assert [one["RM_2"] for one in digests(cluster)] == [second, second]  # at once: it answers when all have it
        before = load.seen[first]
        load.wait_for(8)
        assert load.seen[first] <= before + 4  # what was in flight
    assert not load.failures and load.seen[first] and load.seen[second]
    assert put(cluster.url, "round-2").status_code == 200  # again: nothing to do


@pytest.mark.slow
def test_a_replica_killed_under_load_costs_a_client_nothing(cluster, truths):
    """… and the one that takes its place has the rung that was put since the deployment."""
    _, second = truths
    assert put(cluster.url, "round-2").status_code == 200
    with Load(cluster.url, truths, patience=60) as load:
        killed = cluster.submit(serve_cluster.kill_a_replica).result()
        load.wait_for(20)
        cluster.submit(serve_cluster.wait_until_replaced, killed).result()
        load.wait_for(8)
    assert not load.failures and set(load.seen) == {second}
    assert [one["RM_2"] for one in digests(cluster)] == [second, second]


@pytest.mark.slow
def test_a_node_that_goes_leaves_the_service(cluster, truths):
    with Load(cluster.url, truths, patience=60) as load:
        cluster.submit(serve_cluster.remove_a_node).result()
        load.wait_for(40)
    assert not load.failures
    cluster.submit(serve_cluster.add_a_node).result()
    cluster.submit(serve_cluster.wait_until_running, 2).result()
    with Load(cluster.url, truths, patience=60) as load:
        load.wait_for(8)


# -- without a cluster ------------------------------------------------------------------------------------------------


def test_tokens_do_not_travel_in_arguments_and_are_needed(monkeypatch):
    from rm_server.cluster import settings_of

    monkeypatch.delenv("FINPERCEP_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=r"admin_token and token must not stand in args.*FINPERCEP_TOKEN"):
        settings_of({"token": TOKEN, "admin_token": ADMIN})
    with pytest.raises(ConfigError, match="set a token"):
        settings_of({})
    with pytest.raises(ConfigError, match=r"max_images: .*greater than 0"):
        settings_of({"max_images": 0, "host": "127.0.0.1"})
    assert settings_of({"host": "127.0.0.1"}).token is None
    monkeypatch.setenv("FINPERCEP_TOKEN", TOKEN)
    assert settings_of({"max_images": 3}).max_images == 3


@pytest.fixture
def service(ladders):
    from rm_server.cluster import ReplicaService

    class Asked:
        """A rollout that only remembers."""

        asked = ()

        async def put(self, name, source):
            self.asked = (name, source)

    rollout = Asked()
    registry = Registry({rung: [one] for rung, one in load_predictors(ladders / "first").items()})
    service = ReplicaService(registry, Settings(model_root=ladders), rollout)
    service.rollout = rollout
    yield service
    service.close()


def test_a_replica_takes_what_the_user_config_says_and_nothing_else(service, truths):
    from rm_server.cluster import UserConfig

    first, second = truths

    def take(**rungs: dict[str, str]) -> list[str]:
        asyncio.run(service.take(UserConfig(rungs=rungs)))
        return [rung.digest for rung in service.registry.rungs]

    ladder = [rung.digest for rung in service.registry.rungs]
    assert ladder[-1] == first
    assert take(RM_2={"source": "round-2", "digest": second}) == [*ladder[:2], second]
    with pytest.raises(Problem, match="not the one that was asked for"):
        take(RM_2={"source": "round-2", "digest": first})
    assert service.registry.default.digest == second
    assert take(RM_2={"source": "nowhere", "digest": second}) == [*ladder[:2], second]  # it is served: nothing is loaded
    with pytest.raises(Problem, match="no ladder or rung 'nowhere'"):
        take(RM_2={"source": "nowhere", "digest": first})
    assert service.registry.default.digest == second
    assert take() == ladder


def test_put_tries_the_rung_before_it_asks_the_others(service, truths):
    first, second = truths
    with pytest.raises(Problem, match="no ladder"):
        asyncio.run(service.put_rung("RM_2", "nowhere", None))
    assert service.rollout.asked == ()
    asyncio.run(service.put_rung("RM_2", "round-2", None))
    name, source = service.rollout.asked
    assert (name, source.source, source.digest) == ("RM_2", "round-2", second)
    assert service.registry.default.digest == first  # Serve says when
