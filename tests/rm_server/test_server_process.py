"""A real server process on a free loopback port, with real models: the way the demo and a user meet it."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import httpx
import pytest
import torch

from data_synth.schema.pixels import encode_png
from finpercep.cli.serve import _listen
from finpercep.cli.server_process import COMMAND, ServerProcess
from finpercep.client import RewardClient
from finpercep.errors import ConfigError, RewardUnavailable
from finpercep.local_reward import LocalSource
from finpercep.predictor import load_predictors
from finpercep.reward import RewardWeights
from tests.fakes import photo

LARGEST_BODY = 4 * 1024 * 1024
DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def server(small_ladder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINPERCEP_MAX_BODY_BYTES", str(LARGEST_BODY))
        process = ServerProcess(small_ladder).__enter__()
    yield process
    begun = time.monotonic()
    process.stop()
    assert time.monotonic() - begun < 5  # it ends when it is asked to, without being killed


@pytest.fixture
def client(server):
    with RewardClient(server.url) as client:
        yield client


@pytest.fixture(scope="module")
def predictors(small_ladder):
    return load_predictors(small_ladder)


@pytest.mark.parametrize("rung", ["RM_0", "RM_1"])
def test_served_reward_and_gradient_are_the_local_ones(client, predictors, rung):
    weights = RewardWeights(1, 0.5, 0.25)
    results = []
    for source in (LocalSource(predictors), client):
        pixels = torch.stack([torch.tensor(photo(seed=seed)).permute(2, 0, 1) / 255 for seed in range(3)]).requires_grad_()
        rewards = source.reward_fn(rung, weights)(pixels)
        (rewards.reward * torch.tensor([1.0, -2.0, 0.5])).sum().backward()
        numbers = (rewards.reward, rewards.score, rewards.max_degradation, rewards.mean_degradation)
        results.append((*(number.detach() for number in numbers), pixels.grad))
    scale = results[0][-1].abs().max()
    assert scale > 0
    for local, remote in zip(*results, strict=True):
        torch.testing.assert_close(remote, local, rtol=1e-4, atol=1e-6)
    assert (results[0][-1] - results[1][-1]).abs().max() < 1e-4 * scale


def test_served_assessment_is_the_local_one(client, predictors):
    pixels = photo(90, 130)
    got = client.score_images([pixels], map=True)[0]
    expected = predictors["RM_2"].assess(pixels)
    assert got.model.digest == predictors["RM_2"].digest
    for name in ("score", "reward", "max_degradation", "mean_degradation"):
        assert getattr(got, name) == pytest.approx(getattr(expected, name), abs=1e-6)
    torch.testing.assert_close(got.map, expected.map, rtol=0, atol=2e-5)


def test_result_does_not_depend_on_the_batch(client):
    images = torch.stack([torch.tensor(photo(seed=seed)).permute(2, 0, 1) for seed in range(4)])
    together = client.score_tensor(images, "RM_1", grad=True)
    alone = client.score_tensor(images[2:3], "RM_1", grad=True)
    torch.testing.assert_close(together.reward[2:3], alone.reward, rtol=0, atol=1e-5)
    torch.testing.assert_close(together.grads[2:3], alone.grads, rtol=1e-3, atol=1e-5 * float(alone.grads.abs().max()))


def test_the_curl_of_the_readme(server):
    answer = httpx.post(f"{server.url}/score", files={"image": ("photo.png", encode_png(photo()))}, timeout=60, trust_env=False)
    assert answer.status_code == 200
    assert 0 <= answer.json()["items"][0]["score"] <= 1


def test_a_page_of_another_name_is_not_answered(server):
    answer = httpx.get(f"{server.url}/model", headers={"host": "evil.example"}, timeout=60, trust_env=False)
    assert answer.status_code == 400 and answer.json()["field"] == "Host"


def test_the_code_of_the_documentation_gives_the_local_reward_and_gradient(server, predictors):
    (block,) = re.findall(r"^```python\n(.*?)^```", (DOCS / "server.md").read_text(), re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    exec(compile(block, "server.md", "exec"), names)
    images = torch.stack([torch.tensor(photo(seed=seed)).permute(2, 0, 1) / 255 for seed in range(2)])
    reward, gradient = names["reward_and_gradient"](server.url, images)
    pixels = images.clone().requires_grad_()
    expected = LocalSource(predictors).reward_fn("RM_2", RewardWeights())(pixels).reward
    expected.sum().backward()
    torch.testing.assert_close(reward, expected.detach(), rtol=0, atol=1e-5)
    assert (gradient - pixels.grad).abs().max() < 1e-3 * pixels.grad.abs().max()


def test_an_early_refusal_reaches_a_client_that_is_still_sending(server, client):
    """The server answers before the body is in; the client must see the sentence, not a broken connection."""
    body = b"x" * (16 * LARGEST_BODY)
    answer = httpx.post(f"{server.url}/score", content=body, headers={"content-type": "image/png"}, timeout=60, trust_env=False)
    assert answer.status_code == 413 and f"at most {LARGEST_BODY} bytes" in answer.json()["detail"]
    assert client.model().name == "small"


def test_a_server_that_cannot_start_says_why(tmp_path):
    with pytest.raises(RewardUnavailable, match=r"ended with exit code 1: .*ladder"):
        ServerProcess(tmp_path / "nothing").__enter__()
    with pytest.raises(RewardUnavailable, match="cannot be started"):
        ServerProcess(command=[str(tmp_path / "no-such-program")]).__enter__()


@pytest.mark.parametrize(
    ("sizes", "words"),
    [("big", "warm_up: sizes must be like 256,640x480, got 'big'"), ("16", "warm_up: image must be at least 32 px")],
)
def test_a_size_that_cannot_be_warmed_up_is_told_in_one_line(small_ladder, sizes, words):
    with pytest.raises(RewardUnavailable, match=f"ended with exit code 1: (error: )?{words}"):
        ServerProcess(small_ladder, command=[*COMMAND, "--warm-up", sizes]).__enter__()


def test_a_server_is_ready_when_it_has_warmed_up(small_ladder):
    with ServerProcess(small_ladder, command=[*COMMAND, "--warm-up", "64,96x48"]) as server, RewardClient(server.url) as client:
        assert 0 <= client.score_images([photo()])[0].score <= 1


def test_a_server_that_never_gets_ready_is_ended():
    code = "import sys, time; print('silence', file=sys.stderr, flush=True); time.sleep(60)"
    with pytest.raises(RewardUnavailable, match="not ready within 2 s: silence"):
        ServerProcess(command=[sys.executable, "-c", code], start_timeout=2).__enter__()


def test_a_port_that_is_taken(server):
    host, port = server.url.removeprefix("http://").split(":")
    with pytest.raises(ConfigError, match=f"cannot listen on {host}:{port}"):
        _listen(host, int(port))
