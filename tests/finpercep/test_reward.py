"""R_k against its formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finpercep import reward
from finpercep.errors import ConfigError
from finpercep.reward import RewardWeights, fuse, top_fraction_mean


def test_reward_is_the_papers_formula():
    score = torch.tensor([0.8])
    degradation = torch.zeros(1, 10, 10)
    degradation[0, 0, 0] = 1.0
    rewards = fuse(score, degradation, RewardWeights(score=1.0, max=0.5, mean=0.25, top_fraction=0.01))
    assert rewards.max_degradation.item() == 1.0
    assert rewards.mean_degradation.item() == pytest.approx(0.01)
    assert rewards.reward.item() == pytest.approx(0.8 + 0.5 * 0.0 + 0.25 * 0.99)


def test_a_clean_image_with_full_score_earns_the_sum_of_the_weights():
    assert fuse(torch.ones(1), torch.zeros(1, 4, 4), RewardWeights()).reward.item() == pytest.approx(1.0)


def test_rung_without_map_is_rewarded_by_its_score_alone():
    rewards = fuse(torch.tensor([0.3]), None, RewardWeights(score=2.0))
    assert rewards.reward.item() == pytest.approx(0.6)
    assert rewards.max_degradation.item() == 0.0


@given(st.floats(0.001, 1.0), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
def test_top_fraction_lies_between_mean_and_maximum(fraction, height, width, seed):
    degradation = torch.rand(2, height, width, generator=torch.Generator().manual_seed(seed))
    top = top_fraction_mean(degradation, fraction)
    assert (top <= degradation.amax((1, 2)) + 1e-6).all()
    assert (top >= degradation.mean((1, 2)) - 1e-6).all()
    assert torch.allclose(top_fraction_mean(degradation, 1.0), degradation.mean((1, 2)), atol=1e-6)


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.4, 1.0])
def test_top_fraction_of_a_large_map_is_found_block_by_block(fraction, monkeypatch):
    degradation = torch.rand(2, 30, 50, generator=torch.Generator().manual_seed(0))
    expected = top_fraction_mean(degradation, fraction)
    monkeypatch.setattr(reward, "_BLOCK", 64)
    assert torch.allclose(top_fraction_mean(degradation, fraction), expected, atol=1e-6)


@pytest.mark.parametrize("bad", [{"score": -1.0}, {"max": float("nan")}, {"mean": float("inf")}, {"top_fraction": 0.0}])
def test_bad_weights_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        RewardWeights(**bad)
