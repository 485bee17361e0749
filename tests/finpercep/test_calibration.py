"""Calibration against what it must find: known scale and shift, reliability that improves, order that stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finpercep.reward_model.build import build_reward_model
from finpercep.reward_model.config import RewardModelConfig
from finpercep.training.calibration import LogitCalibration, ReliabilityBin, calibration_error, fit_calibration, reliability
from finpercep.training.evaluate import calibrate, predict_split
from tests.finpercep.test_training import SAMPLES


@settings(deadline=None)
@given(scale=st.floats(0.1, 8.0), shift=st.floats(-3.0, 3.0))
def test_a_known_distortion_is_found(scale, shift):
    """Targets are sigmoid(scale · logit + shift): cross-entropy is least exactly there."""
    logits = torch.linspace(-2, 2, 200)
    found = fit_calibration(logits, torch.sigmoid(scale * logits + shift))
    assert found.scale == pytest.approx(scale, rel=1e-2) and found.shift == pytest.approx(shift, abs=2e-2)


def test_calibration_keeps_every_order_even_when_the_targets_run_against_it():
    logits = torch.randn(500, generator=torch.Generator().manual_seed(0))
    found = fit_calibration(logits, torch.sigmoid(-logits))
    assert found.scale > 0
    assert torch.equal(found.apply(logits).argsort(), logits.argsort())


def test_nothing_to_learn_from_changes_nothing():
    assert fit_calibration(torch.zeros(10), torch.rand(10)) == LogitCalibration()
    assert fit_calibration(torch.randn(10), torch.full((10,), 0.5)) == LogitCalibration()


def test_reliability_of_a_hand_made_case():
    curve = reliability(np.array([0.05, 0.15, 0.15, 1.0]), np.array([0.0, 0.1, 0.5, 1.0]))
    expected = [(0.05, 0.0, 1), (0.15, 0.3, 2), (1.0, 1.0, 1)]
    for one, (predicted, actual, count) in zip(curve, expected, strict=True):
        assert one.predicted == pytest.approx(predicted) and one.actual == pytest.approx(actual) and one.count == count
    assert calibration_error(curve) == pytest.approx((0.05 + 2 * 0.15) / 4)
    assert calibration_error(()) == 0.0


def test_a_perfect_forecast_has_no_error():
    values = np.random.default_rng(0).uniform(size=1000)
    assert calibration_error(reliability(values, values)) == pytest.approx(0.0, abs=1e-12)
    assert isinstance(reliability(values, values)[0], ReliabilityBin)


@torch.no_grad()
def test_a_rung_is_calibrated_on_samples():
    """After calibration scores and map agree better with what is known, and stay in the order they were in."""
    torch.manual_seed(0)
    model = build_reward_model(RewardModelConfig(map_stride=16)).eval()
    before = predict_split(model, SAMPLES)
    calibrate(model, SAMPLES)
    after = predict_split(model, SAMPLES)
    assert model.config.score_scale != 1.0 and model.config.map_shift != 0.0
    assert after.map_syn.mean() == pytest.approx(np.stack([row.map for row in SAMPLES]).mean(), abs=0.02)
    assert calibration_error(reliability(after.map_syn, after.target)) < calibration_error(
        reliability(before.map_syn, before.target)
    )
    assert (np.argsort(after.score_syn) == np.argsort(before.score_syn)).all()


@torch.no_grad()
def test_calibrating_again_changes_nothing():
    """The fit refines what is there: a model that is calibrated stays as it is."""
    torch.manual_seed(0)
    model = build_reward_model(RewardModelConfig(map_stride=16, score_scale=3.0, map_shift=-1.0)).eval()
    calibrate(model, SAMPLES)
    once = predict_split(model, SAMPLES)
    calibrate(model, SAMPLES)
    again = predict_split(model, SAMPLES)
    assert np.allclose(again.score_syn, once.score_syn, atol=1e-3) and np.allclose(again.map_syn, once.map_syn, atol=1e-3)
