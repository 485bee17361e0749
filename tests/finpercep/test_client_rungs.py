"""What a client does beside scoring: LR pictures of a rung that takes them, and rungs put in place of others."""

from __future__ import annotations

import asyncio
import shutil

import httpx
import pytest
import torch

from data_synth.schema.pixels import encode_png
from finpercep.checkpoint import write_checkpoint
from finpercep.client import AsyncRewardClient, RemoteReward, RewardClient
from finpercep.errors import RewardChanged, RewardRejected
from finpercep.predictor import as_image, load_predictor, load_predictors
from finpercep.reward import RewardWeights
from finpercep.reward_model.model import FinPercepRM
from rm_server.app import create_app
from rm_server.settings import Settings
from tests.fakes import AppTransport, fake_ladder, photo, registry_of

URL = "http://server"
ADMIN = "another-token-of-sixteen"
WEIGHTS = RewardWeights(1, 0.5, 0.25)
PICTURES = [photo(seed=seed) for seed in range(2)]
LOWS = [photo(12, 16, seed=seed + 7) for seed in range(2)]


@pytest.fixture(scope="module")
def predictors(small_ladder):
    return load_predictors(small_ladder)


@pytest.fixture
def client(predictors):
    transport = AppTransport(create_app(registry_of(predictors), Settings()))
    with RewardClient(URL, transport=transport, cache_bytes=2**20) as client:
        yield client


# --- LR pictures ---


def test_files_and_images_are_scored_beside_their_lr_pictures(client, predictors, tmp_path):
    names = {"sr": PICTURES, "lr": LOWS}
    paths = {kind: [tmp_path / f"{kind}-{index}.png" for index in range(2)] for kind in names}
    for kind, pictures in names.items():
        for path, pixels in zip(paths[kind], pictures, strict=True):
            path.write_bytes(encode_png(pixels))
    expected = [predictors["RM_2"].assess(one, lr=low).score for one, low in zip(PICTURES, LOWS, strict=True)]
    blind = [predictors["RM_2"].assess(one).score for one in PICTURES]
    assert all(abs(one - other) > 1e-4 for one, other in zip(expected, blind, strict=True))
    for _ in range(2):  # kept scores know which LR picture they were beside
        files = client.score_files(paths["sr"], lr=paths["lr"])
        images = client.score_images(PICTURES, lr=LOWS)
        for got in (files, images):
            assert [one.score for one in got] == pytest.approx(expected, abs=1e-5)
        assert [one.score for one in client.score_images(PICTURES)] == pytest.approx(blind, abs=1e-5)


def test_a_differentiable_reward_beside_lr_pictures(client, predictors):
    lr = torch.stack([as_image(low) for low in LOWS]).float() / 255
    source = RemoteReward(client, "RM_2", WEIGHTS)
    pixels = (torch.stack([as_image(one) for one in PICTURES]).float() / 255).requires_grad_()
    rewards = source(pixels, lr)
    rewards.reward.sum().backward()
    with_map, maps = source.with_map(pixels.detach(), lr)
    for index in range(2):
        alone = pixels.detach()[index : index + 1].clone().requires_grad_()
        batch = predictors["RM_2"].score(alone, lr[index : index + 1])
        reward = predictors["RM_2"].assess(PICTURES[index], WEIGHTS, lr=LOWS[index]).reward
        assert float(rewards.reward.detach()[index]) == pytest.approx(reward, abs=1e-4)
        torch.testing.assert_close(rewards.score[index : index + 1], batch.score.detach(), rtol=0, atol=1e-5)
        torch.testing.assert_close(maps[index], batch.map[0].detach(), rtol=0, atol=1e-4)
        response = client.score_tensor(alone, "RM_2", WEIGHTS, grad=True, lr=lr[index : index + 1])
        torch.testing.assert_close(
            pixels.grad[index], response.grads[0], rtol=1e-3, atol=1e-4 * float(response.grads.abs().max())
        )
    torch.testing.assert_close(with_map.reward, rewards.reward.detach(), rtol=0, atol=1e-5)
    assert (source(pixels.detach()).score - rewards.score).abs().min() > 1e-4


