"""The reward in this process: fused as method §5 says, differentiable through ``reward`` alone."""

from __future__ import annotations

import pytest
import torch

from finpercep.errors import RewardRejected
from finpercep.local_reward import LocalReward, LocalSource, as_pixels
from finpercep.predictor import load_predictor
from finpercep.reward import RewardWeights, top_fraction_mean
from tests.fakes import FakePredictor, fake_ladder

WEIGHTS = RewardWeights(0.5, 2.0, 3.0, 0.1)


def test_reward_is_the_formula():
    predictor = FakePredictor()
    images = torch.rand(2, 3, 40, 32, generator=torch.Generator().manual_seed(0))
    batch = predictor.score(images)
    rewards = LocalReward(predictor, WEIGHTS)(images)
    worst, mean = top_fraction_mean(batch.map, 0.1), batch.map.mean(dim=(1, 2))
    torch.testing.assert_close(rewards.reward, 0.5 * batch.score + 2 * (1 - worst) + 3 * (1 - mean))
    torch.testing.assert_close(rewards.max_degradation, worst)
    torch.testing.assert_close(rewards.mean_degradation, mean)


def test_result_does_not_depend_on_the_batch():
    reward = LocalSource(fake_ladder()).reward_fn("RM_2", WEIGHTS)
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    together = reward(images).reward
    torch.testing.assert_close(together, torch.cat([reward(one[None]).reward for one in images]), rtol=1e-6, atol=1e-7)


def test_pixels_of_every_wire_dtype():
    bytes_ = torch.tensor([0, 51, 255], dtype=torch.uint8)
    torch.testing.assert_close(as_pixels(bytes_, torch.device("cpu")), torch.tensor([0.0, 0.2, 1.0]))
    half = torch.tensor([0.0, 0.25, 1.0], dtype=torch.bfloat16)
    assert as_pixels(half, torch.device("cpu")).tolist() == [0.0, 0.25, 1.0]


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        (torch.full((2, 3, 12, 16), 255.0), "lr"),
        (torch.rand(2, 3, 64, 16), "must not be larger than their images, 64x48, got 16x64"),
        (torch.rand(1, 3, 12, 16), "one LR picture for each of 2 images, got 1"),
    ],
)
def test_lr_pictures_are_looked_at_as_the_wire_does(small_ladder, lr, message):
    reward = LocalReward(load_predictor(small_ladder, "RM_2"), RewardWeights()).beside(lr)
    with pytest.raises(RewardRejected, match=message):
        reward(torch.rand(2, 3, 48, 64))
