"""DDPO and GRPO: objectives in closed form, KL, dropped groups, training subsets, spatial credit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finpercep.curriculum.settings import FinetuneConfig
from finpercep.errors import ConfigError, RewardError
from finpercep.reward import Rewards
from finpercep.rl.algorithm import Batch, Trainee
from finpercep.rl.ddpo import DdpoConfig, ddpo_objective
from finpercep.rl.grpo import GrpoConfig, clip_of, grpo_objective
from finpercep.rl.policy_gradient import Piece, minibatches
from finpercep.rl.world import ALONE, Alone
from finpercep.sr.transition import Sampler, Transition
from tests.toy_policies import BrightnessReward, Collect, ConvolutionalFlow, GaussianPolicy

FLOW = {"num_steps": 4, "noise": "flow-grpo", "eta": 0.7}


def batch_of(photos=2, side=16, seed=0):
    hr = torch.rand(photos, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return Batch(hr, torch.nn.functional.avg_pool2d(hr, 4))


def flow():
    return ConvolutionalFlow(Sampler(4, "flow-grpo", 0.7))


def built(config, policy=None):
    policy = policy or flow()
    return config.build(Trainee(policy, policy.frozen_copy(), lambda images: [images]))


def updated(config, policy=None, reward=None, *, lr=0.0, seed=0):
    policy = policy or flow()
    optimise = Collect(policy, lr)
    found = built(config, policy).update(batch_of(), reward or BrightnessReward(), np.random.default_rng(seed), optimise)
    return found, optimise


class Spoilt(BrightnessReward):
    """One image of the first photo has no reward."""

    def __init__(self, calls=(1,)):
        super().__init__()
        self.spoilt = calls

    def __call__(self, images):
        rewards = super().__call__(images)
        if len(self.calls) in self.spoilt:
            rewards.reward[1] = float("nan")
        return rewards


def constant(images):
    same = torch.full((len(images),), 0.5)
    return Rewards(same, same, same, same)


def test_objectives_in_closed_form():
    log_ratio = torch.tensor([0.0, 0.1, -0.1, 0.1])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    expected = (-1.0 - 1.05 + 0.95 + torch.tensor(0.1).exp().item()) / 4
    assert ddpo_objective(log_ratio, advantages, 0.05).item() == pytest.approx(expected, abs=1e-6)
    at_positions = log_ratio[:, None, None].expand(4, 2, 3)
    assert grpo_objective(at_positions, advantages, 0.05).item() == pytest.approx(expected, abs=1e-6)
    unclipped = -(advantages * log_ratio.exp()).mean()
    assert ddpo_objective(log_ratio, advantages, 10.0).item() == pytest.approx(unclipped.item())


def test_equal_advantages_at_all_positions_are_the_global_objective():
    """Same gradient at ρ = 1: a position's advantage only says more where it differs."""
    advantages = torch.tensor([0.5, -1.5])
    gradients = []
    for given in (advantages, advantages[:, None, None].expand(2, 4, 5)):
        log_ratio = torch.zeros(2, 4, 5, requires_grad=True)
        grpo_objective(log_ratio, given, 1e-4).backward()
        gradients.append(log_ratio.grad)
    assert torch.allclose(*gradients)
    assert clip_of(advantages, 1e-4) == 1e-4 and clip_of(torch.zeros(2, 4, 4), 1e-4) == pytest.approx(4e-4)


def test_each_position_follows_its_own_advantage():
    log_ratio = torch.zeros(1, 2, 2, requires_grad=True)
    grpo_objective(log_ratio, torch.tensor([[[1.0, 0.0], [0.0, -2.0]]]), 1e-4).backward()
    assert log_ratio.grad.flatten().tolist() == pytest.approx([-0.25, 0.0, 0.0, 0.5])


