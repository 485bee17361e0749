"""The packaged policy's class against its scheduler, against plain diffusers, and against bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel

from finpercep.cli.train_sr import train_policy
from finpercep.errors import ConfigError, SchemaError, TrainingError, WeightsError
from finpercep.sr.loading import load_policy
from finpercep.sr.policy import seeded_generators
from finpercep.sr.pretrain import PretrainConfig, measure_residual_std, pretrain
from finpercep.sr.tiny import TinyDiffusionSR
from finpercep.sr.transition import Sampler
from finpercep.training.metrics_log import read_metrics


def pair(rng: np.random.Generator):
    hr = torch.from_numpy(rng.random((3, 32, 32), dtype=np.float32))
    return hr, torch.nn.functional.avg_pool2d(hr[None], 4)[0]


@torch.no_grad()
def test_x0_agrees_with_the_schedulers_own(small_policy):
    lr = torch.rand(2, 3, 8, 8)
    condition = small_policy.condition(lr)
    x = small_policy.initial_state(condition, seeded_generators([1, 2]))
    for index, timestep in enumerate(small_policy.scheduler.timesteps):
        velocity = small_policy.predict(x, timestep, condition)
        theirs = small_policy.scheduler.step(velocity, timestep, x).pred_original_sample
        assert torch.allclose(small_policy.predict_clean(x, index, condition), theirs, atol=1e-5)


@torch.no_grad()
def test_a_step_agrees_with_the_schedulers_own(small_policy):
    """Two routes to the same step; indices where diffusers' own is finite and its previous timestep is ours (4 even steps)."""
    policy = small_policy.with_sampler(Sampler(4, eta=0.7))
    condition = policy.condition(torch.rand(2, 3, 8, 8))
    x = policy.initial_state(condition, seeded_generators([1, 2]))
    for index, timestep in enumerate(policy.scheduler.timesteps):
        noise = policy.initial_state(condition, seeded_generators([3, 4]))
        velocity = policy.predict(x, timestep, condition)
        theirs = policy.scheduler.step(velocity, timestep, x, eta=0.7, variance_noise=noise).prev_sample
        ours = policy.step(x, index, condition, seeded_generators([3, 4]))
        assert torch.allclose(ours, theirs, atol=1e-4)
        x = ours


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7, 10])
def test_every_number_of_steps_gives_a_finite_sample(small_policy, steps):
    sample = small_policy.with_sampler(Sampler(steps, eta=1.0)).sample(torch.rand(1, 3, 8, 8), seeded_generators([0]))
    assert sample.isfinite().all()


def test_first_step_starts_from_pure_noise(small_policy):
    assert small_policy.levels[0].timestep == 999
    assert small_policy.scheduler.alphas_cumprod[-1].item() == 0.0


@torch.no_grad()
def test_decode_inverts_residual(small_policy):
    hr = torch.rand(2, 3, 32, 48)
    condition = small_policy.condition(torch.rand(2, 3, 8, 12))
    assert torch.allclose(small_policy.decode(small_policy.encode(hr, condition), condition), hr, atol=1e-5)


@torch.no_grad()
def test_a_sample_depends_on_its_own_seed_not_on_its_batch(small_policy):
    lr = torch.rand(3, 3, 8, 8)
    together = small_policy.sample(lr, seeded_generators([5, 6, 7]))
    alone = small_policy.sample(lr[1:2], seeded_generators([6]))
    assert torch.allclose(together[1:2], alone, atol=1e-5)
    assert not torch.allclose(alone, small_policy.sample(lr[1:2], seeded_generators([8])), atol=1e-3)


@pytest.mark.parametrize("size", [(8, 8), (7, 13), (5, 5)])
def test_any_lr_size_is_upscaled_by_four(small_policy, size):
    out = small_policy.sample(torch.rand(1, 3, *size), seeded_generators([0]))
    assert out.shape == (1, 3, 4 * size[0], 4 * size[1])
    assert out.min() >= 0 and out.max() <= 1


