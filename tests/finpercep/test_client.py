"""The client against the real application in this process, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import httpx
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from data_synth.schema.pixels import encode_png
from finpercep.client import AsyncRewardClient, RemoteReward, RewardClient
from finpercep.errors import RewardChanged, RewardError, RewardRejected, RewardUnavailable, ServerFailed
from finpercep.local_reward import LocalSource
from finpercep.reward import RewardWeights
from finpercep.wire import ModelId, ScoreResponse, Timing, encode_response
from rm_server.app import create_app
from rm_server.settings import Settings
from tests.fakes import AppTransport, FakePredictor, fake_ladder, photo, registry_of

WEIGHTS = RewardWeights(1.0, 0.7, 0.3, 0.05)
URL = "http://server"


def client_of(predictors: dict[str, FakePredictor], **options: object) -> RewardClient:
    return RewardClient(URL, transport=AppTransport(create_app(registry_of(predictors), Settings(lanes=1))), **options)


@pytest.fixture
def client():
    with client_of(fake_ladder()) as client:
        yield client


def images(count: int = 3) -> torch.Tensor:
    return torch.stack([torch.tensor(photo(seed=seed)).permute(2, 0, 1) / 255 for seed in range(count)])


# --- the loop cannot tell a remote reward from a local one ---


@pytest.mark.parametrize("rung", ["RM_0", "RM_1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_remote_reward_is_the_local_reward(client, rung, dtype):
    results = []
    for source in (LocalSource(fake_ladder()), client):
        pixels = images().to(dtype).requires_grad_()
        rewards = source.reward_fn(rung, WEIGHTS)(pixels)
        # an upstream gradient that differs by image, as a clipped or weighted loss has
        (rewards.reward * torch.tensor([1.0, -2.0, 0.5])).sum().backward()
        numbers = (rewards.reward, rewards.score, rewards.max_degradation, rewards.mean_degradation)
        assert [number.requires_grad for number in numbers] == [True, False, False, False]
        results.append((*(number.detach() for number in numbers), pixels.grad))
    for local, remote in zip(*results, strict=True):
        assert local.dtype == remote.dtype
        torch.testing.assert_close(remote, local, rtol=1e-6, atol=1e-9)
    assert results[0][-1].abs().max() > 0


def test_gradient_passes_through_what_made_the_image(client):
    """The policy's parameter gets the gradient that a finite difference of the served reward predicts."""
    reward = client.reward_fn("RM_1", WEIGHTS)
    picture = images(1) * 0.8
    gain = torch.tensor(1.0, requires_grad=True)
    reward(picture * gain).reward.sum().backward()
    with torch.no_grad():
        step = 1e-2
        slope = (reward(picture * (1 + step)).reward - reward(picture * (1 - step)).reward).sum() / (2 * step)
    torch.testing.assert_close(gain.grad, slope, rtol=2e-2, atol=1e-4)


def test_no_gradient_is_asked_for_when_none_is_needed():
    ladder = fake_ladder()
    seen = []

    class Watching(AppTransport):
        def handle_request(self, request):
            seen.append(request)
            return super().handle_request(request)

    transport = Watching(create_app(registry_of(ladder), Settings()))
    with RewardClient(URL, transport=transport) as client:
        rewards = client.reward_fn("RM_1", WEIGHTS)(images())
        assert not rewards.reward.requires_grad
    assert b'"grad":"false"' in seen[-1].read()


def test_source_lists_rungs_and_refuses_others(client):
    assert list(client.rungs()) == ["RM_0", "RM_1", "RM_2"] == list(LocalSource(fake_ladder()).rungs())
    for source in (client, LocalSource(fake_ladder())):
        with pytest.raises(RewardRejected, match="unknown rung 'RM_9'"):
            source.reward_fn("RM_9", WEIGHTS)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.full((1, 3, 32, 32), float("nan")), "finite"),
        (torch.full((1, 3, 32, 32), 2.0), r"\[0, 1\]"),
        (torch.zeros(3, 32, 32), "N×3×H×W"),
        (torch.zeros(1, 3, 8, 32), "at least 32 px on each side, got 32x8"),
    ],
)
def test_both_refuse_the_same_images(client, bad, words):
    for source in (client, LocalSource(fake_ladder())):
        with pytest.raises(RewardRejected, match=words):
            source.reward_fn("RM_1", WEIGHTS)(bad)


