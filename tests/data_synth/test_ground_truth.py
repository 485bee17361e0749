"""M_gt: zero where it must be, monotone, scaled per data set, and made of both terms."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from data_synth.ground_truth import (
    GroundTruthConfig,
    GroundTruthError,
    feature_difference,
    ground_truth_map,
    pixel_difference,
    resolve_ground_truth,
)

CONFIG = GroundTruthConfig()
WHOLE = np.ones((160, 160), dtype=np.float32)


def blurred(image, sigma=3.0):
    return ndimage.gaussian_filter(image, (sigma, sigma, 0))


def pair_of(a, b):
    return torch.from_numpy(np.stack([a, b])).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize("config", [CONFIG, GroundTruthConfig(floor=0.0), GroundTruthConfig(per_image=True)])
def test_identical_images_give_exactly_zero(crop, config):
    assert not ground_truth_map(crop, crop.copy(), WHOLE, config).any()
    flat = np.full_like(crop, 0.5)
    assert not ground_truth_map(flat, flat, WHOLE, config).any()


def test_exactly_zero_outside_the_mask_though_features_look_further(crop):
    mask = np.zeros_like(WHOLE)
    mask[60:90, 50:100] = 1
    degradation = ground_truth_map(crop, np.where(mask[..., None] > 0, blurred(crop), crop), mask, CONFIG)
    assert not degradation[mask == 0].any()
    assert degradation[mask == 1].mean() > 0.2


@pytest.mark.parametrize("config", [CONFIG, GroundTruthConfig(alpha=1.0, pixel_pooling=2.0), GroundTruthConfig(alpha=0.0)])
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_window_around_the_mask_changes_nothing(china, config, data):
    """Only the mask's surroundings are computed; the result is that of the whole image, whatever box and size, odd or even."""
    height, width = data.draw(st.tuples(st.integers(33, 150), st.integers(33, 150)))
    top, left = data.draw(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)))
    bottom, right = data.draw(st.tuples(st.integers(top + 1, height), st.integers(left + 1, width)))
    gt = china[180 : 180 + height, 200 : 200 + width].astype(np.float32) / 255
    mask = np.zeros((height, width), dtype=np.float32)
    mask[top:bottom, left:right] = 0.5
    syn = blurred(gt)
    whole = ground_truth_map(gt, syn, np.ones_like(mask), config)
    assert np.allclose(ground_truth_map(gt, syn, mask, config), np.where(mask > 0, whole, 0), atol=2e-5)


def test_empty_mask_gives_zero(crop):
    assert not ground_truth_map(crop, blurred(crop), np.zeros_like(WHOLE), CONFIG).any()


@pytest.mark.parametrize("config", [CONFIG, GroundTruthConfig(alpha=0.0), GroundTruthConfig(alpha=1.0)])
@pytest.mark.parametrize("photo", ["chelsea", "china"])
def test_map_rises_with_severity(request, photo, config):
    """Blur and noise in ten steps each: the mean never falls."""
    gt = request.getfixturevalue(photo)[100:228, 150:278].astype(np.float32) / 255
    noise = np.random.default_rng(0).standard_normal(gt.shape).astype(np.float32)
    ladders = (
        [blurred(gt, sigma) for sigma in np.linspace(0.5, 5, 10)],
        [np.clip(gt + np.float32(sigma) * noise, 0, 1) for sigma in np.linspace(0.01, 0.3, 10)],
    )
    for ladder in ladders:
        means = [float(ground_truth_map(gt, syn, np.ones((128, 128), dtype=np.float32), config).mean()) for syn in ladder]
        assert means == sorted(means)
        assert means[-1] > means[0] + 0.1


def test_both_images_are_treated_alike(crop):
    syn = blurred(crop)
    assert np.allclose(ground_truth_map(crop, syn, WHOLE, CONFIG), ground_truth_map(syn, crop, WHOLE, CONFIG), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 1), st.booleans())
def test_any_images_give_a_map_in_range_and_exactly_zero_outside(seed, alpha, per_image):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(16, 70, size=2)
    gt, syn = rng.uniform(size=(2, height, width, 3)).astype(np.float32) * rng.uniform(0, 1, size=(2, 1, 1, 1)).astype(np.float32)
    mask = np.clip(ndimage.gaussian_filter(rng.standard_normal((height, width)), 3) * 10, 0, 1).astype(np.float32)
    degradation = ground_truth_map(gt, syn, mask, GroundTruthConfig(alpha=alpha, per_image=per_image))
    assert degradation.dtype == np.float32
    assert np.isfinite(degradation).all()
    assert 0 <= degradation.min() <= degradation.max() <= 1
    assert not degradation[mask == 0].any()


