"""Diffusion-DPO and DiffusionNFT: objectives in closed form, paired noise, the old policy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from finpercep.errors import ConfigError, RewardError
from finpercep.reward import Rewards
from finpercep.rl.algorithm import Batch, Trainee
from finpercep.rl.dpo import DpoConfig, Errors, Pairs, dpo_objective, pair_errors
from finpercep.rl.nft import FLOOR, NftConfig, nft_objective, optimality, velocity_distance
from finpercep.sr.policy import seeded_generators
from finpercep.sr.transition import Sampler
from tests.toy_policies import BrightnessReward, Collect, ConvolutionalFlow, GaussianPolicy, variance_preserving


def batch_of(photos=2, side=16):
    hr = torch.rand(photos, 3, side, side, generator=torch.Generator().manual_seed(0))
    return Batch(hr, torch.nn.functional.avg_pool2d(hr, 4))


def flow():
    return ConvolutionalFlow(Sampler(3))


def trainee(policy):
    return Trainee(policy, policy.frozen_copy(), lambda images: [images])


def moved(policy, by=0.05):
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(by)


def constant(images):
    same = torch.full((len(images),), 0.5)
    return Rewards(same, same, same, same)


class Spoilt(BrightnessReward):
    def __call__(self, images):
        rewards = super().__call__(images)
        rewards.reward[0] = float("nan") if len(self.calls) == 1 else rewards.reward[0]
        return rewards


# -- Diffusion-DPO ------------------------------------------------------------------------------------------------------


def test_the_preference_objective_in_closed_form():
    policy = Errors(torch.tensor([0.2, 0.5]), torch.tensor([0.4, 0.5]))
    reference = Errors(torch.tensor([0.3, 0.4]), torch.tensor([0.3, 0.5]))
    margins = [-0.2, 0.1]  # (0.2 − 0.3) − (0.4 − 0.3), (0.5 − 0.4) − 0
    expected = sum(math.log(1 + math.exp(10 / 2 * margin)) for margin in margins) / 2
    assert dpo_objective(policy, reference, beta=10.0).item() == pytest.approx(expected, rel=1e-5)
    assert dpo_objective(reference, reference, beta=5000.0).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", ["toy", "small_policy"])
def test_winner_and_loser_meet_the_same_level_and_noise(name, request):
    """Equal samples have equal errors, whatever the draw; and each image's depends on its own seed alone."""
    policy = flow() if name == "toy" else request.getfixturevalue(name)
    lr = torch.rand(2, 3, 4, 4)
    clean = policy.encode(torch.rand(2, 3, 16, 16), policy.condition(lr))
    with torch.no_grad():
        errors = pair_errors(policy, Pairs(lr, clean, clean.clone()), [5, 6])
        swapped = pair_errors(policy, Pairs(lr.flip(0), clean.flip(0), clean.flip(0)), [6, 5])
    assert torch.equal(errors.winner, errors.loser)
    assert torch.allclose(errors.winner, swapped.winner.flip(0), atol=1e-6)


def test_it_starts_at_log_two_and_prefers_the_best_to_the_worst():
    policy = flow()
    algorithm, optimise = DpoConfig(group_size=4, beta=100.0).build(trainee(policy)), Collect(policy)
    found = algorithm.update(batch_of(), BrightnessReward(), np.random.default_rng(0), optimise)
    assert found.losses["preference"] == pytest.approx(math.log(2), rel=1e-6) and found.figures["margin"] == 0.0
    assert optimise.steps == 1 and optimise.gradient().any()


def test_pairs_are_the_best_and_the_worst_of_each_photo():
    policy = flow()
    algorithm = DpoConfig(group_size=4).build(trainee(policy))
    seen = []
    algorithm._accumulate = lambda pairs, *rest: seen.append(pairs)
    algorithm.update(batch_of(), BrightnessReward(), np.random.default_rng(0), Collect(policy))
    condition = policy.condition(seen[0].lr)
    best, worst = (policy.decode(side, condition).mean(dim=(1, 2, 3)) for side in (seen[0].winner, seen[0].loser))
    assert len(seen[0]) == 2 and (best > worst).all()


def test_further_steps_on_the_same_pairs_widen_the_margin():
    policy = flow()
    config = DpoConfig(group_size=4, beta=100.0, steps=20, draws=2)
    found = config.build(trainee(policy)).update(batch_of(), BrightnessReward(), np.random.default_rng(0), Collect(policy, 5e-3))
    assert found.figures["margin"] < 0 and found.figures["agreement"] > 0.5 and found.losses["preference"] < math.log(2)