def test_an_image_without_a_reward_is_an_error_never_a_number():
    def spoil(batch):
        broken = batch.score.clone()
        broken[1] = float("nan")
        return type(batch)(broken, batch.map)

    ladder = {"RM_1": FakePredictor(spoil=spoil)}
    with client_of(ladder) as client:
        for source, words in ((client, "1 of 3 images, image 1: .*not finite"), (LocalSource(ladder), "not finite")):
            with pytest.raises(RewardError, match=words):
                source.reward_fn("RM_1", WEIGHTS)(images())


# --- pictures ---


def test_scores_of_pictures_and_files(client, tmp_path):
    paths = []
    for seed in range(3):
        paths.append(tmp_path / f"{seed}.png")
        paths[-1].write_bytes(encode_png(photo(seed=seed)))
    scores = client.score_files(paths, rung="RM_1", weights=WEIGHTS, map=True)
    predictor = fake_ladder()["RM_1"]
    for seed, score in enumerate(scores):
        expected = predictor.assess(photo(seed=seed), WEIGHTS)
        assert (score.score, score.reward, score.max_degradation, score.mean_degradation, score.regions) == (
            expected.score,
            expected.reward,
            expected.max_degradation,
            expected.mean_degradation,
            expected.regions,
        )
        torch.testing.assert_close(score.map, expected.map, rtol=0, atol=0.5001 / 65535)
        assert score.model == ModelId(name="fake", rung="RM_1", digest="digest-of-RM_1")
    again = client.score_images([photo(seed=seed) for seed in range(3)], rung="RM_1", weights=WEIGHTS)
    assert [one.reward for one in again] == [one.reward for one in scores]
    assert again[0].map is None


def test_pictures_go_up_in_groups(client, monkeypatch):
    monkeypatch.setattr("finpercep.exchange.pictures.MAX_UPLOAD", 1)
    pictures = [photo(seed=seed) for seed in range(3)]
    predictor = fake_ladder()["RM_2"]
    assert [one.score for one in client.score_images(pictures)] == [predictor.assess(picture).score for picture in pictures]
    assert client.score_images([]) == []


def test_a_bad_picture_is_named(client, tmp_path):
    (tmp_path / "good.png").write_bytes(encode_png(photo()))
    (tmp_path / "bad.png").write_bytes(b"nonsense")
    with pytest.raises(RewardError, match=r"bad\.png: 8 bytes: not a picture"):
        client.score_files([tmp_path / "good.png", tmp_path / "bad.png"])
    with pytest.raises(RewardRejected, match="8 bytes: not a picture") as caught:
        client.score_files([tmp_path / "bad.png"])
    assert caught.value.status == 422


def test_score_tensor_keeps_errors_apart(client):
    got = client.score_tensor([torch.rand(3, 32, 32), torch.zeros(3, 8, 8)], map=True)
    assert list(got.errors) == [1] and got.score[1].isnan() and got.maps[0].shape == (32, 32)


@pytest.mark.parametrize("failures", ["drop", "nan"])
def test_a_picture_without_a_score_is_left_out_or_nan(client, tmp_path, failures):
    for name, body in (("a.png", encode_png(photo())), ("bad.png", b"nonsense"), ("c.png", encode_png(photo(seed=1)))):
        (tmp_path / name).write_bytes(body)
    paths = sorted(tmp_path.iterdir())
    scores = client.score_files(paths, failures=failures)
    good = [score for score in scores if score.error is None]
    assert [score.score for score in good] == [one.score for one in client.score_files([paths[0], paths[2]])]
    alone = client.score_files([paths[1]], failures=failures)  # a request of one picture fails as a whole
    if failures == "drop":
        assert len(scores) == 2 and alone == []
    else:
        for score in (scores[1], alone[0]):
            assert np.isnan(score.score) and np.isnan(score.reward) and score.error.startswith("bad.png: ")