def test_scale_is_fixed_not_per_image(crop):
    slight, gross = (ground_truth_map(crop, blurred(crop, sigma), WHOLE, CONFIG) for sigma in (0.6, 4.0))
    assert slight.mean() < 0.4 * gross.mean()
    stretched = ground_truth_map(crop, blurred(crop, 0.6), WHOLE, dataclasses.replace(CONFIG, per_image=True))
    assert stretched.max() == pytest.approx(1.0, abs=1e-4)


def test_an_invisible_difference_is_below_the_floor(crop):
    nudged = np.clip(crop + np.float32(0.5 / 255), 0, 1)
    assert not ground_truth_map(crop, nudged, WHOLE, CONFIG).any()


def test_gross_artefact_reaches_one_and_range_holds(crop):
    noise = np.random.default_rng(0).uniform(size=crop.shape).astype(np.float32)
    degradation = ground_truth_map(crop, noise, WHOLE, CONFIG)
    assert np.quantile(degradation, 0.5) == 1.0
    assert 0 <= degradation.min() <= degradation.max() <= 1
    assert degradation.dtype == np.float32


def test_alpha_mixes_both_terms(crop):
    """At α = 1 only pixels count: with floor 0 the map is the pooled L1 by the closed form."""
    syn = blurred(crop, 1.0)
    pure = GroundTruthConfig(alpha=1.0, pixel_gain=1.0, floor=0.0, scale=1.0, pixel_pooling=0.0)
    expected = np.abs(crop - syn).mean(axis=-1)
    assert np.allclose(ground_truth_map(crop, syn, WHOLE, pure), expected, atol=1e-6)
    features = ground_truth_map(crop, syn, WHOLE, dataclasses.replace(pure, alpha=0.0))
    mixed = ground_truth_map(crop, syn, WHOLE, dataclasses.replace(pure, alpha=0.25))
    assert np.allclose(mixed, 0.25 * expected + 0.75 * features, atol=1e-5)


def test_features_see_structure_that_pixels_hardly_do(crop):
    """A texture gone and a brightness offset of equal L1: features mark the texture, not the offset."""
    rng = np.random.default_rng(0)
    textured = np.full_like(crop, 0.5) + 0.05 * np.sign(rng.standard_normal((160, 160, 1))).astype(np.float32)
    without, brighter = np.full_like(crop, 0.5), textured + np.float32(0.05)
    pixel = [float(pixel_difference(pair_of(textured, other), CONFIG).mean()) for other in (without, brighter)]
    feature = [float(feature_difference(pair_of(textured, other), CONFIG).mean()) for other in (without, brighter)]
    assert pixel[0] == pytest.approx(pixel[1], rel=0.1)
    assert feature[0] > 0.1
    assert feature[1] < 0.02 * feature[0]


def test_saturated_colour_does_not_drown_texture(crop):
    """The same loss of texture counts alike on grey and on orange ground."""
    texture = 0.05 * np.sin(np.arange(160) * 1.2, dtype=np.float32)[None, :, None]

    def loss(colour):
        ground = np.broadcast_to(np.array(colour, dtype=np.float32), (160, 160, 3))
        return float(feature_difference(pair_of(ground + texture, ground), CONFIG).mean())

    assert loss((0.8, 0.5, 0.2)) == pytest.approx(loss((0.5, 0.5, 0.5)), rel=0.1)


def test_gains_scale_their_terms(crop):
    syn = blurred(crop, 0.6)
    base = GroundTruthConfig(alpha=0.0, floor=0.0, scale=1.0)
    once = ground_truth_map(crop, syn, WHOLE, base)
    assert once.max() < 0.5
    assert np.allclose(ground_truth_map(crop, syn, WHOLE, dataclasses.replace(base, feature_gain=2.0)), 2 * once, atol=1e-6)


def test_settings_survive_json():
    config = GroundTruthConfig(features="dinov3:base", feature_gain=3.5, feature_scales=(1.0, 2.0))
    read = json.loads(json.dumps(dataclasses.asdict(config)))
    assert GroundTruthConfig(**{**read, "feature_scales": tuple(read["feature_scales"])}) == config


def test_nothing_is_left_open_once_resolved():
    resolved = resolve_ground_truth(CONFIG)
    assert resolved.config == dataclasses.replace(CONFIG, feature_gain=1.0)
    assert resolve_ground_truth(resolved.config).config == resolved.config
    assert resolved.features.name == "weight-free"


def test_sizes_must_agree(crop):
    with pytest.raises(GroundTruthError, match="one size"):
        ground_truth_map(crop, crop[:80], WHOLE, CONFIG)


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 1.1},
        {"floor": 0.5, "scale": 0.4},
        {"floor": -0.1},
        {"feature_constant": 0.0},
        {"colour_share": -0.1},
        {"pixel_gain": 0.0},
        {"feature_gain": float("nan")},
        {"feature_shifts": 0},
        {"pixel_pooling": -1.0},
        {"feature_scales": ()},
    ],
)
def test_settings_are_checked_when_built(wrong):
    with pytest.raises(GroundTruthError, match="got"):
        GroundTruthConfig(**wrong)
