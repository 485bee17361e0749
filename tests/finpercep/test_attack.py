"""Adversarial training: against a closed form, on a real model, and as a part of a run that is interrupted."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finpercep.errors import ConfigError
from finpercep.reward_model.build import build_reward_model
from finpercep.reward_model.config import RewardModelConfig
from finpercep.reward_model.ladder import LadderConfig
from finpercep.training.attack import PICTURES, AttackConfig, attacked, is_victim
from finpercep.training.data import TripletBatch, training_batch
from finpercep.training.objective import LossWeights, triplet_losses
from finpercep.training.processes import make_accelerator
from finpercep.training.rung import RungTrainer
from tests.finpercep.test_training import CONFIG, SAMPLES, assert_same_weights, run

RADIUS = 4 / 255


@pytest.fixture
def batch() -> TripletBatch:
    return training_batch(SAMPLES, 0, batch_size=4, crop=48, seed=0)


@pytest.mark.parametrize(("steps", "least"), [(1, 0.25), (5, 1.0)])
def test_where_the_loss_is_linear_its_corner_is_found(batch, steps, least):
    """sum(w·x) is largest at x + r·sign(w); one step of 1.25 r gets at least a quarter of the way from anywhere."""
    torch.manual_seed(0)
    weights = {name: torch.randn_like(batch.gt[:2]) for name in PICTURES}
    inside = {name: getattr(batch, name).clamp(0.1, 0.9) for name in PICTURES}
    batch = dataclasses.replace(batch, **inside)
    config = AttackConfig(RADIUS, steps, share=0.5)
    changed = attacked(batch, lambda b: sum((weights[name] * getattr(b, name)).sum() for name in PICTURES), config)
    victims, spared = [1, 3], [0, 2]
    for name in PICTURES:
        moved = (getattr(changed, name) - inside[name])[victims] * weights[name].sign() / RADIUS
        assert moved.min() >= least - 1e-4 and moved.max() <= 1 + 1e-4
        assert torch.equal(getattr(changed, name)[spared], inside[name][spared])
    for name in ("lr", "lr_known", "mask", "map", "quality_syn", "quality_sr"):
        assert torch.equal(getattr(changed, name), getattr(batch, name))


def test_pictures_stay_pictures(batch):
    black = dataclasses.replace(batch, **{name: torch.zeros_like(batch.gt) for name in PICTURES})
    changed = attacked(black, lambda b: -sum(getattr(b, name).sum() for name in PICTURES), AttackConfig(RADIUS, share=1.0))
    assert all(getattr(changed, name).min() == getattr(changed, name).max() == 0 for name in PICTURES)


def test_a_model_is_fooled_more_than_by_chance(batch):
    torch.manual_seed(0)
    model = build_reward_model(dataclasses.replace(CONFIG.ladder.base, map_stride=4)).eval()

    def loss(images: TripletBatch) -> torch.Tensor:
        return triplet_losses(model, None, images, LossWeights())["total"]

    chance = {name: getattr(batch, name) + RADIUS * torch.randn_like(batch.gt).sign() for name in PICTURES}
    clean, noisy = loss(batch), loss(dataclasses.replace(batch, **chance))
    fooled = loss(attacked(batch, loss, AttackConfig(RADIUS, share=1.0)))
    assert fooled - clean > 3 * (noisy - clean).abs()
    assert all(parameter.grad is None for parameter in model.parameters())


@given(share=st.floats(0.01, 1.0), size=st.integers(1, 64), processes=st.integers(1, 8))
def test_who_is_attacked_does_not_depend_on_the_number_of_processes(share, size, processes):
    places = range(size * processes)
    chosen = [place for place in places if is_victim(place, share)]
    assert abs(len(chosen) - share * len(places)) < 1
    parts = [range(rank * size, (rank + 1) * size) for rank in range(processes)]
    assert [place for part in parts for place in part if is_victim(place, share)] == chosen


def test_the_anchor_is_asked_about_the_photos_as_they_were():
    config = dataclasses.replace(CONFIG, attack=AttackConfig(RADIUS, share=1.0))
    asked = []

    class Anchor(torch.nn.Module):
        def forward(self, images):
            asked.append(images)
            return SimpleNamespace(score=images.mean((1, 2, 3)))

    model = build_reward_model(RewardModelConfig(head_hidden=16))
    trainer = RungTrainer(model, Anchor(), SAMPLES, config, 0, make_accelerator(torch.device("cpu"), "fp32"))
    batch = trainer.draw(0)
    trainer._losses(batch)
    assert len(asked) == 1 and torch.equal(asked[0], batch.gt)


def test_none_is_none(batch):
    assert attacked(batch, lambda _: pytest.fail("asked"), AttackConfig()) is batch
    assert attacked(batch, lambda _: pytest.fail("asked"), AttackConfig(RADIUS, share=0.1)) is batch


def test_the_attack_itself_changes_no_statistics(batch):
    config = dataclasses.replace(CONFIG, attack=AttackConfig(RADIUS))
    trainer = RungTrainer(
        build_reward_model(RewardModelConfig(head_hidden=16)),
        None,
        SAMPLES,
        config,
        0,
        make_accelerator(torch.device("cpu"), "fp32"),
    )
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    changed = trainer._attacked(batch)
    assert [not torch.equal(a, b) for a, b in zip(changed.sr, batch.sr, strict=True)] == [False, True, False, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())
    assert trainer.model.training


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path):
    attack = AttackConfig(RADIUS, steps=2)
    config = dataclasses.replace(CONFIG, ladder=LadderConfig(CONFIG.ladder.base, ()), steps=(3,), save_every=1, attack=attack)
    straight = run(tmp_path / "straight", config)
    run(tmp_path / "stopped", config, stop_at=("RM_0", 2))
    run(tmp_path / "stopped", config)
    assert_same_weights(tmp_path / "stopped", tmp_path / "straight")
    without = run(tmp_path / "without", dataclasses.replace(config, attack=AttackConfig()))
    assert straight[0].losses["total"] > without[0].losses["total"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"radius": -0.1}, r"radius must lie in \[0, 1\)"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"share": 0.0}, r"share must lie in \(0, 1\]"),
    ],
)
def test_bad_settings_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        AttackConfig(**wrong)