def breaking_on(picture: np.ndarray) -> FakePredictor:
    """A model that gives one picture no finite score."""
    broken = FakePredictor().assess(picture).score

    def spoil(batch):
        return type(batch)(batch.score.masked_fill((batch.score - broken).abs() < 1e-6, float("nan")), batch.map)

    return FakePredictor(spoil=spoil)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_an_image_that_breaks_the_model_fails_alone_however_images_are_grouped(monkeypatch, most):
    """Alone in its request it is the request that fails, with status 500."""
    monkeypatch.setattr("finpercep.exchange.pictures.MAX_PICTURES", most)
    monkeypatch.setattr("finpercep.exchange.tensors.MAX_IMAGES", most)
    pictures = [photo(seed=seed) for seed in range(3)]
    expected = [FakePredictor().assess(picture).score for picture in pictures[:2]]
    with client_of({"RM_1": breaking_on(pictures[2])}) as client:
        *good, bad = client.score_images(pictures, failures="nan")
        assert [one.score for one in good] == pytest.approx(expected)
        assert np.isnan(bad.score) and "image-2.png: " in bad.error and "not finite" in bad.error
        assert [one.score for one in client.score_images(pictures, failures="drop")] == pytest.approx(expected)
        with pytest.raises(RewardError, match="not finite"):
            client.score_images(pictures)
        response = client.score_tensor(images())
        assert list(response.errors) == [2] and response.score.isnan().tolist() == [False, False, True]


def test_the_asynchronous_client_lets_an_image_fail_alone(monkeypatch):
    monkeypatch.setattr("finpercep.exchange.pictures.MAX_PICTURES", 1)
    app = create_app(registry_of({"RM_1": breaking_on(photo(seed=1))}), Settings(lanes=1))

    async def ask():
        async with AsyncRewardClient(URL, transport=httpx.ASGITransport(app)) as client:
            return await client.score_images([photo(seed=0), photo(seed=1)], failures="nan")

    good, bad = asyncio.run(ask())
    assert good.error is None and "not finite" in bad.error


def test_a_server_that_fails_on_several_images_is_an_error():
    broken = httpx.MockTransport(lambda _: httpx.Response(500, json={"detail": "the sentence"}))
    with RewardClient(URL, transport=broken) as client:
        with pytest.raises(ServerFailed, match="the sentence") as caught:
            client.score_images([photo(seed=seed) for seed in range(2)], failures="nan")
        assert caught.value.status == 500
        with pytest.raises(ServerFailed, match="the sentence"):
            client.score_tensor(images())


