"""Advantages of samples and of positions: identities, by property."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finpercep.rl.advantages import group_advantages
from finpercep.rl.clipped_ratio import clipped_surrogate
from finpercep.rl.credit import map_advantages, positions_map
from finpercep.rl.world import ALONE

SETTINGS = settings(max_examples=40, deadline=None)
SPREADS = ["group", "batch"]


def rewards_of(seed, groups, size):
    return torch.randn(groups, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spread", SPREADS)
@SETTINGS
@given(seed=st.integers(0, 10**6), groups=st.integers(1, 5), size=st.integers(2, 16))
def test_they_have_zero_mean_in_every_group(spread, seed, groups, size):
    found = group_advantages(rewards_of(seed, groups, size), spread=spread, clip=100.0)
    assert found.values.mean(dim=1).abs().max() < 1e-5
    assert found.values.square().mean().item() == pytest.approx(1.0, rel=1e-3)  # of all kept groups; all are


@pytest.mark.parametrize("spread", SPREADS)
@SETTINGS
@given(seed=st.integers(0, 10**6), shift=st.floats(-10, 10), scale=st.floats(0.1, 100))
def test_shift_and_scale_of_the_rewards_do_not_matter(spread, seed, shift, scale):
    rewards = rewards_of(seed, 3, 8)
    shifts = shift * torch.tensor([[1.0], [0.0], [-2.0]])  # of each group on its own
    moved = group_advantages(scale * rewards + shifts, spread=spread)
    assert torch.allclose(moved.values, group_advantages(rewards, spread=spread).values, atol=2e-3)


@SETTINGS
@given(seed=st.integers(0, 10**6), size=st.integers(2, 64), clip=st.floats(0.1, 10))
def test_none_exceeds_the_clip_nor_what_a_group_allows(seed, size, clip):
    values = group_advantages(rewards_of(seed, 2, size), clip=clip).values
    assert values.abs().max() <= clip + 1e-6 and values.abs().max() <= (size - 1) ** 0.5 + 1e-4


def test_a_group_in_closed_form():
    found = group_advantages(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert found.values[0].tolist() == pytest.approx([-1.3416, -0.4472, 0.4472, 1.3416], abs=1e-4)


def test_groups_that_teach_nothing_are_dropped_and_leave_the_others_alone():
    rewards = torch.tensor([[0.1, 0.3], [0.5, 0.5], [0.2, float("nan")], [float("inf"), 0.0]])
    for spread in SPREADS:
        found = group_advantages(rewards, spread=spread)
        assert found.kept.tolist() == [True, False, False, False] and found.finite.tolist() == [True, True, False, False]
        assert found.values[0].tolist() == pytest.approx([-1.0, 1.0])
        assert found.values[1:].abs().max() == 0
        assert found.dropped(ALONE) == {"groups without reward": 2.0, "groups without spread": 1.0}


def test_spread_of_the_batch_weighs_groups_by_what_is_at_stake():
    rewards = torch.tensor([[0.0, 1.0], [0.0, 0.1]])
    values = group_advantages(rewards, spread="batch").values
    assert values[0, 1] / values[1, 1] == pytest.approx(10.0, rel=1e-4)


@SETTINGS
@given(seed=st.integers(0, 10**6), size=st.integers(2, 8), blur=st.sampled_from([0.0, 0.7, 2.0]))
def test_positions_have_zero_mean_over_the_group(seed, size, blur):
    maps = torch.rand(size, 16, 24, generator=torch.Generator().manual_seed(seed))
    found = map_advantages(maps, (4, 6), blur=blur, clip=100.0)
    assert found.shape == (size, 4, 6)
    assert found.mean(dim=0).abs().max() < 1e-5 and found.square().mean().item() == pytest.approx(1.0, rel=1e-4)
    assert torch.allclose(map_advantages(0.3 * maps + 0.1, (4, 6), blur=blur, clip=100.0), found, atol=1e-3)


def test_the_broken_place_of_a_sample_is_blamed_and_no_other():
    maps = torch.zeros(4, 16, 16)
    maps[2, :4, :4] = 1.0
    found = map_advantages(maps, (4, 4), blur=0.0, clip=100.0)
    assert found[2, 0, 0] < 0 < found[0, 0, 0]
    found[:, 0, 0] = 0
    assert found.abs().max() == 0


def test_maps_that_do_not_differ_say_nothing():
    maps = torch.rand(16, 16).expand(3, 16, 16)
    assert map_advantages(maps, (4, 4), blur=1.0, clip=5.0).abs().max() == 0


@pytest.mark.parametrize("blur", [0.0, 0.5, 3.0])
def test_bringing_maps_to_positions_keeps_constants_and_the_interior_mass(blur):
    assert torch.allclose(positions_map(torch.full((1, 32, 32), 0.7), (8, 8), blur), torch.tensor(0.7))
    spot = torch.zeros(1, 128, 128)
    spot[0, 64:68, 64:68] = 1.0
    assert positions_map(spot, (32, 32), blur).sum().item() == pytest.approx(1.0, rel=1e-3)


@SETTINGS
@given(ratio=st.floats(-0.5, 0.5), advantage=st.floats(-3, 3))
def test_the_surrogate_has_the_policy_gradient_inside_the_clip_and_none_where_it_has_gone_far_enough(ratio, advantage):
    log_ratio = torch.tensor([ratio], requires_grad=True)
    clipped_surrogate(log_ratio, torch.tensor([advantage]), 0.2).sum().backward()
    rho = torch.tensor(ratio).exp().item()
    beyond = (advantage > 0 and rho > 1.2) or (advantage < 0 and rho < 0.8)
    assert log_ratio.grad.item() == pytest.approx(0.0 if beyond else -advantage * rho, abs=1e-5)
