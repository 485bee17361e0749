"""Blind degradation: sizes, replay, and that each step does something."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data_synth.degradations import DegradationConfig, degrade, gaussian_blur, jpeg_round_trip, resize_image, sample_degradation

CONFIGS = {"blind": DegradationConfig(), "light": DegradationConfig.light(), "x2": DegradationConfig(scale=2)}


@pytest.mark.parametrize("name", CONFIGS)
def test_replay_is_exact_and_of_the_right_size(name, crop):
    config = CONFIGS[name]
    for seed in range(5):
        drawn = sample_degradation(np.random.default_rng(seed), config)
        assert drawn == sample_degradation(np.random.default_rng(seed), config)
        lr = degrade(crop, drawn)
        assert lr.shape == (160 // config.scale, 160 // config.scale, 3)
        assert lr.dtype == np.float32
        assert 0 <= lr.min() <= lr.max() <= 1
        assert np.array_equal(lr, degrade(crop, drawn))


def test_output_is_on_8_bit_levels(crop):
    lr = degrade(crop, sample_degradation(np.random.default_rng(0), DegradationConfig()))
    assert np.array_equal((np.rint(lr * 255) / 255).astype(np.float32), lr)


def test_different_seeds_differ_and_light_is_nearer(crop):
    small = resize_image(crop, (40, 40), "area")

    def distance(config, seed):
        return float(np.abs(degrade(crop, sample_degradation(np.random.default_rng(seed), config)) - small).mean())

    blind = [distance(DegradationConfig(), seed) for seed in range(8)]
    light = [distance(DegradationConfig.light(), seed) for seed in range(8)]
    assert len(set(blind)) == 8
    assert np.median(light) < np.median(blind)


def test_noise_seed_decides_the_noise(crop):
    noisy = dataclasses.replace(DegradationConfig.light().stages[0], noise_probability=1.0, noise_sigma=(0.05, 0.05))
    drawn = sample_degradation(np.random.default_rng(0), DegradationConfig(stages=(noisy,)))
    other = dataclasses.replace(drawn, stages=(dataclasses.replace(drawn.stages[0], noise_seed=1),))
    assert not np.array_equal(degrade(crop, drawn), degrade(crop, other))


def test_size_must_divide(crop):
    with pytest.raises(ValueError, match=r"multiples of 4, got 160x158"):
        degrade(crop[:158], sample_degradation(np.random.default_rng(0), DegradationConfig()))


def test_blur_keeps_constants_and_turns_with_its_angle():
    flat = np.full((32, 32, 3), 0.25, dtype=np.float32)
    assert np.allclose(gaussian_blur(flat, (2.0, 0.5), 0.3), 0.25, atol=1e-5)
    dot = np.zeros((33, 33, 3), dtype=np.float32)
    dot[16, 16] = 1
    wide = gaussian_blur(dot, (3.0, 0.6), 0.0)[..., 0]
    tall = gaussian_blur(dot, (3.0, 0.6), np.pi / 2)[..., 0]
    assert wide[16, 20] > 10 * wide[20, 16]
    assert np.allclose(wide, tall.T, atol=1e-5)


def test_jpeg_is_worse_at_lower_quality(crop):
    errors = [float(np.abs(jpeg_round_trip(crop, quality) - crop).mean()) for quality in (95, 60, 20, 5)]
    assert errors == sorted(errors)
    assert errors[0] > 0
