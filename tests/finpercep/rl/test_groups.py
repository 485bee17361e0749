"""Rollouts: what is stored, how photos and samples get their noise, and scoring beside sampling."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from finpercep.errors import ConfigError, RewardError
from finpercep.reward import Rewards
from finpercep.rl.algorithm import Batch
from finpercep.rl.groups import sample_groups, trained_indices
from finpercep.rl.grpo import GrpoConfig
from finpercep.rl.rollout import stochastic_indices
from finpercep.rl.scoring import Scorer, finite_rewards
from finpercep.sr.transition import Sampler
from tests.toy_policies import BrightnessReward, ConvolutionalFlow


def batch_of(photos=3, side=16):
    hr = torch.rand(photos, 3, side, side, generator=torch.Generator().manual_seed(0))
    return Batch(hr, torch.nn.functional.avg_pool2d(hr, 4))


def rollout(policy, reward=None, *, seed=0, **settings):
    config = GrpoConfig(group_size=4, **settings)
    rng = np.random.default_rng(seed)
    return sample_groups(policy, batch_of(), reward or BrightnessReward(), rng, config, stored=stochastic_indices(policy))


@pytest.fixture
def flow():
    return ConvolutionalFlow(Sampler(4, "flow-grpo", 0.7))


@pytest.mark.parametrize("micro_batch", [None, 1, 3])
@pytest.mark.parametrize("name", ["flow", "small_policy"])
def test_the_ratio_is_exactly_one_until_weights_change(name, micro_batch, request):
    policy = request.getfixturevalue(name)
    found = rollout(policy, micro_batch=micro_batch)
    assert [len(part) for part in found.groups[0].parts] == {None: [4], 1: [1] * 4, 3: [3, 1]}[micro_batch]
    for part in (part for group in found.groups for part in group.parts):
        assert list(part.steps) == stochastic_indices(policy)
        for index, step in part.steps.items():
            again = policy.transition(step.before, index, part.condition).log_prob(step.after)
            assert again.requires_grad and again.dtype == torch.float32
            assert torch.equal(again, step.log_prob)


def test_the_stored_density_is_that_of_the_gaussian_in_closed_form(flow):
    part = rollout(flow).groups[0].parts[0]
    step = part.steps[1]
    with torch.no_grad():
        now = flow.transition(step.before, 1, part.condition)
    known = torch.distributions.Normal(now.mean, now.std).log_prob(step.after).mean(dim=1)
    assert torch.allclose(step.log_prob, known, atol=1e-5)
    assert torch.equal(part.steps[2].before, step.after)


def test_samples_of_a_photo_differ_and_start_alike_only_where_asked(flow):
    for shared in (False, True):
        parts = rollout(flow, shared_noise=shared, micro_batch=2).groups[1].parts
        starts = torch.cat([part.steps[0].before for part in parts])
        clean = torch.cat([part.clean for part in parts])
        for other in range(1, 4):
            assert torch.equal(starts[0], starts[other]) is shared
            assert not torch.equal(clean[0], clean[other])


def test_micro_batches_change_memory_and_not_the_samples(flow):
    whole, parts = (rollout(flow, micro_batch=size) for size in (None, 1))
    for a, b in zip(whole.groups, parts.groups, strict=True):
        assert torch.allclose(a.clean, b.clean, atol=1e-5)
    assert torch.allclose(whole.rewards, parts.rewards, atol=1e-6)


def test_the_steps_with_noise_are_all_but_the_last():
    assert stochastic_indices(ConvolutionalFlow(Sampler(4, "dance", 0.3))) == [0, 1, 2]
    assert stochastic_indices(ConvolutionalFlow(Sampler(4, "dance", 0.0))) == []


def test_a_ddim_step_to_next_to_no_noise_counts_as_deterministic():
    """Diffusers' flow schedule comes to σ = 0.001 before the last step; what is added there decides nothing."""
    policy = ConvolutionalFlow(Sampler(4, "ddim", 1.0))
    assert float(policy.levels[3].noise) == pytest.approx(1e-3, rel=0.01) and stochastic_indices(policy) == [0, 1]
    assert stochastic_indices(ConvolutionalFlow(Sampler(4, "ddim", 1e-3))) == []