@pytest.mark.parametrize("credit", ["global", "map"])
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_nothing_is_clipped_and_no_kl_before_the_first_step(credit, micro_batch):
    config = GrpoConfig(group_size=4, clip=1e-7, credit=credit, micro_batch=micro_batch, kl_weight=0.1)
    found, optimise = updated(config)
    assert found.figures["clipped"] == 0.0 and found.figures["divergence"] == 0.0 and found.losses["kl"] == 0.0
    assert found.losses["policy"] == pytest.approx(0.0, abs=1e-6)  # mean advantage is 0 and every ratio exactly 1
    assert optimise.steps == 1 and optimise.gradient().abs().max() > 0


def test_later_minibatches_and_epochs_see_the_ratio_move():
    found, optimise = updated(GrpoConfig(group_size=4, epochs=2, minibatches=2, clip=1e-6), lr=1.0)
    assert optimise.steps == 4 and 0 < found.figures["clipped"] < 1 and found.figures["divergence"] > 0


def test_kl_is_that_of_two_gaussians_in_closed_form():
    mean, other = torch.randn(2, 2, 3, 4, 4)
    std = torch.tensor(0.3)
    normals = [torch.distributions.Normal(m, std) for m in (mean, other)]
    known = torch.distributions.kl_divergence(*normals).mean(dim=1)
    assert torch.allclose(Transition(mean, std).kl(Transition(other, std)), known, rtol=1e-4)


def test_kl_pulls_towards_the_reference_and_never_moves_it():
    policy = flow()
    reference = policy.frozen_copy()
    before = [p.clone() for p in reference.network.parameters()]
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05)
    config = GrpoConfig(group_size=4, kl_weight=1.0)
    algorithm, optimise = config.build(Trainee(policy, reference, lambda images: [images])), Collect(policy, lr=2e-2)
    divergence = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        divergence.append(algorithm.update(batch_of(), _noise_reward(seed), rng, optimise).figures["divergence"])
    assert divergence[0] > 0 and np.mean(divergence[-3:]) < 0.9 * divergence[0]
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, reference.network.parameters(), strict=True))


def _noise_reward(seed):
    def reward(images):
        values = 1e-4 * torch.rand(len(images), generator=torch.Generator().manual_seed(seed))
        return Rewards(values, values, values, values)

    return reward


@pytest.mark.parametrize(
    "config", [DdpoConfig(group_size=4), GrpoConfig(group_size=4), DdpoConfig(group_size=4, baseline="batch")]
)
def test_a_group_with_an_image_without_reward_is_dropped_and_counted(config):
    spoilt, optimise = updated(config, reward=Spoilt())
    assert spoilt.figures["groups without reward"] == 1.0 and len(spoilt.rewards.reward) == 7
    assert spoilt.rewards.reward.isfinite().all() and optimise.gradient().isfinite().all() and optimise.gradient().any()


@pytest.mark.parametrize("config", [DdpoConfig(group_size=4), GrpoConfig(group_size=4, credit="map")])
def test_no_whole_group_is_an_error(config):
    with pytest.raises(RewardError, match="each of the 2 photos"):
        updated(config, reward=Spoilt(calls=(1, 2)))


def test_equal_rewards_teach_nothing_and_take_no_step():
    found, optimise = updated(GrpoConfig(group_size=4), reward=constant)
    assert found.figures["groups without spread"] == 2.0 and optimise.steps == 0 and not optimise.losses
    _, optimise = updated(GrpoConfig(group_size=4, pretraining_weight=1.0), reward=constant)
    assert optimise.steps == 1 and optimise.gradient().any()


class Counted(Alone):
    """One of several processes, which have so many pieces."""

    def __init__(self, rank, counts):
        self.rank, self.counts = rank, counts

    def gather(self, values):
        return torch.tensor(self.counts)


def test_several_processes_train_the_minibatches_of_one():
    def parts(pieces, world):
        return minibatches(pieces, 2, np.random.default_rng(3), world)

    pieces = [Piece(None, torch.tensor(place), None) for place in range(7)]
    counts, starts = (2, 0, 4, 1), (0, 2, 2, 6)
    each = [
        parts(pieces[start : start + count], Counted(rank, counts))
        for rank, (start, count) in enumerate(zip(starts, counts, strict=True))
    ]
    for number, whole in enumerate(parts(pieces, ALONE)):
        together = [int(piece.advantages) for own in each for piece in own[number]]
        assert sorted(together) == sorted(int(piece.advantages) for piece in whole) and len(together) in (3, 4)