def test_a_reward_that_may_be_nan_has_a_gradient_of_nothing():
    def spoil(batch):
        broken = batch.score.clone()
        broken[1] = float("nan")
        return type(batch)(broken, batch.map)

    with client_of({"RM_1": FakePredictor(spoil=spoil)}) as client:
        pixels = images().requires_grad_()
        rewards = RemoteReward(client, "RM_1", WEIGHTS, failures="nan")(pixels)
        assert rewards.reward.isnan().tolist() == [False, True, False]
        rewards.reward[[0, 2]].sum().backward()
        assert [bool(one.any()) for one in pixels.grad] == [True, False, True] and pixels.grad.isfinite().all()
    all_broken = {"RM_1": FakePredictor(spoil=lambda batch: type(batch)(batch.score * float("nan"), batch.map))}
    with client_of(all_broken) as client, pytest.raises(RewardError, match="3 of 3 images"):
        RemoteReward(client, "RM_1", WEIGHTS, failures="nan")(images())


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.tuples(st.integers(30, 40), st.integers(32, 40)), min_size=1, max_size=7),
    st.integers(1, 4000),
    st.booleans(),
    st.booleans(),
)
def test_chunks_join_to_what_one_request_gives(sizes, pixels, grad, wants_map):
    """Whatever the sizes, failing images (a side below 32) among them, and however small the chunks."""
    shot = [torch.tensor(photo(*size, seed=index)).permute(2, 0, 1) for index, size in enumerate(sizes)]
    with client_of(fake_ladder()) as client, pytest.MonkeyPatch.context() as patch:
        if all(size[0] < 32 for size in sizes):
            with pytest.raises(RewardRejected, match="at least 32 px"):
                client.score_tensor(shot[:1], "RM_1")
            return
        whole = client.score_tensor(shot, "RM_1", grad=grad, map=wants_map)
        patch.setattr("finpercep.exchange.tensors.MAX_PIXELS", pixels)
        parts = client.score_tensor(shot, "RM_1", grad=grad, map=wants_map)
    torch.testing.assert_close(parts.score, whole.score, rtol=0, atol=1e-6, equal_nan=True)
    assert list(parts.errors) == list(whole.errors)
    assert all(whole.errors[index] in parts.errors[index] for index in whole.errors)
    for name in ("maps", "grads"):
        ours, theirs = getattr(parts, name), getattr(whole, name)
        assert (ours is None) == (theirs is None)
        for one, other in zip(ours or (), theirs or (), strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


# --- the model must stay what it was ---


def test_a_changed_model_is_an_error():
    ladder = fake_ladder()
    with client_of(ladder) as client:
        reward = client.reward_fn("RM_1", WEIGHTS)
        reward(images())
        ladder["RM_1"].digest = "another"
        for ask in (lambda: reward(images()), client.model, lambda: client.score_images([photo()], rung="RM_1")):
            with pytest.raises(RewardChanged, match=r"digest another, expected digest-of-RM_1"):
                ask()


def test_a_given_digest_is_required():
    with client_of(fake_ladder(), digests={"RM_1": "wanted"}) as client, pytest.raises(RewardChanged, match="expected wanted"):
        client.score_tensor(images(), "RM_1")


def test_another_rung_must_not_answer():
    model = ModelId(name="x", rung="RM_2", digest="d")
    numbers = [torch.full((3,), 0.5)] * 4
    body = encode_response(ScoreResponse(*numbers, model=model, timing=Timing(queue_ms=0, batch_ms=0, compute_ms=0)))
    with RewardClient(URL, transport=httpx.MockTransport(lambda _: httpx.Response(200, content=body))) as client:
        with pytest.raises(RewardChanged, match="RM_1 was expected to answer, RM_2 did"):
            client.score_tensor(images(), "RM_1")
        with pytest.raises(RewardError, match="asked about 2 images and answered about 3"):
            client.score_tensor(images(2), "RM_2")


@pytest.mark.parametrize(("place", "rung"), [("0", "RM_0"), ("-1", "RM_2"), ("1", "RM_1"), ("digest-of-RM_1", "RM_1")])
@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_a_rung_is_asked_for_by_its_place_or_digest(place, rung, cache_bytes):
    with client_of(fake_ladder(), cache_bytes=cache_bytes) as client:
        for _ in range(2):
            (one,) = client.score_images([photo()], rung=place)
            response = client.score_tensor(images(1), place)
            assert one.model.rung == response.model.rung == rung
            assert one.score == client.score_images([photo()], rung=rung)[0].score


def test_a_place_is_held_to_the_rung_that_was_there_first():
    ladder = {rung: FakePredictor(rung) for rung in ("RM_1", "RM_2")}
    apps = [AppTransport(create_app(registry_of(some), Settings())) for some in ({"RM_1": ladder["RM_1"]}, ladder)]
    transport = httpx.MockTransport(lambda request: apps[0].handle_request(request))
    with RewardClient(URL, transport=transport) as client:
        assert client.score_tensor(images(), "-1").model.rung == "RM_1"
        apps.reverse()
        with pytest.raises(RewardChanged, match="RM_1 was expected to answer, RM_2 did"):
            client.score_tensor(images(), "-1")
        assert client.score_tensor(images(), "1").model.rung == "RM_2"
        with pytest.raises(RewardRejected, match="unknown rung '7'"):
            client.score_tensor(images(), "7")


# --- servers that misbehave ---


def failing(*errors: Exception | int) -> tuple[httpx.BaseTransport, list[object]]:
    """A transport whose first answers are ``errors`` (exceptions or statuses), then the real application's."""
    queue, calls = list(errors), []
    app = AppTransport(create_app(registry_of(fake_ladder()), Settings()))

    def handle(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        if not queue:
            return app.handle_request(request)
        error = queue.pop(0)
        if isinstance(error, int):
            return httpx.Response(error, json={"detail": "the sentence"}, headers={"retry-after": "7"})
        raise error

    return httpx.MockTransport(handle), calls


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self):
        self.now, self.slept = 0.0, []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_lost_connections_are_tried_again():
    transport, calls = failing(httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.RemoteProtocolError("gone"))
    clock = Clock()
    with RewardClient(URL, transport=transport, sleep=clock.sleep, clock=clock) as client:
        got = client.score_tensor(images(), "RM_1")
    assert got.score.isfinite().all() and len(calls) == 4
    for pause, longest in zip(clock.slept, (0.1, 0.2, 0.4), strict=True):
        assert longest / 2 <= pause <= longest


def test_a_server_that_is_not_there():
    transport, calls = failing(*[httpx.ConnectError("refused")] * 999)
    words = r"http://server \(refused\); start one with: finpercep serve"
    clock = Clock()
    client = RewardClient(URL, transport=transport, patience=2, sleep=clock.sleep, clock=clock)
    with client, pytest.raises(RewardUnavailable, match=words):
        client.model()
    assert 3 < len(calls) < 12 and 0.5 < clock.now <= 2


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_asked_again_when_it_says(status):
    transport, calls = failing(status, status)
    clock = Clock()
    with RewardClient(URL, transport=transport, sleep=clock.sleep, clock=clock) as client:
        assert client.model().name == "fake"
    assert len(calls) == 3 and clock.slept == [7.0, 7.0]


def test_a_proxy_whose_server_died_is_asked_again():
    """Ray Serve's proxy answers so when a replica dies under a request; a server's own 500 has a sentence."""
    broken = httpx.Response(500, text="Internal Server Error")
    answers = [broken, broken]
    app = AppTransport(create_app(registry_of(fake_ladder()), Settings()))
    transport = httpx.MockTransport(lambda request: answers.pop() if answers else app.handle_request(request))
    clock = Clock()
    with RewardClient(URL, transport=transport, sleep=clock.sleep, clock=clock) as client:
        assert client.model().name == "fake" and len(clock.slept) == 2
    with RewardClient(URL, transport=httpx.MockTransport(lambda _: broken), sleep=clock.sleep, clock=clock) as client:
        with pytest.raises(RewardUnavailable, match="answered 500"):
            client.model()
        assert clock.now <= 1 + 3  # as long as a lost connection is


def test_one_deadline_for_all_tries_of_a_call():
    transport, calls = failing(*[503] * 999)
    clock = Clock()
    client = RewardClient(URL, transport=transport, timeout=20, sleep=clock.sleep, clock=clock)
    with client, pytest.raises(RewardUnavailable, match="the sentence"):
        client.model()
    assert clock.slept == [7.0, 7.0] and len(calls) == 3
    timeouts = [request.extensions["timeout"] for request in calls]
    assert [timeout["read"] for timeout in timeouts] == [20, 13, 6] and timeouts[0]["connect"] == 5


class Hosts(httpx.BaseTransport):
    """Several servers, some of them down; ``asked`` lists who was asked."""

    def __init__(self, *down: str):
        self.down, self.asked = set(down), []
        self.app = AppTransport(create_app(registry_of(fake_ladder()), Settings()))

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.host)
        if request.url.host in self.down:
            raise httpx.ConnectError("refused")
        return self.app.handle_request(request)