@pytest.mark.parametrize("sampler", [Sampler(1, "ddim", 1.0), Sampler(4, "flow-grpo", 0.0)])
def test_a_policy_without_noise_is_refused(sampler):
    with pytest.raises(ConfigError, match=r"needs denoising steps with noise.*set num_steps >= 2 and eta > 0"):
        trained_indices(ConvolutionalFlow(sampler), "grpo")


def test_the_training_sampler_is_a_setting_and_leaves_the_policy_as_it_was(flow, small_policy):
    config = GrpoConfig(num_steps=7, noise="dance", eta=0.0)
    sampled = config.sampled(flow)
    assert sampled.sampler == Sampler(7, "dance", 0.0) and flow.sampler == Sampler(4, "flow-grpo", 0.7)
    assert next(iter(sampled.parameters())) is next(iter(flow.parameters()))
    assert GrpoConfig().sampled(flow) is flow
    with pytest.raises(ConfigError, match="flow matching"):
        config.sampled(small_policy)


class Gated:
    """A reward that answers the first call only when it is told to."""

    def __init__(self, inner):
        self.inner, self.asked, self.open, self.threads = inner, threading.Event(), threading.Event(), set()

    def __call__(self, images):
        self.threads.add(threading.current_thread())
        self.asked.set()
        assert self.open.wait(timeout=30)
        return self.inner(images)


def test_the_next_photo_is_sampled_while_the_last_is_scored(flow):
    """The first answer comes only once the second photo is being denoised: without overlap this would never end."""
    reward = Gated(BrightnessReward())
    original, photos = flow.condition, []

    def spy(lr):
        photos.append(lr)
        if len(photos) == 2:
            assert reward.asked.wait(timeout=30)
            reward.open.set()
        return original(lr)

    flow.condition = spy
    found = rollout(flow, reward)
    assert len(found.groups) == 3 and len(reward.threads) == 1 and threading.current_thread() not in reward.threads


def test_overlap_changes_nothing_in_the_results(flow):
    with_it, without = (rollout(flow, overlap=overlap) for overlap in (True, False))
    assert torch.equal(with_it.rewards, without.rewards)
    for a, b in zip(with_it.groups, without.groups, strict=True):
        assert torch.equal(a.clean, b.clean)


def test_without_overlap_every_answer_is_waited_for():
    reward, done = BrightnessReward(), []
    with Scorer(reward, overlap=False) as scorer:
        for _ in range(3):
            answer = scorer.submit(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 2, 2))
            done.append(len(reward.calls))
            assert len(answer().rewards.reward) == 2
    assert done == [1, 2, 3] and scorer.waited > 0


def test_a_reward_that_fails_ends_the_update(flow):
    def broken(images):
        raise RewardError("the server is gone")

    with pytest.raises(RewardError, match="gone"):
        rollout(flow, broken)


def test_scoring_runs_without_gradient_and_leaves_it_on_for_the_caller(flow):
    reward = BrightnessReward()
    with Scorer(reward) as scorer:
        answer = scorer.submit(torch.rand(1, 3, 8, 8, requires_grad=True), torch.rand(1, 3, 2, 2))
        assert not answer().rewards.reward.requires_grad and torch.is_grad_enabled()


def test_maps_are_asked_for_only_of_rewards_that_have_them():
    with Scorer(BrightnessReward(), maps=True) as scorer:
        assert scorer.submit(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 2, 2))().maps.shape == (2, 8, 8)
    with Scorer(lambda images: None, maps=True) as scorer, pytest.raises(ConfigError, match="degradation maps"):
        scorer.submit(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 2, 2))()


def test_images_without_a_reward_are_left_out_never_counted_as_a_number():
    values = torch.tensor([0.1, float("nan"), 0.3])
    kept = finite_rewards(Rewards(values, values, values, values, {"part": values}))
    assert kept.reward.tolist() == kept.parts["part"].tolist() == pytest.approx([0.1, 0.3])
    nothing = torch.full((2,), float("nan"))
    with pytest.raises(RewardError, match="none of 2"):
        finite_rewards(Rewards(nothing, nothing, nothing, nothing))
