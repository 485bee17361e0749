"""Every algorithm through the loop: the reward rises, an interrupted run continues bit for bit, remote is as local."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finpercep.client import RewardClient
from finpercep.curriculum.blended_reward import BlendedReward
from finpercep.curriculum.loop import finetune
from finpercep.curriculum.optimiser import PolicyOptimiser
from finpercep.curriculum.run_directory import RunDirectory
from finpercep.curriculum.settings import FinetuneConfig
from finpercep.errors import ConfigError
from finpercep.local_reward import LocalSource
from finpercep.metric_reward import MetricSource
from finpercep.predictor import load_predictors
from finpercep.reward import MapRewardFn, RewardWeights, score_with_map
from finpercep.rl.algorithm import Batch, Trainee
from finpercep.rl.algorithms import ALGORITHMS, algorithm_class
from finpercep.rl.ddpo import DdpoConfig
from finpercep.rl.dpo import DpoConfig
from finpercep.rl.draft import DraftConfig
from finpercep.rl.grpo import GrpoConfig
from finpercep.rl.nft import NftConfig
from finpercep.rl.refl import ReflConfig
from finpercep.rl.rfsr import RfsrConfig
from finpercep.sr.transition import Sampler
from finpercep.training.metrics_log import read_metrics
from finpercep.weighted_reward import Part, WeightedSource
from rm_server.app import create_app
from rm_server.settings import Settings
from tests.fakes import AppTransport, fake_ladder, registry_of
from tests.toy_policies import BrightnessReward, ConvolutionalFlow

GROUPS = {"group_size": 4, "micro_batch": 3, "pretraining_weight": 0.1}
FLOW = {"num_steps": 3, "noise": "flow-grpo", "eta": 0.7}

RESUMED = {
    "refl": ReflConfig(),
    "rfsr": RfsrConfig(pretraining_weight=0.1),
    "draft": DraftConfig(random_cut=True, micro_batch=1),
    "ddpo": DdpoConfig(**GROUPS, num_steps=3, minibatches=2),
    "grpo": GrpoConfig(**GROUPS, **FLOW, epochs=2, spread="batch"),
    "grpo with maps": GrpoConfig(**GROUPS, num_steps=3, noise="dance", eta=0.3, shared_noise=True, train_share=0.6, credit="map"),
    "dpo": DpoConfig(**GROUPS, steps=2),
    "nft": NftConfig(**GROUPS, old_rate=0.1),
}

RISING = {
    "refl": ReflConfig(reward_weight=1.0, pretraining_weight=0.0, gram_weight=0.0),
    "rfsr": RfsrConfig(early=0.0, reward_weight=1.0, gram_weight=0.0),
    "draft": DraftConfig(pretraining_weight=0.0),
    "ddpo": DdpoConfig(num_steps=4),
    "grpo": GrpoConfig(**FLOW),
    "grpo with maps": GrpoConfig(credit="map", num_steps=3, noise="dance", eta=0.3),
    "dpo": DpoConfig(beta=100.0),
    "nft": NftConfig(),
}


def draw_pair(rng):
    hr = torch.from_numpy(rng.random((3, 32, 32), dtype=np.float32))
    return hr, torch.nn.functional.avg_pool2d(hr[None], 4)[0]


def features(images):
    return [images]


def flow():
    return ConvolutionalFlow(Sampler(3))


def test_every_algorithm_is_covered_and_registered():
    named = {config.name for config in RISING.values()}
    assert named == {config.name for config in RESUMED.values()} == set(ALGORITHMS)
    assert {name for name, kind in ALGORITHMS.items() if kind.needs_gradient} == {"refl", "rfsr", "draft"}
    assert algorithm_class("nft") is NftConfig
    with pytest.raises(ConfigError, match="refl, rfsr, draft, ddpo, grpo, dpo, nft"):
        algorithm_class("ppo")


@pytest.mark.parametrize("case", RISING)
def test_the_reward_rises(case):
    """Ten updates on dark photos: what is sampled afterwards, from the same noise, is brighter on every photo."""
    policy, config = flow(), RISING[case]
    hr = torch.ones(2, 3, 16, 16)
    batch = Batch(hr, 0.4 + 0.2 * torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    algorithm = config.build(Trainee(policy, policy.frozen_copy(), features))
    optimise = PolicyOptimiser(policy, lr=1e-2, max_grad_norm=1.0, ema=0.0)
    before = _brightness(policy, batch.lr)
    for update in range(10):
        found = algorithm.update(batch, BrightnessReward(), np.random.default_rng(update), optimise)
        assert all(np.isfinite(list({**found.losses, **found.figures}.values())))
    assert (_brightness(policy, batch.lr) > before + 0.01).all()


def _brightness(policy, lr):
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    return policy.sample(lr, generators).mean(dim=(1, 2, 3))


@pytest.fixture(scope="module")
def fakes():
    return LocalSource(fake_ladder())


def run(config, folder, source, stop_after=None):
    policy = flow()
    loop = FinetuneConfig(steps=6, batch_size=2, crop=32, save_every=2, lr=1e-3, ema=0.9, algorithm=config)
    for metrics in finetune(policy, source, draw_pair, features, loop, RunDirectory(folder)):
        if metrics.step == stop_after:
            break
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


@pytest.mark.parametrize("case", RESUMED)
def test_an_interrupted_run_continues_bit_for_bit(case, tmp_path, fakes):
    straight = run(RESUMED[case], tmp_path / "straight", fakes)
    run(RESUMED[case], tmp_path / "resumed", fakes, stop_after=3)
    assert torch.equal(straight, run(RESUMED[case], tmp_path / "resumed", fakes))
    ours, theirs = (_timeless(tmp_path / name / "metrics.jsonl") for name in ("straight", "resumed"))
    assert ours == theirs and len(ours) == 6
    assert (tmp_path / "straight/final/policy.json").exists()


def _timeless(path):
    return [{k: v for k, v in record.items() if "seconds" not in k} for record in read_metrics(path)]


@pytest.mark.parametrize("case", ["grpo with maps", "ddpo"])
def test_a_real_unet_is_trained_by_a_real_ladder(case, small_policy, small_ladder, tmp_path):
    config = {"grpo with maps": GrpoConfig(group_size=2, credit="map"), "ddpo": DdpoConfig(group_size=2)}[case]
    loop = FinetuneConfig(steps=3, batch_size=1, crop=32, save_every=3, algorithm=config)
    source = LocalSource(load_predictors(small_ladder))
    before = torch.cat([p.detach().flatten().clone() for p in small_policy.parameters()])
    metrics = list(finetune(small_policy, source, draw_pair, features, loop, RunDirectory(tmp_path)))
    assert [m.rung for m in metrics] == ["RM_0", "RM_1", "RM_2"] and all(m.grad_norm > 0 for m in metrics)
    assert all(m.figures["clipped"] == 0 for m in metrics)
    assert not torch.equal(before, torch.cat([p.detach().flatten() for p in small_policy.parameters()]))


def test_maps_over_the_wire_are_those_in_process(fakes):
    images = torch.rand(3, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    app = create_app(registry_of(fake_ladder()), Settings())
    with RewardClient("http://test", transport=AppTransport(app)) as client:
        for rung in ("RM_0", "RM_1"):
            rewards, maps = zip(
                *(score_with_map(s.reward_fn(rung, RewardWeights()), images) for s in (fakes, client)), strict=True
            )
            assert torch.allclose(rewards[0].reward, rewards[1].reward, atol=1e-6)
            if rung == "RM_0":
                assert maps == (None, None)
            else:
                assert torch.allclose(*maps, atol=1e-6) and maps[0].shape == (3, 40, 48)


def test_a_blend_blends_maps_and_counts_a_missing_one_as_nothing_found(fakes):
    images = torch.rand(2, 3, 32, 32)
    blind, seeing = (fakes.reward_fn(rung, RewardWeights()) for rung in ("RM_0", "RM_1"))
    blend = BlendedReward(blind, seeing, 0.25)
    rewards, degradation = blend.with_map(images)
    assert isinstance(blend, MapRewardFn) and torch.allclose(degradation, 0.25 * seeing.with_map(images)[1])
    assert torch.allclose(rewards.reward, blend(images).reward)
    assert BlendedReward(blind, blind, 0.5).with_map(images)[1] is None


def test_a_sum_of_rewards_shows_the_ladders_map(fakes):
    images = torch.rand(2, 3, 32, 32)
    brightness = MetricSource("brightness", lambda x: x.mean((1, 2, 3)))
    total = WeightedSource([Part("brightness", 0.5, brightness), Part("ladder", 1.0, fakes)]).reward_fn("RM_1", RewardWeights())
    rewards, degradation = total.with_map(images)
    assert torch.equal(degradation, fakes.reward_fn("RM_1", RewardWeights()).with_map(images)[1])
    assert torch.equal(rewards.reward, total(images).reward) and set(rewards.parts) == {"brightness", "ladder"}
    with pytest.raises(ConfigError, match="degradation maps"):
        WeightedSource([Part("brightness", 1.0, brightness)]).reward_fn("brightness", RewardWeights()).with_map(images)