@pytest.mark.parametrize("half", [False, True])
@torch.no_grad()
def test_saved_policy_is_read_back_and_by_plain_diffusers(small_policy, tmp_path, half):
    small_policy.save_pretrained(tmp_path, half=half)
    loaded = load_policy(str(tmp_path))
    assert loaded.config == small_policy.config
    lr = torch.rand(1, 3, 8, 8)
    ours, theirs = (p.sample(lr, seeded_generators([3])) for p in (small_policy, loaded))
    assert torch.allclose(ours, theirs, atol=2e-2 if half else 1e-6)
    unet = UNet2DModel.from_pretrained(tmp_path / "unet", variant="fp16" if half else None)
    assert unet.config.in_channels == 24
    assert DDIMScheduler.from_pretrained(tmp_path / "scheduler").config.prediction_type == "v_prediction"


def test_the_frozen_copy_shares_nothing(small_policy):
    reference = small_policy.frozen_copy()
    lr = torch.rand(1, 3, 8, 8)
    before = reference.sample(lr, seeded_generators([0]))
    with torch.no_grad():
        for parameter in small_policy.parameters():
            parameter.add_(0.1)
    assert torch.equal(before, reference.sample(lr, seeded_generators([0])))
    assert not any(parameter.requires_grad for parameter in reference.unet.parameters())


def test_missing_and_foreign_folders(small_policy, tmp_path):
    with pytest.raises(WeightsError, match="expected tiny, tiny@00300, a folder"):
        load_policy(str(tmp_path / "nothing"))
    with pytest.raises(WeightsError, match=r"policy\.json"):
        load_policy(str(tmp_path))
    small_policy.save_pretrained(tmp_path)
    record = json.loads((tmp_path / "policy.json").read_text())
    (tmp_path / "policy.json").write_text(json.dumps({**record, "version": 9}))
    with pytest.raises(SchemaError, match="version"):
        load_policy(str(tmp_path))


def run(policy: TinyDiffusionSR, out, steps: int, stop_after: int | None = None) -> dict[str, torch.Tensor]:
    config = PretrainConfig(steps=steps, batch_size=2, crop=32, save_every=2)
    for progress in pretrain(policy, pair, config, out):
        if progress.step == stop_after:
            break
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


def test_pretraining_learns_and_resumes_bit_for_bit(small_policy, tmp_path):
    other, third = small_policy.frozen_copy(), small_policy.frozen_copy()
    for policy in (other, third):
        policy.unet.requires_grad_(True)
    straight = run(small_policy, tmp_path / "a", 6)
    run(other, tmp_path / "b", 6, stop_after=5)
    resumed = run(third, tmp_path / "b", 6)
    for name, tensor in straight.items():
        assert torch.equal(tensor, resumed[name]), name


def test_a_step_taken_again_stands_once_and_a_finished_run_takes_none(small_policy, tmp_path):
    """Interrupted after step 3 with a state of step 2, its last line torn; run again, and once more when all is done."""
    config = PretrainConfig(steps=5, batch_size=2, crop=32, save_every=2)
    first, again, finished = (small_policy.frozen_copy() for _ in range(3))
    for policy in (first, again, finished):
        policy.unet.requires_grad_(True)
    run(first, tmp_path, 5, stop_after=3)
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 3)) + '{"st')
    train_policy(again, pair, config, tmp_path)
    assert [record["step"] for record in read_metrics(log)] == [1, 2, 3, 4, 5]
    assert "losses" in read_metrics(log)[2]
    before = log.read_bytes()
    train_policy(finished, pair, config, tmp_path)
    assert log.read_bytes() == before
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, finished.state_dict()[name]), name


def test_pretraining_stops_at_a_non_finite_loss(small_policy, tmp_path):
    def broken(rng):
        hr, lr = pair(rng)
        return hr * float("nan"), lr

    with pytest.raises(TrainingError, match="lower the learning rate"):
        list(pretrain(small_policy, broken, PretrainConfig(steps=1, batch_size=1, crop=32), tmp_path))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch_size": 0}, {"save_every": 0}, {"crop": 30}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PretrainConfig(**wrong)


def test_residual_std_makes_the_state_unit_variance(small_policy):
    std = measure_residual_std(small_policy, pair, seed=0)
    small_policy.residual_std = std
    hr, lr = (torch.stack(side) for side in zip(*(pair(np.random.default_rng(i)) for i in range(40)), strict=True))
    assert small_policy.encode(hr, small_policy.condition(lr)).std().item() == pytest.approx(1.0, rel=0.05)