def test_micro_batches_of_dpo_add_up():
    gradients = []
    for size in (None, 1):
        policy = flow()
        optimise = Collect(policy)
        config = DpoConfig(group_size=2, micro_batch=size)
        config.build(trainee(policy)).update(batch_of(), BrightnessReward(), np.random.default_rng(0), optimise)
        gradients.append(optimise.gradient())
    assert torch.allclose(*gradients, rtol=1e-2, atol=1e-4 * gradients[0].abs().max())


# -- DiffusionNFT -------------------------------------------------------------------------------------------------------


def test_optimality_of_advantages():
    advantages = torch.tensor([-7.0, -5.0, 0.0, 2.5, 5.0, 9.0])
    assert optimality(advantages, 5.0).tolist() == pytest.approx([0.0, 0.0, 0.5, 0.75, 1.0, 1.0])


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
def test_the_nft_objective_is_the_papers_in_velocities(beta):
    """x̂0± from mixed velocities, x̂0 = x − t·v, as the paper has it; ours from mixed x̂0."""
    x, v, v_old, clean = torch.randn(4, 3, 2, 4, 4)
    t, good = 0.7, torch.tensor([0.9, 0.3, 0.5])
    terms = []
    for mixed in (beta * v + (1 - beta) * v_old, (1 + beta) * v_old - beta * v):
        error = (x - t * mixed - clean).flatten(1)
        terms.append(error.square().mean(1) / error.abs().mean(1))
    expected = ((good * terms[0] + (1 - good) * terms[1]) / beta).mean()
    assert nft_objective(x - t * v, x - t * v_old, clean, good, beta).item() == pytest.approx(expected.item(), rel=1e-5)


def test_good_samples_pull_and_bad_ones_push():
    clean = torch.ones(1, 1, 2, 2)
    for good, sign in ((1.0, -1), (0.0, 1)):
        trained = torch.zeros(1, 1, 2, 2, requires_grad=True)
        nft_objective(trained, trained.detach(), clean, torch.tensor([good]), 1.0).backward()
        assert (trained.grad.sign() == sign).all()
    trained = torch.zeros(1, 1, 2, 2, requires_grad=True)
    nft_objective(trained, trained.detach(), clean, torch.tensor([0.5]), 1.0).backward()
    assert trained.grad.abs().max() < 1e-6  # neither good nor bad


def test_weights_are_held_off_zero():
    clean = torch.zeros(1, 1, 2, 2)
    loss = nft_objective(clean.clone().requires_grad_(), clean, clean, torch.tensor([1.0]), 1.0)
    assert loss.item() == 0.0 and FLOOR == 1e-5


@pytest.mark.parametrize("name", ["flow", "variance preserving"])
def test_velocity_differences_follow_from_clean_ones_on_both_paths(name):
    clean, other, noise = torch.rand(3, 2, 1, 4, 4)
    if name == "flow":
        policy = flow()
        level = policy.levels[1]
        velocities = [(policy.path.add_noise(clean, noise, level, None) - c) / level.noise for c in (clean, other)]
    else:
        path = variance_preserving()
        level = GaussianPolicy(torch.zeros(1, 4, 4), Sampler(3), path=path).levels[1]
        x = path.add_noise(clean, noise, level, None)
        velocities = [(level.signal * x - c) / level.noise for c in (clean, other)]
    known = (velocities[0] - velocities[1]).square().mean()
    assert velocity_distance(clean, other, level.noise).item() == pytest.approx(known.item(), rel=1e-4)


def test_the_old_policy_samples_is_restored_and_follows():
    policy = flow()
    algorithm = NftConfig(group_size=4, old_rate=0.25, old_limit=0.4).build(trainee(policy))
    start = [p.detach().clone() for p in policy.parameters()]
    moved(policy)
    trained = [p.detach().clone() for p in policy.parameters()]
    used = []
    original = policy.initial_state

    def spy(condition, generators):
        used.append([p.detach().clone() for p in policy.parameters()])
        return original(condition, generators)

    policy.initial_state = spy
    algorithm.update(batch_of(), BrightnessReward(), np.random.default_rng(0), Collect(policy))
    assert all(torch.equal(a, b) for a, b in zip(used[0], start, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), trained, strict=True))
    expected = [0.25 * a + 0.75 * b for a, b in zip(start, trained, strict=True)]  # min(0.25 · 1, 0.4)
    assert all(torch.allclose(a, b) for a, b in zip(algorithm.old, expected, strict=True))
    algorithm.update(batch_of(), BrightnessReward(), np.random.default_rng(1), Collect(policy))
    expected = [0.4 * a + 0.6 * b for a, b in zip(expected, trained, strict=True)]
    assert all(torch.allclose(a, b) for a, b in zip(algorithm.old, expected, strict=True))