@pytest.mark.parametrize("lr", [LOWS[:1], [*LOWS, LOWS[0]]])
def test_there_is_one_lr_picture_for_each_image(client, lr):
    with pytest.raises(RewardRejected, match="one LR picture for each image"):
        client.score_images(PICTURES, lr=lr)
    with pytest.raises(RewardRejected, match="one picture for each of the 2 images"):
        client.score_tensor([as_image(one) for one in PICTURES], lr=[as_image(low) for low in lr])


# --- rungs that take another's place ---


@pytest.fixture
def refreshed(small_ladder, tmp_path):
    """A model root with the small ladder, and a digest: of the rung a trainer wrote into a folder of its own just now."""
    shutil.copytree(small_ladder, tmp_path / "ladder")
    model = FinPercepRM.load(small_ladder / "RM_2")
    state = {name: tensor * 1.5 if name.startswith("score_head.") else tensor for name, tensor in model.state_dict().items()}
    return tmp_path, write_checkpoint(tmp_path / "run-7" / "rungs" / "RM_2", model.config.to_json(), state)


def expected_score(folder) -> float:
    model = FinPercepRM.load(folder)
    with torch.no_grad():
        return float(model(as_image(PICTURES[0])[None].float() / 255).score)


def server(root, predictors):
    return AppTransport(create_app(registry_of(predictors), Settings(model_root=root, admin_token=ADMIN)))


def test_a_rung_that_a_trainer_wrote_is_published(refreshed, predictors):
    root, digest = refreshed
    transport = server(root, predictors)
    with RewardClient(URL, transport=transport) as client, RewardClient(URL, transport=transport) as other:
        old = client.score_images(PICTURES[:1])[0]
        assert old.model.digest != digest
        other.score_images(PICTURES[:1])
        reply = client.put_rung("RM_2", "run-7/rungs/RM_2", digest=digest, admin_token=ADMIN)
        assert (reply.rung, reply.digest, [rung.name for rung in reply.rungs]) == ("RM_2", digest, ["RM_0", "RM_1", "RM_2"])
        for rung in (None, "RM_2"):
            new = client.score_images(PICTURES[:1], rung=rung)[0]
            assert new.model.digest == digest
            assert new.score == pytest.approx(expected_score(root / "run-7" / "rungs" / "RM_2"), abs=1e-5)
            assert abs(new.score - old.score) > 1e-4
        with pytest.raises(RewardChanged, match="the model behind RM_2 has changed"):
            other.score_images(PICTURES[:1])
        back = client.put_rung("RM_2", "ladder", admin_token=ADMIN)
        assert back.digest == old.model.digest
        assert client.score_images(PICTURES[:1])[0].score == pytest.approx(old.score, abs=1e-6)


def test_a_rung_with_a_new_name_becomes_the_default(refreshed, predictors):
    root, digest = refreshed
    with RewardClient(URL, transport=server(root, predictors)) as client:
        for rung in (None, "-1"):
            assert client.score_images(PICTURES[:1], rung=rung)[0].model.rung == "RM_2"
        assert client.put_rung("RM_3", "run-7/rungs/RM_2", admin_token=ADMIN).rung == "RM_3"
        for rung in (None, "-1"):
            assert client.score_images(PICTURES[:1], rung=rung)[0].model.digest == digest
        assert list(client.rungs()) == ["RM_0", "RM_1", "RM_2", "RM_3"]


