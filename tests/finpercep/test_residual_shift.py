"""Residual shifting against its closed forms."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from finpercep.errors import ConfigError
from finpercep.sr.residual_scheduler import ResidualShift, ResidualShiftScheduler
from finpercep.sr.transition import StepState, ddim


def levels(steps=4, **config):
    path = ResidualShift(ResidualShiftScheduler(**config))
    return path, path.levels(steps)


def state(seed):
    return torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_etas_are_geometric_in_a_power_of_t_between_their_ends():
    scheduler = ResidualShiftScheduler(num_train_timesteps=15, kappa=2.0, power=0.3, first_noise=0.04, last_eta=0.99)
    etas = scheduler.etas.double()
    assert etas[0].item() == pytest.approx(0.0004, rel=1e-5) and etas[-1].item() == pytest.approx(0.99, rel=1e-5)
    assert (etas.diff() > 0).all()
    share = (etas / etas[0]).log() / (etas[-1] / etas[0]).log()
    assert torch.allclose(share, (torch.arange(15) / 14).double() ** 0.3, atol=1e-5)
    assert ResidualShiftScheduler(kappa=1.0, first_noise=0.4).etas[0].item() == pytest.approx(0.001)


def test_a_step_is_the_posterior():
    """q(x' | x, x0) = N((η'/η)x + ((η−η')/η)x0, κ²η'(η−η')/η), which η = 1 of the sampler is."""
    path, points = levels()
    for now, after in pairwise(points):
        eta, following = 1 - now.signal.double(), 1 - after.signal.double()
        step = ddim(StepState(path, state(0), state(1), now, after, state(2)), eta=1.0)
        mean = following / eta * state(0) + (eta - following) / eta * state(1)
        assert torch.allclose(step.mean, mean, atol=1e-5)
        assert step.std.item() == pytest.approx((4 * following * (eta - following) / eta).sqrt().item(), abs=1e-6)


def test_two_steps_have_the_marginal_of_the_second_level():
    """Noised to one level and sampled to the next, a state is distributed as noised to the next at once: mean and variance."""
    path, points = levels()
    for now, after in pairwise(points[:-1]):
        eta, following = (1 - level.signal for level in (now, after))
        kept, std = following / eta, path.posterior_std(now, after)
        assert (kept * now.noise).square() + std.square() == pytest.approx(after.noise.square().item(), rel=1e-4)
        x0, y = 0.3, -0.8
        mean = kept * (now.signal * x0 + eta * y) + (1 - kept) * x0
        assert mean.item() == pytest.approx((after.signal * x0 + following * y).item(), abs=1e-5)


def test_noising_and_steps_of_path_and_scheduler_agree():
    path, points = levels(5)
    scheduler = path.scheduler
    for index, timestep in enumerate(scheduler.timesteps):
        ours = path.add_noise(state(0), state(1), points[index], state(2))
        assert torch.allclose(ours, scheduler.add_noise(state(0), state(2), state(1), timestep), atol=1e-6)
    batch = path.at(torch.tensor([3, 9]))
    noised = path.add_noise(state(0), state(1), batch, state(2))
    assert torch.allclose(noised, scheduler.add_noise(state(0), state(2), state(1), torch.tensor([3, 9])), atol=1e-6)
    assert torch.allclose(noised[1], path.add_noise(state(0), state(1), path.at(torch.tensor(9)), state(2))[1], atol=1e-6)


def test_the_timesteps_are_even_and_end_at_the_noisiest():
    scheduler = ResidualShiftScheduler()
    for steps in range(1, 16):
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps[0] == 14 and len(scheduler.timesteps.unique()) == steps
    scheduler.set_timesteps(15)
    assert scheduler.timesteps.tolist() == list(range(14, -1, -1))
    with pytest.raises(ConfigError, match=r"1…15, got 16"):
        scheduler.set_timesteps(16)


def test_network_input_has_unit_variance_for_unit_data():
    scheduler = ResidualShiftScheduler()
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 100_000, generator=generator)
    for timestep in (torch.tensor(3), torch.tensor(14)):
        noised = scheduler.add_noise(x0, x0, noise, timestep)  # y = x0: the shift adds no variance
        assert scheduler.scale_model_input(noised, timestep).std().item() == pytest.approx(1, abs=0.01)


def test_the_scheduler_is_saved_and_checks_itself(tmp_path):
    ResidualShiftScheduler(num_train_timesteps=4, kappa=1.5).save_pretrained(tmp_path)
    loaded = ResidualShiftScheduler.from_pretrained(tmp_path)
    assert loaded.config.kappa == 1.5 and len(loaded.etas) == 4
    for config in ({"prediction_type": "epsilon"}, {"num_train_timesteps": 1}, {"last_eta": 1.0}, {"first_noise": 0.0}):
        with pytest.raises(ConfigError):
            ResidualShiftScheduler(**config)
