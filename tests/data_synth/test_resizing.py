"""Resizing against closed forms, and drawn as often as configured."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_synth.degradations.resizing import (
    INTERPOLATIONS,
    InterpolationConfig,
    Resize,
    ResizeConfig,
    ResizeStyle,
    resize_image,
    resized_size,
    sample_resize,
    sample_style,
)
from data_synth.draws import DrawError

DRAWS = 4000


def near(count, probability, draws=DRAWS):
    """Within four standard deviations of a binomial."""
    return abs(count - draws * probability) <= 4 * math.sqrt(draws * probability * (1 - probability))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(13, 40), (57, 90), (160, 160), (1, 1)])
def test_constants_stay_and_sizes_are_met(interpolation, antialias, size):
    flat = np.full((40, 60, 3), 0.25, dtype=np.float32)
    resized = resize_image(flat, size, interpolation, antialias=antialias)
    assert resized.shape == (*size, 3)
    assert resized.dtype == np.float32
    assert np.allclose(resized, 0.25, atol=1e-6)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("antialias", [True, False])
def test_the_same_size_is_the_same_image(interpolation, antialias, crop):
    assert np.allclose(resize_image(crop, crop.shape[:2], interpolation, antialias=antialias), crop, atol=1e-6)


def test_area_by_a_whole_factor_is_the_block_mean(crop):
    blocks = crop.astype(np.float64).reshape(40, 4, 40, 4, 3).mean(axis=(1, 3))
    assert np.allclose(resize_image(crop, (40, 40), "area"), blocks, atol=1e-6)


SIDES = st.integers(8, 200)


@given(before=SIDES, after=SIDES)
def test_area_weighs_by_overlap_at_any_ratio(before, after):
    """The oracle repeats each pixel until all borders are whole, and takes block means."""
    line = np.random.default_rng(before).random(before)
    fine = math.lcm(before, after)
    expected = line.repeat(fine // before).reshape(after, -1).mean(axis=1)
    image = np.repeat(line.astype(np.float32)[:, None, None], 3, axis=2)
    tall, wide = resize_image(image, (after, 1), "area"), resize_image(image.swapaxes(0, 1), (1, after), "area")
    assert np.allclose(tall[:, 0, 0], expected, atol=1e-6) and np.array_equal(tall[:, 0], wide[0])


@pytest.mark.parametrize(("before", "after"), [(65, 64), (64, 65), (63, 32), (100, 37), (256, 97), (256, 255), (50, 67)])
@pytest.mark.parametrize("place", [0.3, 0.43, 0.5, 0.71])
def test_area_keeps_content_in_its_place_and_the_mean(before, after, place):
    """The centroid of a small blob, in input px."""
    centre, spread = place * before, max(1.5, 0.8 * before / after)
    profile = np.exp(-0.5 * ((np.arange(before) + 0.5 - centre) / spread) ** 2)
    image = np.repeat(np.outer(profile, profile).astype(np.float32)[..., None], 3, axis=2)
    resized = resize_image(image, (after, after), "area").astype(np.float64)
    positions = (np.arange(after) + 0.5) * before / after
    for axis in (0, 1):
        marginal = resized[..., 1].sum(axis=1 - axis)
        assert abs((marginal * positions).sum() / marginal.sum() - centre) < 0.05
    assert resized.mean() == pytest.approx(image.astype(np.float64).mean(), rel=1e-5)


def test_bilinear_without_antialiasing_looks_at_the_middle_pixels_alone(crop):
    middle = crop.astype(np.float64).reshape(40, 4, 40, 4, 3)[:, 1:3, :, 1:3].mean(axis=(1, 3))
    assert np.allclose(resize_image(crop, (40, 40), "bilinear", antialias=False), middle, atol=1e-6)
    assert not np.allclose(resize_image(crop, (40, 40), "bilinear"), middle, atol=0.05)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_antialiasing_removes_what_the_small_image_cannot_hold(interpolation):
    stripes = np.zeros((64, 64, 3), dtype=np.float32)
    stripes[:, ::3] = 1
    clean, aliased = (resize_image(stripes, (16, 16), interpolation, antialias=flag) for flag in (True, False))
    assert clean[4:-4, 4:-4].std() < 0.2 * aliased[4:-4, 4:-4].std()


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_enlarging_shifts_nothing(interpolation):
    """A ramp stays the same ramp on half-pixel centres."""
    ramp = np.repeat(np.linspace(0, 1, 32, dtype=np.float32)[None, :, None], 3, axis=2).repeat(8, axis=0)
    wide = resize_image(ramp, (8, 128), interpolation)[4, 16:-16, 0]
    expected = ((np.arange(128) + 0.5) / 4 - 0.5) / 31
    assert abs(np.mean(wide - expected[16:-16])) < 1e-4


@pytest.mark.parametrize("config", [ResizeConfig(), ResizeConfig((0.3, 0.4, 0.3), (0.3, 1.2), of="lr", floor=0.0)])
def test_directions_come_as_often_as_configured(config):
    rng = np.random.default_rng(0)
    unit = 4 if config.of == "lr" else 1
    factors = np.array([sample_resize(rng, config, 4).factor * unit for _ in range(DRAWS)])
    for count, probability in zip((factors > 1, factors < 1, factors == 1), config.probabilities, strict=True):
        assert near(int(count.sum()), probability)
    low, high = config.factor
    assert low <= factors.min() < low + 0.02 and high - 0.02 < factors.max() <= high
    assert factors[factors < 1].mean() == pytest.approx((low + 1) / 2, abs=0.02)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("of", ["hr", "lr"])
@pytest.mark.parametrize("floor", [0.5, 1.0])
def test_no_stage_leaves_less_than_the_floor(scale, of, floor):
    rng = np.random.default_rng(0)
    config = ResizeConfig((0.0, 1.0, 0.0), (0.1, 1.0), of=of, floor=floor)
    factors = [sample_resize(rng, config, scale).factor for _ in range(500)]
    assert min(factors) == floor / scale


def test_styles_come_as_often_as_configured():
    rng = np.random.default_rng(0)
    config = InterpolationConfig(antialias_probability=0.3)
    styles = [sample_style(rng, config) for _ in range(DRAWS)]
    kinds = Counter(style.interpolation for style in styles)
    assert all(near(kinds[kind], 1 / 3) for kind in INTERPOLATIONS)
    assert near(sum(style.antialias for style in styles), 0.3)


def test_sides_are_rounded_and_never_vanish():
    assert resized_size((256, 100), 0.15) == (38, 15)
    assert resized_size((4, 4), 0.05) == (1, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probabilities": (0.5, 0.5, 0.5)}, "sum to 1"),
        ({"factor": (1.5, 0.15)}, "low <= high"),
        ({"factor": (0.0, 1.0)}, "factor must lie"),
        ({"factor": (0.2, 0.9)}, "must hold 1"),
        ({"floor": 1.5}, "floor"),
    ],
)
def test_bad_configurations_are_refused(settings, message):
    with pytest.raises(DrawError, match=message):
        ResizeConfig(**settings)


@pytest.mark.parametrize("settings", [{"kinds": ()}, {"kinds": ("lanczos",)}, {"antialias_probability": 2.0}])
def test_bad_interpolations_are_refused(settings):
    with pytest.raises(DrawError):
        InterpolationConfig(**settings)


def test_a_resize_to_nothing_is_refused():
    with pytest.raises(DrawError, match="factor"):
        Resize(0.0, ResizeStyle("area", antialias=False))