@pytest.mark.parametrize(
    ("source", "options", "status", "words"),
    [
        ("run-7/rungs/RM_2", {"digest": "sha256:other"}, 409, "not the one that was asked for"),
        ("run-7/rungs/RM_2", {"admin_token": "a wrong one"}, 401, "Bearer TOKEN"),
        ("run-7/rungs", {}, 404, "no ladder or rung 'run-7/rungs'; it has ladder, run-7/"),
        ("run-7/../ladder", {}, 404, "no ladder or rung"),
        ("/run-7/rungs/RM_2", {}, 404, "no ladder or rung"),
        ("run-7/rungs/RM_2/", {}, 404, "no ladder or rung"),
    ],
)
def test_a_rung_that_is_refused_changes_nothing(refreshed, predictors, source, options, status, words):
    root, _ = refreshed
    with RewardClient(URL, transport=server(root, predictors)) as client:
        before = client.model()
        with pytest.raises(RewardRejected, match=words) as caught:
            client.put_rung("RM_2", source, **{"admin_token": ADMIN, **options})
        assert caught.value.status == status and client.model() == before


def test_a_rung_half_written_is_refused(refreshed, predictors):
    root, digest = refreshed
    weights = root / "run-7" / "rungs" / "RM_2" / "model.safetensors"
    whole = weights.read_bytes()
    with RewardClient(URL, transport=server(root, predictors)) as client:
        for body in (whole[:-100], whole[:-1] + b"!"):
            weights.write_bytes(body)
            with pytest.raises(RewardRejected, match="run-7/rungs/RM_2: ") as caught:
                client.put_rung("RM_2", "run-7/rungs/RM_2", admin_token=ADMIN)
            assert caught.value.status == 409
        weights.write_bytes(whole)
        assert client.put_rung("RM_2", "run-7/rungs/RM_2", digest=digest, admin_token=ADMIN).digest == digest


def test_all_of_several_servers_take_it(refreshed, small_ladder):
    root, digest = refreshed
    hosts = {name: server(root, load_predictors(small_ladder)) for name in ("a", "b")}
    transport = httpx.MockTransport(lambda request: hosts[request.url.host].handle_request(request))
    with RewardClient(["http://a", "http://b"], transport=transport) as client:
        client.model()
        client.put_rung("RM_2", "run-7/rungs/RM_2", digest=digest, admin_token=ADMIN)
    for name in hosts:
        with RewardClient(f"http://{name}", transport=transport) as client:
            assert client.model().digest == digest


def test_a_server_that_does_not_take_it_is_named(refreshed, predictors):
    root, _ = refreshed
    hosts = {"a": server(root, dict(predictors)), "b": AppTransport(create_app(registry_of(fake_ladder()), Settings()))}
    transport = httpx.MockTransport(lambda request: hosts[request.url.host].handle_request(request))
    client = RewardClient(["http://a", "http://b"], transport=transport)
    with client, pytest.raises(RewardRejected, match="http://b: this server has no admin token"):
        client.put_rung("RM_2", "run-7/rungs/RM_2", admin_token=ADMIN)


def test_the_asynchronous_client_publishes_too(refreshed, predictors):
    root, digest = refreshed
    app = create_app(registry_of(predictors), Settings(model_root=root, admin_token=ADMIN))

    async def publish():
        async with AsyncRewardClient(URL, transport=httpx.ASGITransport(app)) as client:
            await client.score_images(PICTURES[:1])
            reply = await client.put_rung("RM_2", "run-7/rungs/RM_2", digest=digest, admin_token=ADMIN)
            (score,) = await client.score_images(PICTURES[:1], lr=LOWS[:1])
            return reply, score

    reply, score = asyncio.run(publish())
    assert reply.digest == score.model.digest == digest


def test_a_rung_alone_scores_as_it_does_in_its_ladder(predictors, small_ladder):
    """`load_rung` takes both; the folder of a rung inside a ladder is one, too."""
    from rm_server.registry import load_rung

    alone = load_rung(small_ladder.parent, f"{small_ladder.name}/RM_1", "RM_1", [torch.device("cpu")])
    inside = load_predictor(small_ladder, "RM_1")
    assert (alone.digest, alone.rung, alone.has_map) == (inside.digest, "RM_1", True)
    assert alone.replicas[0].assess(PICTURES[0]).score == inside.assess(PICTURES[0]).score