def test_another_server_takes_over_at_once_and_keeps_the_work():
    hosts, clock = Hosts("a"), Clock()
    with RewardClient(["http://a", "http://b"], transport=hosts, sleep=clock.sleep, clock=clock) as client:
        client.model()
        client.model()
        assert hosts.asked == ["a", "b", "b"] and clock.slept == []
        hosts.down = {"b"}
        client.model()
        assert hosts.asked[3:] == ["b", "a"] and client.url == "http://a"
        hosts.down = {"a", "b"}
        with pytest.raises(RewardUnavailable):
            client.model()
        assert set(hosts.asked[5:]) == {"a", "b"} and clock.slept


def test_a_token_goes_with_every_request():
    app = AppTransport(create_app(registry_of(fake_ladder()), Settings(token="a-token-of-sixteen")))
    with RewardClient(URL, transport=app, token="a-token-of-sixteen") as client:
        assert client.score_tensor(images()).score.isfinite().all()
    with RewardClient(URL, transport=app) as client, pytest.raises(RewardRejected, match="Bearer TOKEN") as caught:
        client.model()
    assert caught.value.status == 401


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (httpx.ReadTimeout("slow"), RewardUnavailable, "did not answer in time"),
        (500, ServerFailed, "the sentence"),
        (404, RewardRejected, "the sentence"),
        (302, RewardError, "the sentence"),
    ],
)
def test_other_failures_are_not_tried_again(error, kind, words):
    transport, calls = failing(error)
    with RewardClient(URL, transport=transport) as client, pytest.raises(kind, match=words) as caught:
        client.score_tensor(images(), "RM_1")
    assert type(caught.value) is kind and len(calls) == 1


