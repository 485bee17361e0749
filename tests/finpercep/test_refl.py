"""ReFL and the Gram term: closed forms, and the invariants a correct implementation can prove."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finpercep.errors import ConfigError
from finpercep.reward import Rewards
from finpercep.rl.algorithm import Batch, Trainee
from finpercep.rl.gram import gram_distance, gram_matrix
from finpercep.rl.refl import Refl, ReflConfig, refl_objective


class BrightnessReward:
    """A `RewardFn` with a known gradient: the mean of the image."""

    def __init__(self):
        self.calls: list[bool] = []

    def __call__(self, images):
        self.calls.append(images.requires_grad)
        mean = images.mean(dim=(1, 2, 3))
        return Rewards(mean, mean, torch.zeros_like(mean), torch.zeros_like(mean))


def pixels(images):
    return [images]


def losses_of(policy, *, hr=None, seed=0, **settings):
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(2, 3, 32, 32, generator=generator) if hr is None else hr
    lr = torch.nn.functional.avg_pool2d(hr, 4)
    reward = BrightnessReward()
    config = ReflConfig(**settings)
    algorithm = Refl(Trainee(policy, policy.frozen_copy(), pixels), config)
    losses = algorithm.losses(Batch(hr, lr), reward, np.random.default_rng(seed))
    return losses, reward


def test_objective_pulls_up_to_the_ceiling_and_not_beyond():
    reward = torch.tensor([0.2, 0.9, 1.4], requires_grad=True)
    loss = refl_objective(reward, torch.tensor([1.0, 1.0, 1.0]))
    loss.backward()
    assert loss.item() == pytest.approx((0.8 + 0.1 + 0.0) / 3)
    assert reward.grad.tolist() == pytest.approx([-1 / 3, -1 / 3, 0.0])


def test_only_the_policy_receives_gradients(small_policy):
    reference = small_policy.frozen_copy()
    hr = torch.ones(2, 3, 32, 32)
    config = ReflConfig(pretraining_weight=0.0, gram_weight=0.0)
    algorithm = config.build(Trainee(small_policy, reference, pixels))
    losses = algorithm.losses(Batch(hr, torch.zeros(2, 3, 8, 8)), BrightnessReward(), np.random.default_rng(0))
    losses.total.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in small_policy.parameters())
    assert all(p.grad is None for p in reference.unet.parameters())


def test_the_reward_is_differentiated_once_and_the_ceiling_never(small_policy):
    losses, reward = losses_of(small_policy)
    assert reward.calls == [False, True]
    assert not losses.ceiling.requires_grad
    assert torch.allclose(losses.ceiling, torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).mean((1, 2, 3)))


def test_one_network_evaluation_with_gradient_at_a_late_index(small_policy):
    """The trained index lies in the window, and every other evaluation of the network runs without gradient."""
    seen = []
    original = small_policy.predict

    def spy(x, timestep, condition):
        seen.append((timestep.item() if timestep.ndim == 0 else None, torch.is_grad_enabled()))
        return original(x, timestep, condition)

    small_policy.predict = spy
    late = [small_policy.levels[index].timestep.item() for index in ReflConfig(window=0.5).indices(small_policy.num_steps)]
    for seed in range(6):
        seen.clear()
        losses_of(small_policy, seed=seed, pretraining_weight=0.0, gram_weight=0.0, window=0.5)
        with_gradient = [timestep for timestep, enabled in seen if enabled and timestep is not None]
        assert len(with_gradient) == 1
        assert with_gradient[0] in late


@pytest.mark.parametrize(
    ("steps", "window", "expected"), [(40, 0.25, range(30, 40)), (4, 0.5, range(2, 4)), (4, 0.01, range(3, 4))]
)
def test_windows(steps, window, expected):
    assert ReflConfig(window=window).indices(steps) == expected


def test_terms_that_are_switched_off_are_zero(small_policy):
    losses, _ = losses_of(small_policy, pretraining_weight=0.0, gram_weight=0.0, reward_weight=0.0)
    assert losses.total.item() == 0.0


def test_gram_term_is_zero_while_the_policy_is_its_reference_and_not_after(small_policy):
    losses, _ = losses_of(small_policy)
    assert losses.gram.item() == pytest.approx(0.0, abs=1e-6)
    reference = small_policy.frozen_copy()
    with torch.no_grad():
        for parameter in small_policy.parameters():
            parameter.mul_(1.2)
    hr = torch.rand(2, 3, 32, 32)
    lr = torch.nn.functional.avg_pool2d(hr, 4)
    rng = np.random.default_rng(0)
    moved = Refl(Trainee(small_policy, reference, pixels), ReflConfig()).losses(Batch(hr, lr), BrightnessReward(), rng)
    assert moved.gram.item() > 0


def test_gram_matrix_in_closed_form():
    features = torch.tensor([[[[1.0, -1.0]], [[1.0, -1.0]]]])  # already zero mean, unit variance
    expected = torch.tensor([[[0.5, 0.5], [0.5, 0.5]]])
    assert torch.allclose(gram_matrix(features), expected, atol=1e-4)
    assert gram_distance([features], [features]).item() == 0.0


@pytest.mark.parametrize("bad", [{"window": 0.0}, {"window": 1.5}, {"reward_weight": -1.0}, {"gram_weight": float("nan")}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        ReflConfig(**bad)
