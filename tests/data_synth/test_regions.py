"""Masks: area and feather as drawn, never empty, replayed exactly."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_synth.regions import SHAPES, MaskConfig, MaskRecipe, RegionError, render_mask, sample_mask

SIZE = (96, 80)
PHOTO = np.random.default_rng(0).uniform(size=(*SIZE, 3)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_area_is_what_the_recipe_says(seed):
    recipe = sample_mask(np.random.default_rng(seed), MaskConfig())
    assert 0.005 <= recipe.area <= 0.6
    assert 0 <= recipe.feather <= 6
    mask = render_mask(recipe, PHOTO)
    assert mask.dtype == np.float32
    assert mask.shape == SIZE
    assert 0 <= mask.min() <= mask.max() == 1
    full = np.count_nonzero(mask == 1) / mask.size
    if recipe.shape == "superpixels":  # whole segments where they come near enough
        assert 0.75 * recipe.area - 1 / mask.size <= full <= 1.33 * recipe.area + 1 / mask.size
    else:
        assert full == pytest.approx(recipe.area, abs=1 / mask.size)
    assert np.array_equal(mask, render_mask(recipe, PHOTO))


def test_superpixels_come_near_their_area_on_a_photo(crop):
    ratios = []
    for seed in range(12):
        area = float(np.exp(np.random.default_rng(seed).uniform(*np.log((0.01, 0.6)))))
        ratios.append(render_mask(MaskRecipe("superpixels", area, 0.0, 1, seed), crop).mean() / area)
    assert 0.74 < min(ratios) <= max(ratios) < 1.34
    assert sum(abs(ratio - 1) > 1e-3 for ratio in ratios) >= 6  # most are whole segments, not cut


def test_superpixels_follow_edges(crop):
    """Inside a segment colours vary less than inside a blob of that size."""

    def spread(shape):
        inside = [crop[render_mask(MaskRecipe(shape, 0.02, 0.0, 1, seed), crop) == 1] for seed in range(20)]
        return np.mean([pixels.std(axis=0).mean() for pixels in inside])

    assert spread("superpixels") < spread("blob")


@pytest.mark.parametrize("shape", SHAPES)
def test_feather_is_a_ramp_of_its_width_outside(shape):
    hard = MaskRecipe(shape, 0.1, 0.0, 2, 5)
    soft = dataclasses.replace(hard, feather=4.0)
    inside, ramp = render_mask(hard, PHOTO), render_mask(soft, PHOTO)
    assert set(np.unique(inside)) == {0.0, 1.0}
    assert np.array_equal(ramp == 1, inside == 1)
    from scipy.ndimage import distance_transform_edt

    distance = distance_transform_edt(inside == 0)
    assert (ramp[distance >= 5] == 0).all()
    assert (ramp[(distance > 0) & (distance < 4.9)] > 0).all()
    assert 0 < ramp[distance == 2].mean() < ramp[distance == 1].mean() < 1


def test_several_pieces_and_all_shapes_are_drawn():
    rng = np.random.default_rng(0)
    drawn = [sample_mask(rng, MaskConfig()) for _ in range(200)]
    assert {recipe.shape for recipe in drawn} == set(SHAPES)
    assert {recipe.pieces for recipe in drawn} == {1, 2, 3}
    areas = np.log([recipe.area for recipe in drawn])
    assert np.mean(areas) == pytest.approx(np.mean(np.log((0.005, 0.6))), abs=0.3)  # log-uniform


@pytest.mark.parametrize("area", [0.0, 1e-6, 1.5])
def test_an_empty_mask_is_an_error(area):
    with pytest.raises(RegionError, match="must cover"):
        render_mask(MaskRecipe("box", area, 0.0, 1, 0), PHOTO)
