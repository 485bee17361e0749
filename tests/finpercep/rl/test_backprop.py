"""DRaFT and RFSR: what the gradient passes through, windows, and each term in closed form."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models import vgg19

from finpercep.errors import ConfigError, RewardError
from finpercep.reward import Rewards
from finpercep.rl.algorithm import Batch, Trainee
from finpercep.rl.draft import Draft, DraftConfig
from finpercep.rl.gram import gram_distance
from finpercep.rl.low_frequency import LEVELS, WAVELET, decompose, low_band, low_frequency_distance, low_pass_matrix
from finpercep.rl.refl import ReflConfig, refl_objective
from finpercep.rl.rfsr import Rfsr, RfsrConfig
from finpercep.rl.rollout import denoise_to
from finpercep.rl.vgg import LAYER_WEIGHTS, Vgg19Features
from finpercep.rl.world import ALONE, Alone
from finpercep.sr.policy import seeded_generators
from finpercep.sr.transition import Sampler
from tests.toy_policies import BrightnessReward, Collect, ConvolutionalFlow, GaussianPolicy, StepwisePolicy

MEAN = torch.full((3, 8, 8), 0.5)


def batch_of(photos=2, side=16, scale=4):
    hr = torch.rand(photos, 3, side, side, generator=torch.Generator().manual_seed(0))
    return Batch(hr, torch.nn.functional.avg_pool2d(hr, scale))


def pixels(images):
    return [images]


# -- DRaFT --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last_steps", [1, 2, 4])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_steps_before_the_cut_get_no_gradient_and_those_after_it_do(last_steps, eta):
    policy = StepwisePolicy(MEAN, Sampler(4, "ddim", eta))
    draft = Draft(Trainee(policy, policy.frozen_copy(), pixels), DraftConfig(last_steps=last_steps, pretraining_weight=0.0))
    optimise = Collect(policy)
    found = draft.update(batch_of(side=8, scale=1), BrightnessReward(), np.random.default_rng(0), optimise)
    gradient = optimise.gradient()
    assert not gradient[: 4 - last_steps].any()
    assert (gradient[4 - last_steps :] != 0).all() and found.figures["differentiated steps"] == last_steps


def full_backprop(policy, lr, seeds):
    """−mean of the sampled images, with every step differentiated and nothing checkpointed."""
    generators = seeded_generators(seeds)
    condition = policy.condition(lr)
    x = policy.initial_state(condition, generators)
    for index in range(policy.num_steps):
        x = policy.step(x, index, condition, generators)
    return -policy.decode(x, condition).mean()


@pytest.mark.parametrize("sampler", [Sampler(3, "ddim", 0.7), Sampler(3, "flow-grpo", 0.7)])
def test_all_steps_are_full_backpropagation(sampler):
    policy = ConvolutionalFlow(sampler)
    batch, seeds = batch_of(), [3, 4]
    draft = Draft(Trainee(policy, policy.frozen_copy(), pixels), DraftConfig(last_steps=3))
    ours = -draft.images(batch.lr, 0, seeds).mean()
    expected = full_backprop(policy, batch.lr, seeds)
    assert ours.item() == expected.item()
    pairs = zip(*(torch.autograd.grad(loss, list(policy.parameters())) for loss in (ours, expected)), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-8) for a, b in pairs)


def test_what_draft_scores_is_what_the_policy_samples():
    policy = ConvolutionalFlow(Sampler(3, "dance", 0.3))
    draft = Draft(Trainee(policy, policy.frozen_copy(), pixels), DraftConfig())
    lr = batch_of().lr
    for cut in range(3):
        assert torch.equal(draft.images(lr, cut, [1, 2]).detach(), policy.sample(lr, seeded_generators([1, 2])))


def test_micro_batches_of_draft_add_up():
    gradients = []
    for size in (None, 1):
        policy = ConvolutionalFlow(Sampler(3))
        optimise = Collect(policy)
        config = DraftConfig(micro_batch=size)
        config.build(Trainee(policy, policy.frozen_copy(), pixels)).update(
            batch_of(), BrightnessReward(), np.random.default_rng(0), optimise
        )
        gradients.append(optimise.gradient())
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(steps=st.integers(1, 60), last=st.integers(1, 80), mean=st.floats(0, 1), std=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_a_cut_is_always_one_of_the_steps(steps, last, mean, std, seed):
    rng = np.random.default_rng(seed)
    assert 0 <= DraftConfig(random_cut=True, cut_mean=mean, cut_std=std).cut(steps, rng) < steps
    assert DraftConfig(last_steps=last).cut(steps, rng) == max(0, steps - last)


def test_cuts_of_alignprop_are_distributed_as_said():
    rng = np.random.default_rng(0)
    cuts = [DraftConfig(random_cut=True).cut(50, rng) for _ in range(2000)]
    assert np.mean(cuts) == pytest.approx(42, abs=0.5) and np.std(cuts) == pytest.approx(5, abs=0.5)


class Nan(BrightnessReward):
    """The first image has no reward, and a gradient of 0, as a remote reward with failures="nan" gives."""

    def __call__(self, images):
        rewards = super().__call__(images)
        missing = torch.tensor([float("nan")])
        return Rewards(torch.cat([missing, rewards.reward[1:]]), rewards.score, rewards.max_degradation, rewards.mean_degradation)


class Failing(BrightnessReward):
    """No image has a reward, nor a gradient."""

    def __call__(self, images):
        zero = images.mean((1, 2, 3)) * 0
        return Rewards(zero + float("nan"), zero.detach(), zero.detach(), zero.detach())


class AmongOthers(Alone):
    """The world of a process beside another whose images all have rewards."""

    def total(self, value):
        return value + 1.0


THROUGH_THE_REWARD = [
    DraftConfig(pretraining_weight=0.0),
    ReflConfig(window=0.3, pretraining_weight=0.0),
    RfsrConfig(early=0.0, reward_weight=1.0),
    RfsrConfig(early=0.0, reward_weight=1.0, ceiling="clean"),
]


def update_of(config, reward, world=ALONE):
    policy = ConvolutionalFlow(Sampler(3))
    optimise = Collect(policy)
    algorithm = config.build(Trainee(policy, policy.frozen_copy(), pixels, world))
    drawn = batch_of()
    batch = Batch(drawn.hr + 0.2, drawn.lr)  # so that every photo earns more than what is made of it
    return algorithm.update(batch, reward, np.random.default_rng(0), optimise), optimise.gradient()


@pytest.mark.parametrize("config", THROUGH_THE_REWARD)
def test_an_image_without_reward_is_left_out(config):
    found, gradient = update_of(config, Nan())
    assert len(found.rewards.reward) == 1 and gradient.isfinite().all() and gradient.any()
    assert all(np.isfinite(value) for value in [*found.losses.values(), *found.figures.values()])


@pytest.mark.parametrize("config", THROUGH_THE_REWARD)
def test_no_image_with_a_reward_is_an_error_unless_another_process_has_one(config):
    with pytest.raises(RewardError, match="none of 2 images has a finite reward"):
        update_of(config, Failing())
    found, gradient = update_of(config, Failing(), AmongOthers())
    assert found.losses["reward"] == 0.0 and not gradient.any() and gradient.isfinite().all()


def test_a_micro_batch_without_a_reward_does_not_fail_the_batch():
    class BrightFails(BrightnessReward):
        def __call__(self, images):
            rewards = super().__call__(images)
            return dataclasses.replace(rewards, reward=rewards.reward.masked_fill(rewards.score > 0.504, float("nan")))

    whole, gradient = update_of(DraftConfig(pretraining_weight=0.0), BrightFails())
    split, split_gradient = update_of(DraftConfig(pretraining_weight=0.0, micro_batch=1), BrightFails())
    assert len(whole.rewards.reward) == len(split.rewards.reward) == 1 and split.figures["images without reward"] == 1
    assert torch.allclose(gradient, split_gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("bad", [{"last_steps": 0}, {"cut_mean": 1.5}, {"cut_std": -1.0}, {"reward_weight": float("inf")}])
def test_bad_settings_of_draft_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        DraftConfig(**bad)


# -- RFSR: windows ------------------------------------------------------------------------------------------------------


def test_the_papers_windows():
    config = RfsrConfig()
    assert config.early_window(50) == range(20) and config.late_window(50) == range(40, 50)
    assert config.early_window(4) == range(2) and config.late_window(4) == range(3, 4)
    assert config.early_window(1) == range(0) and config.late_window(1) == range(1)


@settings(max_examples=80, deadline=None)
@given(steps=st.integers(1, 100), early=st.floats(0, 1), rest=st.floats(0, 1))
def test_windows_are_apart_and_inside(steps, early, rest):
    config = RfsrConfig(early=early, late=(1 - early) * rest * 0.999)
    early_window, late_window = config.early_window(steps), config.late_window(steps)
    indices = [*early_window, *late_window]
    assert indices == sorted(set(indices)) and set(indices) <= set(range(steps))
    assert len(late_window) >= (config.late > 0)
    assert abs(len(early_window) - early * steps) <= 1 and abs(len(late_window) - config.late * steps) <= 1


def rfsr_of(policy, **config):
    return Rfsr(Trainee(policy, policy.frozen_copy(), pixels), RfsrConfig(**config))


def test_each_term_is_active_in_its_window_and_nowhere_else():
    policy = ConvolutionalFlow(Sampler(10))
    algorithm = rfsr_of(policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.3)  # away from the reference
    for index in range(10):
        reward = BrightnessReward()
        losses, rewards = algorithm.losses(batch_of(), reward, index, np.random.default_rng(0))
        active = {name for name in ("low_frequency", "reward", "gram", "pretraining") if getattr(losses, name) > 0}
        assert active == ({"low_frequency"} if index < 4 else {"reward", "gram"} if index >= 8 else set())
        assert reward.calls == [((2, 3, 16, 16), index >= 8)] and len(rewards.reward) == 2


def test_an_index_is_drawn_only_where_something_is_trained():
    policy = GaussianPolicy(MEAN, Sampler(10))
    algorithm = rfsr_of(policy)
    seen = set()
    for seed in range(60):
        optimise = Collect(policy)
        batch = batch_of(side=8, scale=1)
        seen.add(algorithm.update(batch, BrightnessReward(), np.random.default_rng(seed), optimise).figures["index"])
    assert seen == {0, 1, 2, 3, 8, 9}
    with pytest.raises(ConfigError, match="no index"):
        rfsr_of(policy, early=0.0, late=0.0)


@pytest.mark.parametrize("loop", ["denoise", "one-shot"])
def test_the_network_sees_the_denoised_state_or_with_one_shot_the_starting_one(loop):
    policy = ConvolutionalFlow(Sampler(5))
    batch, index, seen = batch_of(), 4, []
    original = policy.predict

    def spy(x, timestep, condition):
        seen.append((x.detach().clone(), float(timestep), torch.is_grad_enabled()))
        return original(x, timestep, condition)

    policy.predict = spy
    rfsr_of(policy, loop=loop, gram_weight=0.0).losses(batch, BrightnessReward(), index, np.random.default_rng(0))
    policy.predict = original
    seeds = np.random.default_rng(0).integers(2**31, size=2).tolist()
    start = 0 if loop == "one-shot" else index
    expected = denoise_to(policy, start, policy.condition(batch.lr), seeded_generators(seeds))
    assert torch.equal(seen[-1][0], expected) and seen[-1][1] == float(policy.levels[index].timestep)
    assert [graded for *_, graded in seen] == [False] * (len(seen) - 1) + [True] and len(seen) == start + 1


def test_only_the_policy_receives_gradients_from_rfsr():
    policy = ConvolutionalFlow(Sampler(5))
    reference = policy.frozen_copy()
    algorithm = RfsrConfig(pretraining_weight=1.0, gram_weight=1.0).build(Trainee(policy, reference, pixels))
    for index in (0, 4):
        algorithm.losses(batch_of(), BrightnessReward(), index, np.random.default_rng(0))[0].total.backward()
    assert all(p.grad is not None for p in policy.parameters())
    assert all(p.grad is None for p in reference.network.parameters())


def test_the_gram_term_is_zero_while_the_policy_is_its_reference():
    losses, _ = rfsr_of(ConvolutionalFlow(Sampler(5))).losses(batch_of(), BrightnessReward(), 4, np.random.default_rng(0))
    assert losses.gram.item() == 0.0 and losses.reward.item() > 0


def test_the_reward_term_in_closed_form():
    rewards = torch.tensor([0.5, 2.5, 1.0], requires_grad=True)
    loss = refl_objective(rewards, torch.tensor(2.0))
    loss.backward()
    assert loss.item() == pytest.approx((1.5 + 0.0 + 1.0) / 3)
    assert rewards.grad.tolist() == pytest.approx([-1 / 3, 0.0, -1 / 3])


@pytest.mark.parametrize(("ceiling", "gap"), [(2.0, 2.0), ("clean", None)])
def test_the_ceiling_is_a_number_or_the_photos_own_reward(ceiling, gap):
    policy = ConvolutionalFlow(Sampler(5))
    batch = Batch(torch.ones(2, 3, 16, 16), torch.zeros(2, 3, 4, 4))
    losses, rewards = rfsr_of(policy, ceiling=ceiling, reward_weight=1.0).losses(
        batch, BrightnessReward(), 4, np.random.default_rng(0)
    )
    assert losses.reward.item() == pytest.approx((gap or 1.0) - rewards.reward.mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    "bad",
    [{"early": -0.1}, {"late": 1.1}, {"loop": "none"}, {"ceiling": "gt"}, {"ceiling": float("nan")}, {"gram_weight": -1.0}],
)
def test_bad_settings_of_rfsr_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        RfsrConfig(**bad)
    with pytest.raises(ConfigError, match="overlap"):
        RfsrConfig(early=0.7, late=0.4)


# -- RFSR: low band and Gram features -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(32, 48), (40, 40), (33, 50)])
def test_the_low_band_is_that_of_the_wavelet_library(height, width):
    """Its first phase is PyWavelets' own 2D transform, level by level, times the gain."""
    image = np.random.default_rng(0).random((height, width))
    known = image
    for _ in range(LEVELS):
        known, _ = pywt.dwt2(known, WAVELET, mode="symmetric")
    ours = low_band(torch.from_numpy(image)[None, None].float())[0, 0, : known.shape[0], : known.shape[1]]
    assert np.allclose(ours.numpy(), known / 2, atol=1e-4)  # 4 on a constant instead of 8
    assert decompose(np.eye(height)).shape[0] == known.shape[0]


