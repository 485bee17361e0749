"""A reward that can be shown LR pictures is shown those of the images it scores, by every algorithm, through every wrapper."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finpercep.client import RewardClient
from finpercep.curriculum.blended_reward import BlendedReward, LadderReward, RungScale, ScaledReward
from finpercep.curriculum.loop import FinetuneConfig, finetune
from finpercep.curriculum.metrics import TimedReward
from finpercep.curriculum.run_directory import RunDirectory
from finpercep.curriculum.schedule import RungBlend
from finpercep.curriculum.watch import MonitorConfig
from finpercep.errors import RewardRejected
from finpercep.local_reward import LocalSource, score_batch
from finpercep.predictor import load_predictors, packaged_model_folder
from finpercep.reward import Rewards, RewardWeights, beside
from finpercep.rl.algorithms import ALGORITHMS
from finpercep.weighted_reward import Part, WeightedReward, WeightedSource
from rm_server.app import create_app
from rm_server.settings import Settings
from tests.fakes import AppTransport, registry_of
from tests.finpercep.rl.finetuning_process import SETTINGS, draw_pair, policy

WEIGHTS = RewardWeights()
GENERATOR = torch.Generator().manual_seed(0)
IMAGES, LR = torch.rand(3, 3, 64, 64, generator=GENERATOR), torch.rand(3, 3, 16, 16, generator=GENERATOR)


@pytest.fixture(scope="module")
def predictors():
    return load_predictors(packaged_model_folder())


def test_a_local_reward_sees_the_lr_pictures(predictors):
    reward = LocalSource(predictors).reward_fn("RM_2", WEIGHTS)
    shown = beside(reward, LR)
    expected, maps = score_batch(predictors["RM_2"], IMAGES, WEIGHTS, LR)
    assert torch.equal(shown(IMAGES).reward, expected.reward)
    assert torch.equal(shown.with_map(IMAGES)[1], maps)
    assert not torch.allclose(reward(IMAGES).reward, expected.reward, atol=1e-4)
    with pytest.raises(RewardRejected, match="one LR picture for each of 2 images, got 3"):
        shown(IMAGES[:2])


def test_a_served_reward_is_the_local_one(predictors):
    local = beside(LocalSource(predictors).reward_fn("RM_2", WEIGHTS), LR)
    ours, theirs = (IMAGES.clone().requires_grad_() for _ in range(2))
    expected = local(ours).reward
    expected.sum().backward()
    with RewardClient("http://test", transport=AppTransport(create_app(registry_of(predictors), Settings()))) as client:
        remote = beside(client.reward_fn("RM_2", WEIGHTS), LR)
        got = remote(theirs).reward
        got.sum().backward()
        assert torch.allclose(remote.with_map(IMAGES)[1], local.with_map(IMAGES)[1], atol=1e-5)
    assert torch.allclose(got, expected, atol=1e-5) and torch.allclose(theirs.grad, ours.grad, atol=1e-5)


class Recording:
    """Rewards brightness; what it was shown is in ``seen``, (LR pictures or None, images)."""

    def __init__(self, seen, lr=None):
        self.seen, self.lr = seen, lr

    def beside(self, lr):
        return Recording(self.seen, lr)

    def __call__(self, images):
        self.seen.append((self.lr, images.detach()))
        brightness = images.mean((1, 2, 3))
        return Rewards(brightness, brightness.detach(), torch.zeros(len(images)), torch.zeros(len(images)))

    def with_map(self, images):
        return self(images), None


class Recorder:
    def __init__(self):
        self.seen = []

    def rungs(self):
        return ["a", "b"]

    def has_map(self, rung):
        return False

    def reward_fn(self, rung, weights):
        return Recording(self.seen)


@pytest.mark.parametrize("lr", [None, LR])
def test_scales_are_measured_beside_the_lr_pictures_that_are_shown(lr):
    part = Recorder()
    WeightedSource([Part("recorder", 1.0, part)]).measure(IMAGES, WEIGHTS, lr)
    assert len(part.seen) == 2 and all(shown is lr for shown, _ in part.seen)


def test_every_wrapper_hands_them_on():
    seen = []
    plain = Recording(seen)
    part = Part("a", 1.0, Recorder())
    from finpercep.weighted_reward import Scale

    for wrapped in (
        ScaledReward(plain, RungScale(2.0, 0.0)),
        BlendedReward(plain, plain, 0.5),
        WeightedReward([(part, Scale, plain)], 0),
        TimedReward(plain, shows_lr=True),
    ):
        beside(wrapped, LR)(IMAGES)
        assert all(lr is LR for lr, _ in seen) and seen
        seen.clear()
    timed = TimedReward(plain, shows_lr=True)
    beside(timed, LR)(IMAGES)
    assert timed.seconds > 0
    seen.clear()
    beside(TimedReward(plain), LR)(IMAGES)
    assert [lr for lr, _ in seen] == [None]
    ladder = LadderReward(source := Recorder(), WEIGHTS)
    ladder.reach(1, IMAGES, LR)
    beside(ladder.at(RungBlend(0, 1, 0.5)), LR)(IMAGES)
    assert len(source.seen) == 4 and all(lr is LR for lr, _ in source.seen)


@pytest.mark.parametrize("algorithm", SETTINGS)
@pytest.mark.parametrize("show", [True, False])
def test_every_algorithm_shows_the_lr_pictures_of_what_is_scored(tmp_path, algorithm, show):
    """Of all LR pictures of the run, those that it is shown are nearest to its images."""
    source = Recorder()
    held_out = tuple(torch.stack(side) for side in zip(*(draw_pair(np.random.default_rng(k)) for k in range(3)), strict=True))
    config = FinetuneConfig(
        algorithm=ALGORITHMS[algorithm](**SETTINGS[algorithm]), steps=2, batch_size=3, crop=16, lr=1e-6, show_lr=show,
        snapshot_every=1, monitor=MonitorConfig(every=1, images=3, on_alarm="warn"),
    )  # fmt: skip
    list(finetune(policy(), source, draw_pair, lambda x: [x], config, RunDirectory(tmp_path), held_out=held_out))
    assert source.seen and all((lr is not None) is show for lr, _ in source.seen)
    if show:
        offered = torch.cat([lr for lr, _ in source.seen]).mean((1, 2, 3))
        for lr, images in source.seen:
            assert len(lr) == len(images)
            # an untrained policy's output is its LR picture and noise around it, so brightness says which it was
            made = images.mean((1, 2, 3))
            nearest = offered[(made[:, None] - offered[None]).abs().argmin(1)]
            assert (nearest - lr.mean((1, 2, 3))).abs().max() < 0.1