def test_gradients_reach_the_policy_through_its_own_weights_alone():
    """Against autograd with the old policy as a separate network."""
    policy = flow()
    algorithm = NftConfig(group_size=4, train_share=0.01).build(trainee(policy))
    old = policy.frozen_copy()
    moved(policy)
    optimise, seen = Collect(policy), []
    original = algorithm._losses

    def spy(piece, index, seeds):
        seen.append((piece, index, seeds))
        return original(piece, index, seeds)

    algorithm._losses = spy
    algorithm.update(batch_of(), BrightnessReward(), np.random.default_rng(0), optimise)
    total = 0.0
    for piece, index, seeds in seen:
        clean, condition = piece.trajectory.clean, piece.trajectory.condition
        x = policy.add_noise(clean, index, condition, seeded_generators(seeds))
        trained = policy.predict_clean(x, index, condition)
        fitted = nft_objective(trained, old.predict_clean(x, index, condition), clean, piece.advantages, 1.0)
        held = velocity_distance(trained, old.predict_clean(x, index, condition), policy.levels[index].noise)
        total = total + (fitted + 1e-4 * held) / len(seen)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, list(policy.parameters()))])
    assert torch.allclose(optimise.gradient(), expected, rtol=1e-3, atol=1e-5 * expected.abs().max())


def test_the_state_of_nft_is_its_own():
    policy = flow()
    algorithm = NftConfig(group_size=2).build(trainee(policy))
    moved(policy)
    algorithm.update(batch_of(), BrightnessReward(), np.random.default_rng(0), Collect(policy))
    state = algorithm.state_dict()
    other = NftConfig(group_size=2).build(trainee(flow()))
    other.load_state_dict(state)
    assert other.updates == 1 and all(torch.equal(a, b) for a, b in zip(other.old, algorithm.old, strict=True))
    assert all(a is not b for a, b in zip(other.old, algorithm.old, strict=True))


# -- both ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [DpoConfig(group_size=4), NftConfig(group_size=4)])
def test_groups_without_reward_or_spread_are_dropped(config):
    policy = flow()
    optimise = Collect(policy)
    found = config.build(trainee(policy)).update(batch_of(), Spoilt(), np.random.default_rng(0), optimise)
    assert found.figures["groups without reward"] == 1.0 and len(found.rewards.reward) == 7 and optimise.gradient().any()
    found = config.build(trainee(policy)).update(batch_of(), constant, np.random.default_rng(0), optimise)
    assert found.figures["groups without spread"] == 2.0 and optimise.steps == 1
    with pytest.raises(RewardError, match="each of the 1 photos"):
        config.build(trainee(policy)).update(batch_of(1), Spoilt(), np.random.default_rng(0), optimise)


@pytest.mark.parametrize("config", [DpoConfig(group_size=4), NftConfig(group_size=4)])
def test_one_deterministic_step_is_enough(config):
    policy = ConvolutionalFlow(Sampler(1, "ddim", 0.0))
    optimise = Collect(policy)
    config.build(trainee(policy)).update(batch_of(), BrightnessReward(), np.random.default_rng(0), optimise)
    assert optimise.gradient().any()


@pytest.mark.parametrize("config", [DpoConfig, NftConfig])
def test_samples_that_are_all_the_same_are_refused_when_built(config):
    for sampler in (Sampler(3), Sampler(1, "ddim", 1.0)):
        with pytest.raises(ConfigError, match=r"they start from the same noise.*set shared_noise=false"):
            config(shared_noise=True).build(trainee(ConvolutionalFlow(sampler)))
    config(shared_noise=True).build(trainee(ConvolutionalFlow(Sampler(3, "ddim", 1.0))))
    config(shared_noise=True, eta=1.0).build(trainee(flow()))
    still = flow()
    still.draws_start = False
    with pytest.raises(ConfigError, match="neither its start nor its steps have noise; use refl or draft"):
        config().build(trainee(still))


@pytest.mark.parametrize("bad", [{"beta": 0.0}, {"draws": 0}, {"steps": 0}, {"group_size": 1}])
def test_bad_settings_of_dpo_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        DpoConfig(**bad)


@pytest.mark.parametrize(
    "bad", [{"beta": 1.5}, {"old_limit": 1.0}, {"reference_weight": -1.0}, {"spread": "x"}, {"train_share": 0}]
)
def test_bad_settings_of_nft_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        NftConfig(**bad)