@pytest.mark.parametrize(("share", "expected"), [(1.0, 3), (0.6, 2), (0.01, 1)])
def test_a_share_of_the_steps_is_trained_drawn_for_each_micro_batch(share, expected):
    _, optimise = updated(GrpoConfig(group_size=4, micro_batch=2, train_share=share, kl_weight=0.0))
    assert len(optimise.losses) == 2 * 2 * expected  # photos × micro-batches × steps


@pytest.mark.parametrize("name", ["grpo", "ddpo"])
def test_micro_batches_add_up_to_the_same_gradient(name):
    kind = {"grpo": GrpoConfig, "ddpo": DdpoConfig}[name]
    gradients = [updated(kind(group_size=4, micro_batch=size))[1].gradient() for size in (None, 1, 2)]
    for other in gradients[1:]:
        assert torch.allclose(gradients[0], other, rtol=1e-3, atol=1e-5 * gradients[0].abs().max())


def test_the_gradient_is_that_of_the_weighted_log_densities():
    """Against autograd on the definition: −mean A · ∇ mean log π, over all samples and steps."""
    policy = flow()
    algorithm = built(GrpoConfig(group_size=4, kl_weight=0.0), policy)
    seen = []
    original = algorithm.step_loss

    def spy(piece, index):
        seen.append((piece, index))
        return original(piece, index)

    algorithm.step_loss = spy
    optimise = Collect(policy)
    algorithm.update(batch_of(), BrightnessReward(), np.random.default_rng(0), optimise)
    total = 0.0
    for piece, index in seen:
        step = piece.trajectory.steps[index]
        now = policy.transition(step.before, index, piece.trajectory.condition)
        density = torch.distributions.Normal(now.mean, now.std).log_prob(step.after).flatten(1).mean(dim=1)
        total = total - (piece.advantages * density).mean() / len(seen)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, list(policy.parameters()))])
    assert torch.allclose(optimise.gradient(), expected, rtol=1e-3, atol=1e-5 * expected.abs().max())


def test_only_the_policy_receives_gradients():
    policy = flow()
    reference = policy.frozen_copy()
    algorithm = GrpoConfig(group_size=4).build(Trainee(policy, reference, lambda images: [images]))
    algorithm.update(batch_of(), BrightnessReward(), np.random.default_rng(0), Collect(policy))
    assert all(p.grad is not None for p in policy.parameters())
    assert all(p.grad is None for p in reference.network.parameters())


def test_credit_of_a_rung_without_a_map_is_global():
    class Blind(BrightnessReward):
        def with_map(self, images):
            return self(images), None

    gradients = [updated(GrpoConfig(group_size=4, credit=credit), reward=Blind())[1].gradient() for credit in ("global", "map")]
    assert torch.equal(*gradients)


def test_credit_by_map_needs_a_reward_with_maps():
    with pytest.raises(ConfigError, match="degradation maps"):
        updated(GrpoConfig(group_size=4, credit="map"), reward=constant)


def test_a_batch_baseline_allows_single_samples():
    found, optimise = updated(DdpoConfig(group_size=1, baseline="batch"))
    assert len(found.rewards.reward) == 2 and optimise.gradient().any()
    with pytest.raises(ConfigError, match="group_size"):
        DdpoConfig(group_size=1)
    with pytest.raises(ConfigError, match="set batch_size or group_size to at least 2"):
        FinetuneConfig(algorithm=DdpoConfig(group_size=1, baseline="batch"), batch_size=1)


@pytest.mark.parametrize("config", [DdpoConfig(num_steps=1), GrpoConfig(eta=0.0)])
def test_policies_without_noise_are_refused_when_built(config):
    with pytest.raises(ConfigError, match="denoising steps with noise"):
        built(config)