def test_the_low_band_keeps_a_constant_and_loses_fine_detail():
    constant = low_band(torch.full((1, 3, 64, 64), 0.25))
    assert torch.allclose(constant, torch.tensor(1.0), atol=1e-4)
    checkers = ((torch.arange(64)[:, None] + torch.arange(64)) % 2).float().expand(1, 3, 64, 64)
    assert (low_band(checkers) - 2.0).abs().max() < 0.1  # their mean, 0.5, times 4
    assert low_pass_matrix(64).sum(1).tolist() == pytest.approx([2.0] * len(low_pass_matrix(64)), abs=1e-4)


def test_the_low_frequency_distance_is_zero_between_equals_and_has_its_gradient():
    a, b = torch.rand(2, 1, 3, 24, 24, dtype=torch.float64)
    assert low_frequency_distance(a, a).item() == 0.0
    assert torch.autograd.gradcheck(low_frequency_distance, (a.requires_grad_(), b))


def test_vgg_features_are_those_of_the_named_convolutions():
    torch.manual_seed(0)
    model = vgg19(weights=None).features
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    extract = Vgg19Features(model)
    features = extract(images)
    assert [tuple(f.shape[1:]) for f in features] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]
    first = model[2](model[1](model[0]((images - 0) * 0 + _normalised(images))))
    assert torch.allclose(features[0], first, atol=1e-5)
    assert (features[0] < 0).any()  # before the activation, and left as it was by it
    gram_distance(features, extract(torch.rand(1, 3, 32, 32)), LAYER_WEIGHTS).backward()
    assert images.grad.isfinite().all() and images.grad.any()
    assert all(not p.requires_grad for p in extract.layers.parameters())


def _normalised(images):
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images - mean[:, None, None]) / std[:, None, None]


def test_gram_distances_are_weighted_by_layer():
    a, b = [torch.rand(1, 2, 3, 3), torch.rand(1, 4, 2, 2)], [torch.rand(1, 2, 3, 3), torch.rand(1, 4, 2, 2)]
    single = [gram_distance([x], [y]) for x, y in zip(a, b, strict=True)]
    assert gram_distance(a, b, (0.1, 1.0)).item() == pytest.approx((0.1 * single[0] + single[1]).item(), rel=1e-5)
