"""Rewards by name: metrics, functions, several at once; scales in closed form, and what is refused."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from finpercep.cli import app
from finpercep.cli.reward_sources import keep_scales, open_rewards
from finpercep.curriculum.blended_reward import LadderReward
from finpercep.curriculum.schedule import RungBlend
from finpercep.errors import ConfigError, RewardError, RewardRejected, WeightsError
from finpercep.local_reward import LocalSource
from finpercep.metric_reward import MetricReward, MetricSource, pyiqa_metric
from finpercep.predictor import load_predictors
from finpercep.reward import RewardWeights, score_with_map
from finpercep.weighted_reward import Part, Scale, WeightedSource
from tests.fakes import photo

WEIGHTS = RewardWeights()


def brightness(images):
    return images.mean((1, 2, 3))


def redness(images):
    return 100 * images[:, 0].mean((1, 2))


def opened(*specs):
    return open_rewards(specs, "cpu", None)


def test_a_function_by_name_is_a_differentiable_reward():
    with opened(f"python:{__name__}:brightness") as (source, described):
        (rung,) = source.rungs()
        images = torch.rand(3, 3, 8, 8, requires_grad=True)
        rewards = source.reward_fn(rung, WEIGHTS)(images)
    assert torch.equal(rewards.reward, brightness(images))
    rewards.reward.sum().backward()
    assert torch.allclose(images.grad, torch.full_like(images, 1 / 192))
    assert described == {f"{__name__}:brightness": {"weight": 1.0}}


def test_a_function_of_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "metric_of_this_folder.py").write_text("def darkness(images):\n    return 1 - images.mean((1, 2, 3))\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # as a console script has it
    with opened("python:metric_of_this_folder:darkness") as (source, _):
        assert source.reward_fn(source.rungs()[0], WEIGHTS)(torch.zeros(2, 3, 8, 8)).reward.tolist() == [1.0, 1.0]


def test_the_packaged_ladder_by_name():
    with opened("packaged") as (source, described):
        assert source.rungs()[0] == "RM_0"
    assert described["ladder"]["rungs"].keys() == set(source.rungs())


def test_a_pyiqa_metric_is_turned_so_that_higher_is_better():
    """piqe, of which less is better: the reward is its negative."""
    import pyiqa

    images = torch.rand(1, 3, 96, 96)
    theirs = pyiqa.create_metric("piqe")
    assert theirs.lower_better
    assert pyiqa_metric("piqe")(images).item() == pytest.approx(-theirs(images).item())
    with pytest.raises(WeightsError, match="not a no-reference metric"):
        pyiqa_metric("psnr")


def test_several_rewards_are_scaled_weighted_and_logged_on_their_own():
    images = torch.rand(6, 3, 8, 8)
    source = WeightedSource(
        [Part("bright", 2.0, MetricSource("bright", brightness)), Part("red", 0.5, MetricSource("red", redness))]
    )
    source.measure(images, WEIGHTS)
    rewards = source.reward_fn("bright", WEIGHTS)(images)
    z = [(v - v.mean()) / v.std(correction=0) for v in (brightness(images), redness(images))]
    assert torch.allclose(rewards.reward, 2 * z[0] + 0.5 * z[1], atol=1e-4)
    assert torch.equal(rewards.parts["red"], redness(images))
    assert torch.equal(rewards.score, brightness(images))


def test_a_part_without_a_gradient_is_not_left_to_the_others():
    parts = [("bright", brightness), ("cut", lambda images: brightness(images.detach()))]
    source = WeightedSource([Part(name, 1.0, MetricSource(name, metric)) for name, metric in parts])
    reward, images = source.reward_fn("bright", WEIGHTS), torch.rand(2, 3, 8, 8)
    assert reward(images).reward.shape == (2,)
    with pytest.raises(RewardRejected, match="gradient, and cut has none"):
        reward(images.requires_grad_())


def test_a_ladder_keeps_its_rungs_beside_a_metric(small_ladder):
    with opened(str(small_ladder), f"0.5*python:{__name__}:brightness") as (source, _):
        assert list(source.rungs()) == ["RM_0", "RM_1", "RM_2"]
        rewards = source.reward_fn("RM_2", WEIGHTS)(torch.rand(2, 3, 64, 64))
        assert set(rewards.parts) == {"ladder", f"{__name__}:brightness"}
        assert rewards.max_degradation.min() > 0


@pytest.mark.parametrize("order", [1, -1])
def test_a_ladder_of_one_rung_keeps_its_map_wherever_it_is_named(small_ladder, order):
    one = LocalSource({"RM_1": load_predictors(small_ladder)["RM_1"]})
    parts = [Part("ladder", 1.0, one), Part("bright", 1.0, MetricSource("bright", brightness))]
    source, images = WeightedSource(parts[::order]), torch.rand(2, 3, 64, 64)
    assert list(source.rungs()) == ["RM_1"] and source.has_map("RM_1")
    rewards, degradation = score_with_map(LadderReward(source, WEIGHTS).at(RungBlend(0)), images)
    assert degradation is not None and rewards.max_degradation.min() > 0
    assert torch.equal(rewards.parts["ladder"], one.reward_fn("RM_1", WEIGHTS)(images).reward)


def test_scales_are_measured_once_for_a_run(tmp_path):
    def source():
        return WeightedSource([Part("a", 1.0, MetricSource("a", brightness)), Part("b", 1.0, MetricSource("b", redness))])

    first, again = source(), source()
    keep_scales(first, tmp_path / "scales.json", lambda: first.measure(torch.rand(4, 3, 8, 8), WEIGHTS))
    keep_scales(again, tmp_path / "scales.json", lambda: pytest.fail("measured twice"))
    assert again.scales() == first.scales() == json.loads((tmp_path / "scales.json").read_text())


def test_every_rung_of_a_ladder_is_on_the_scale_that_was_measured(small_ladder):
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with opened(str(small_ladder), f"python:{__name__}:brightness") as (source, _):
        source.measure(images, WEIGHTS)
        metric = (brightness(images) - brightness(images).mean()) / brightness(images).std(correction=0)
        ladder = LadderReward(source, WEIGHTS)
        for rung in range(3):
            own = ladder.at(RungBlend(rung))(images).reward - metric
            assert own.mean().abs() < 1e-3 and own.std(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_scales_of_other_rewards_are_refused():
    source = WeightedSource([Part("a", 1.0, MetricSource("a", brightness)), Part("b", 1.0, MetricSource("b", redness))])
    source.measure(torch.rand(4, 3, 8, 8), WEIGHTS)
    other = WeightedSource([Part("a", 1.0, MetricSource("a", brightness)), Part("c", 1.0, MetricSource("c", redness))])
    with pytest.raises(ConfigError, match="those of other rewards; they differ in b b, c c"):
        other.set_scales(source.scales())


def test_scales_are_kept_only_of_a_run_that_began(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(photo(48, 48)).save(photos / "a.png")
    rewards = ["--reward", "packaged", "--reward", f"python:{__name__}:brightness"]
    command = ["finetune", "--data", str(photos), "--out", str(tmp_path / "run"), "--crop", "32", "--device", "cpu", *rewards]
    refused = CliRunner().invoke(app, [*command, "--rungs", "RM_9"])
    assert isinstance(refused.exception, ConfigError) and "RM_9" in str(refused.exception)
    assert not (tmp_path / "run" / "reward_scales.json").exists() and not (tmp_path / "run" / "config.toml").exists()


def test_image_reward_through_its_package(monkeypatch):
    """A stand-in for the package, with its interface: tokens in, normalised 224 px images in, (N, 1) out."""
    shown = {}

    class Model(torch.nn.Module):
        class Blip:
            @staticmethod
            def tokenizer(texts, **settings):
                class Words(dict):
                    def to(self, device):
                        return self

                shape = (1, settings["max_length"])
                return Words(input_ids=torch.zeros(shape, dtype=torch.long), attention_mask=torch.ones(shape))

        blip = Blip()

        def score_gard(self, ids, mask, images):
            shown["ids"], shown["images"] = ids.shape, images
            return images.mean((1, 2, 3))[:, None]

    package = types.ModuleType("ImageReward")
    package.load = lambda name, device: Model()
    monkeypatch.setitem(sys.modules, "ImageReward", package)
    with opened("imagereward:a red house") as (source, _):
        images = torch.full((2, 3, 64, 64), 0.48145466, requires_grad=True)
        rewards = source.reward_fn("imagereward", WEIGHTS)(images)
    assert shown["ids"] == (2, 35) and shown["images"].shape == (2, 3, 224, 224)
    assert torch.allclose(shown["images"][:, 0], torch.zeros(2, 224, 224), atol=1e-5)
    rewards.reward.sum().backward()
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["nowhere/at/all"], "expected a server's URL"),
        (["python:json"], "MODULE:FUNCTION"),
        (["python:json:nothing"], "MODULE:FUNCTION"),
        (["python:json:__name__"], "expected a function"),
        (["0*packaged"], "finite and > 0"),
        (["1..2*packaged"], "with a number"),
        (["packaged", "packaged"], "at most one reward can be a ladder"),
        (["0.5*packaged"], "a weight is of one of several"),
        (["imagereward"], "pip install image-reward"),
    ],
)
def test_what_cannot_be_a_reward_is_refused(specs, message):
    with pytest.raises(ConfigError, match=message), opened(*specs):
        pass


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda i: i.mean(), "one number an image"),
        (lambda i: i[:, 0, 0, 0] / 0, "finite"),
        (lambda i: 0.5, "a tensor .* got float"),
        (lambda i: [0.5, 0.5], "a tensor .* got list"),
        (lambda i: i.mean((1, 2, 3)).numpy(), "a tensor .* got ndarray"),
    ],
)
def test_a_metric_that_gives_something_else_is_an_error(metric, message):
    with pytest.raises(RewardError, match=message):
        MetricReward("odd", metric)(torch.rand(2, 3, 8, 8))


def test_a_constant_reward_cannot_be_one_of_several():
    with pytest.raises(ConfigError, match="same number"):
        Scale.of(torch.ones(4))