@pytest.mark.parametrize(
    "bad",
    [
        {"group_size": 1},
        {"micro_batch": 0},
        {"clip": 0.0},
        {"train_share": 0.0},
        {"kl_weight": float("nan")},
        {"credit": "pixel"},
        {"spread": "photo"},
        {"epochs": 0},
        {"map_blur": -1.0},
        {"pretraining_weight": -1.0},
        {"advantage_clip": float("inf")},
    ],
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        GrpoConfig(**bad)


# -- spatial credit, on images whose positions are independent and whose optimum is known ------------------------------


TARGET = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(7))
START = torch.full((1, 8, 8), 0.5)


class TargetReward:
    """R = 1 − mean M, M = (image − target)²: best where the policy's mean is the target."""

    def __init__(self, target=TARGET):
        self.target = target

    def __call__(self, images):
        return self.with_map(images)[0]

    def with_map(self, images):
        degradation = (images - self.target).square().mean(dim=1)
        reward = 1 - degradation.mean(dim=(1, 2))
        return Rewards(reward, reward, degradation.amax((1, 2)), 1 - reward), degradation


def learned(credit, seed, *, updates=30, lr=0.02):
    """Distance to the optimum after ``updates`` steps of Adam, as a share of what it was."""
    policy = GaussianPolicy(START, Sampler(3, "ddim", 1.0), spread=0.2)
    algorithm = built(GrpoConfig(credit=credit, group_size=8, kl_weight=0.0, map_blur=0.0), policy)
    adam = torch.optim.Adam(policy.parameters(), lr=lr)
    batch = Batch(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))

    class Optimise:
        def backward(self, loss):
            loss.backward()

        def step(self):
            adam.step()
            adam.zero_grad()

    for update in range(updates):
        algorithm.update(batch, TargetReward(), np.random.default_rng((seed, update)), Optimise())
    with torch.no_grad():
        return float((policy.network.mean - TARGET).square().mean() / (START - TARGET).square().mean())


def test_spatial_credit_learns_faster_at_equal_samples():
    """Each at the better of two learning rates; over five seeds the worst run with the map beats the best without."""
    runs = {
        credit: min(([learned(credit, seed, lr=lr) for seed in range(5)] for lr in (0.02, 0.04)), key=np.mean)
        for credit in ("global", "map")
    }
    assert max(runs["map"]) < 0.5 * min(runs["global"]), runs
    assert np.mean(runs["map"]) < 0.2


def gradient_of(credit, size, seed=0, map_weight=1.0):
    policy = GaussianPolicy(START, Sampler(3, "ddim", 1.0), spread=0.2)
    config = GrpoConfig(credit=credit, group_size=size, kl_weight=0.0, map_blur=0.0, advantage_clip=100.0, map_weight=map_weight)
    optimise = Collect(policy)
    batch = Batch(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
    built(config, policy).update(batch, TargetReward(), np.random.default_rng(seed), optimise)
    return optimise.gradient()


def test_credit_by_map_points_where_the_reward_does():
    """Positions are independent here, so the map's term is unbiased: with many samples it is the true gradient's direction."""
    true = (START - TARGET).flatten()  # ∂ mean M / ∂ mean, up to a factor: descent goes the other way
    cosines = {
        credit: torch.nn.functional.cosine_similarity(gradient_of(credit, 1024), true, dim=0).item()
        for credit in ("global", "map")
    }
    assert cosines["map"] > 0.98 and 0.3 < cosines["global"] < cosines["map"]


def test_pieces_of_several_photos_keep_their_own_maps():
    algorithm = built(GrpoConfig(group_size=4, credit="map", micro_batch=2))
    seen: list[Piece] = []
    original = algorithm.step_loss

    def spy(piece, index):
        seen.append(piece)
        return original(piece, index)

    algorithm.step_loss = spy
    algorithm.update(batch_of(), BrightnessReward(), np.random.default_rng(0), Collect(algorithm.policy))
    assert {piece.advantages.shape for piece in seen} == {(2, 16, 16)}
