"""M_gt: zero where it must be, monotone, scaled per data set, and made of both terms."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage

from data_synth.ground_truth import GroundTruthConfig, GroundTruthError, feature_difference, ground_truth_map, pixel_difference

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


def test_window_around_the_mask_changes_nothing(crop):
    """Only the mask's surroundings are computed; the result is that of the whole image."""
    mask = np.zeros_like(WHOLE)
    mask[70:90, 60:100] = 1
    syn = np.where(mask[..., None] > 0, blurred(crop), crop)
    whole = ground_truth_map(crop, syn, WHOLE, CONFIG)
    windowed = ground_truth_map(crop, syn, mask, CONFIG)
    assert np.allclose(windowed[mask > 0], whole[mask > 0], atol=1e-5)


def test_empty_mask_gives_zero(crop):
    assert not ground_truth_map(crop, blurred(crop), np.zeros_like(WHOLE), CONFIG).any()


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


def test_sizes_must_agree(crop):
    with pytest.raises(GroundTruthError, match="one size"):
        ground_truth_map(crop, crop[:80], WHOLE, CONFIG)


@pytest.mark.parametrize(
    "wrong", [{"alpha": 1.1}, {"floor": 0.5, "scale": 0.4}, {"feature_constant": 0.0}, {"colour_share": -0.1}, {"floor": -0.1}]
)
def test_settings_are_checked_when_built(wrong):
    with pytest.raises(GroundTruthError, match="got"):
        GroundTruthConfig(**wrong)