@pytest.mark.parametrize("body", [b"<html>", b"{}", json.dumps({"items": []}).encode()])
def test_replies_that_are_not_the_contracts(body):
    with RewardClient(URL, transport=httpx.MockTransport(lambda _: httpx.Response(200, content=body))) as client:
        for ask in (client.model, lambda: client.score_images([photo()]), lambda: client.score_tensor(images())):
            with pytest.raises(RewardError, match="sent a reply that this client cannot read"):
                ask()


def test_a_url_without_a_scheme_says_what_was_expected():
    with RewardClient("localhost:8000") as client, pytest.raises(RewardUnavailable, match="expected http://HOST:PORT"):
        client.model()


def test_the_client_imports_no_server_and_no_model():
    heavy = ("timm", "segmentation_models_pytorch", "diffusers", "fastapi", "datasets", "torchvision", "scipy", "rm_server")
    code = f"import sys, finpercep.client; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_maps_of_a_rung_without_one_are_none(client):
    assert client.score_images([photo()], rung="RM_0", map=True)[0].map is None
    assert client.score_tensor(images(), "RM_0", map=True).maps is None
    assert np.isfinite(client.score_images([photo()], rung="RM_0")[0].reward)


def test_the_asynchronous_client_gives_the_same(tmp_path):
    app = create_app(registry_of(fake_ladder()), Settings())
    (tmp_path / "a.png").write_bytes(encode_png(photo()))
    shot = [torch.tensor(photo(seed=seed)).permute(2, 0, 1) for seed in range(5)]

    async def ask():
        async with AsyncRewardClient(URL, transport=httpx.ASGITransport(app), concurrency=2) as client:
            reply = await client.model()
            tensors = await asyncio.gather(*(client.score_tensor([one], "RM_1", grad=True) for one in shot))
            files = await client.score_files([tmp_path / "a.png"], rung="RM_1")
            pictures = await client.score_images([photo()], rung="RM_1")
            with pytest.raises(RewardRejected, match="unknown rung"):
                await client.score_tensor(shot, "RM_9")
            return reply, tensors, files, pictures

    reply, tensors, files, pictures = asyncio.run(ask())
    with RewardClient(URL, transport=AppTransport(app)) as client:
        assert client.model() == reply
        expected = client.score_tensor(shot, "RM_1", grad=True)
        torch.testing.assert_close(torch.cat([one.score for one in tensors]), expected.score, rtol=0, atol=1e-6)
        for one, other in zip(tensors, expected.grads, strict=True):
            torch.testing.assert_close(one.grads[0], other, rtol=1e-5, atol=1e-7)
        assert files[0].reward == pictures[0].reward == client.score_images([photo()], rung="RM_1")[0].reward


def test_the_asynchronous_client_ends_what_it_began_when_one_request_fails(monkeypatch):
    monkeypatch.setattr("finpercep.exchange.tensors.MAX_PIXELS", 1)
    refusing = httpx.MockTransport(lambda _: httpx.Response(404, json={"detail": "the sentence"}))

    async def ask():
        async with AsyncRewardClient(URL, transport=refusing) as client:
            with pytest.raises(RewardRejected, match="the sentence"):
                await client.score_tensor(images(), "RM_1")
            assert len(asyncio.all_tasks()) == 1

    asyncio.run(ask())
