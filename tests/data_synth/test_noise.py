"""Noise against its statistics: variance, independence of the channels, exact replay."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from data_synth.degradations.noise import Noise, NoiseConfig, add_noise, sample_noise
from data_synth.draws import DrawError

GAUSSIAN = Noise("gaussian", 0.05, is_grey=False, seed=3)
POISSON = Noise("poisson", 1.0, is_grey=False, seed=3)
KINDS = [GAUSSIAN, POISSON]


def flat(level, side=200):
    return np.full((side, side, 3), level, dtype=np.float32)


def residual(image, noise):
    return (add_noise(image, noise) - image).astype(np.float64)


def test_gaussian_noise_has_its_standard_deviation():
    difference = residual(flat(0.5), GAUSSIAN)
    assert difference.mean() == pytest.approx(0, abs=5e-4)
    assert difference.std() == pytest.approx(0.05, rel=0.01)


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("peak", [100.0, 256.0])
@pytest.mark.parametrize("level", [51 / 255, 102 / 255, 153 / 255])
def test_poisson_noise_has_a_variance_proportional_to_the_mean(level, peak, scale):
    difference = residual(flat(level), dataclasses.replace(POISSON, amount=scale, peak=peak))
    assert difference.mean() == pytest.approx(0, abs=2e-3)
    assert difference.var() == pytest.approx(scale**2 * level / peak, rel=0.03)


def test_poisson_noise_of_scale_one_counts_photons(crop):
    counts = add_noise(crop, dataclasses.replace(POISSON, peak=64.0)).astype(np.float64) * 64
    assert np.abs(counts - np.rint(counts)).max() < 1e-4


def test_black_has_no_poisson_noise():
    assert np.array_equal(add_noise(flat(0.0), POISSON), flat(0.0))


@pytest.mark.parametrize("noise", KINDS)
def test_grey_noise_is_equal_over_the_channels_and_colour_noise_is_not(noise):
    image = flat(0.5) * np.array([0.8, 1.0, 1.2], dtype=np.float32)
    grey = residual(image, dataclasses.replace(noise, is_grey=True))
    assert np.allclose(grey, grey[..., :1], atol=1e-6)
    assert grey.std() > 0.01
    colour = residual(image, noise)
    assert np.abs(np.corrcoef(colour.reshape(-1, 3).T) - np.eye(3)).max() < 0.03


def test_grey_poisson_noise_follows_the_luma():
    image = flat(1.0) * np.array([0.2, 0.6, 0.4], dtype=np.float32)
    luma = round(255 * (0.299 * 0.2 + 0.587 * 0.6 + 0.114 * 0.4)) / 255
    difference = residual(image, dataclasses.replace(POISSON, is_grey=True))
    assert difference[..., 0].var() == pytest.approx(luma / 256, rel=0.03)


@pytest.mark.parametrize("noise", KINDS)
def test_the_seed_decides_the_noise(noise, crop):
    noisy = add_noise(crop, noise)
    assert noisy.dtype == np.float32
    assert noisy.min() >= 0 and noisy.max() <= 1
    assert np.array_equal(noisy, add_noise(crop, noise))
    assert not np.array_equal(noisy, add_noise(crop, dataclasses.replace(noise, seed=4)))


def test_poisson_counts_do_not_hang_on_the_last_bit_of_a_float(crop):
    """As they would, drawn by rejection: one other count would shift every draw after it."""
    nudged = np.clip(np.nextafter(crop, np.float32(2)), 0, 1)
    assert np.allclose(add_noise(crop, POISSON), add_noise(nudged, POISSON), atol=1e-6)


def test_no_amount_is_no_noise(crop):
    for noise in KINDS:
        assert np.array_equal(add_noise(crop, dataclasses.replace(noise, amount=0.0)), crop)


def test_draws_follow_the_configured_probabilities():
    config = NoiseConfig(probability=0.7, poisson_share=0.4, grey_probability=0.3, poisson_peak=99.0)
    rng = np.random.default_rng(1)
    drawn = [sample_noise(rng, config) for _ in range(4000)]
    present = [noise for noise in drawn if noise is not None]
    poisson = [noise for noise in present if noise.kind == "poisson"]
    gaussian = [noise for noise in present if noise.kind == "gaussian"]
    for count, probability, draws in (
        (len(present), 0.7, len(drawn)),
        (len(poisson), 0.4, len(present)),
        (sum(noise.is_grey for noise in present), 0.3, len(present)),
    ):
        assert abs(count - probability * draws) < 4 * math.sqrt(draws * probability * (1 - probability))
    assert {noise.peak for noise in poisson} == {99.0}
    for amounts, (low, high) in (
        ([noise.amount for noise in poisson], config.poisson_scale),
        ([noise.amount for noise in gaussian], config.gaussian_sigma),
    ):
        assert low <= min(amounts) and max(amounts) <= high
        assert np.mean(amounts) == pytest.approx((low + high) / 2, rel=0.05)
    assert len({noise.seed for noise in present}) == len(present)


@pytest.mark.parametrize(
    "settings",
    [
        {"probability": 2.0},
        {"poisson_share": -0.1},
        {"grey_probability": math.nan},
        {"gaussian_sigma": (0.2, 0.1)},
        {"poisson_scale": (-1.0, 1.0)},
        {"poisson_peak": 0.0},
    ],
)
def test_bad_configurations_are_refused(settings):
    with pytest.raises(DrawError, match=next(iter(settings))):
        NoiseConfig(**settings)


@pytest.mark.parametrize("settings", [{"amount": -1.0}, {"seed": -1}, {"peak": 0.0}, {"amount": math.nan}])
def test_bad_noise_is_refused(settings):
    with pytest.raises(DrawError, match="noise needs"):
        dataclasses.replace(POISSON, **settings)
