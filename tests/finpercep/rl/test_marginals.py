"""Every noise form of a step, against a Gaussian whose denoiser is known: where it ends, and what it tends to without noise.

With x̂0 affine in x every step is an affine map with noise, so means and variances are carried through all steps exactly; nothing
is sampled.
"""

from __future__ import annotations

import pytest
import torch

from finpercep.sr.policy import seeded_generators
from finpercep.sr.transition import Sampler
from tests.toy_policies import GaussianPolicy, flow_matching, variance_preserving

MEAN, SPREAD = 0.3, 0.5
FORMS = [("ddim", variance_preserving), ("ddim", flow_matching), ("flow-grpo", flow_matching), ("dance", flow_matching)]


def policy_of(noise, path, eta, steps):
    return GaussianPolicy(torch.full((1, 1, 1), MEAN), Sampler(steps, noise, eta), spread=SPREAD, path=path())


@torch.no_grad()
def end(policy):
    """Mean and variance after all steps, from N(0, 1) before the first, and d x0 / d x_T."""
    mean, variance, slope = 0.0, 1.0, 1.0
    probes = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    for index in range(policy.num_steps):
        step = policy.transition(probes, index, probes)
        offset, at_one = step.mean.flatten().tolist()
        gain = at_one - offset
        mean, variance, slope = offset + gain * mean, gain**2 * variance + float(step.std) ** 2, slope * gain
    return mean, variance, slope


@pytest.mark.parametrize(("noise", "path"), FORMS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 0.9])
def test_the_samples_have_the_datas_mean_and_variance(noise, path, eta):
    mean, variance, _ = end(policy_of(noise, path, eta, 500))
    assert mean == pytest.approx(MEAN, abs=0.01)
    assert variance == pytest.approx(SPREAD**2, rel=0.03)


@pytest.mark.parametrize(("noise", "path"), [form for form in FORMS if form[0] != "flow-grpo"])
def test_four_times_the_steps_come_closer_by_half_at_least(noise, path):
    """Flow-GRPO's noise at σ = 1 depends on the number of steps, so its error is not of one order; it is small, as seen above."""
    wrong = [abs(end(policy_of(noise, path, 0.7, steps))[1] - SPREAD**2) for steps in (100, 400)]
    assert wrong[1] < wrong[0] / 2


@pytest.mark.parametrize(("noise", "path"), FORMS)
def test_without_noise_the_step_is_that_of_the_ode(noise, path):
    """The probability-flow ODE from x_T ~ N(0, 1) to N(mean, spread²) is x0 = mean + spread · x_T."""
    _, variance, slope = end(policy_of(noise, path, 0.0, 500))
    assert slope == pytest.approx(SPREAD, rel=0.02) and variance == pytest.approx(slope**2)


@pytest.mark.parametrize(("noise", "path"), FORMS)
def test_the_sde_tends_to_the_ode(noise, path):
    lr = torch.zeros(8, 1, 1, 1)
    deterministic, *others = (
        policy_of(noise, path, eta, 30).sample(lr, seeded_generators(range(8))) for eta in (0.0, 1e-1, 1e-2, 1e-3)
    )
    away = [(deterministic - other).abs().max() for other in others]
    assert away[0] > 3 * away[1] > 9 * away[2] and away[2] < 1e-2


@pytest.mark.parametrize("path", [variance_preserving, flow_matching])
def test_the_three_forms_agree_without_noise(path):
    forms = [noise for noise, other in FORMS if other is path]
    ends = [end(policy_of(noise, path, 0.0, 25)) for noise in forms]
    for other in ends[1:]:
        assert other == pytest.approx(ends[0], rel=1e-4)
