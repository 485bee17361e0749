"""Masks: area and feather as drawn, never empty, replayed exactly."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from scipy import ndimage

from data_synth.draws import DrawError
from data_synth.regions import SHAPES, MaskConfig, MaskRecipe, RegionError, render_mask, sample_mask
from data_synth.segments import graph_segments
from data_synth.shapes import DRAWN_SHAPES, largest, mixed_potential, shape_potential

SIZE = (96, 80)
PHOTO = np.random.default_rng(0).uniform(size=(*SIZE, 3)).astype(np.float32)
WHOLE = ("superpixels", "graph_segments", "segments")
TILES = np.stack([np.arange(96 * 80).reshape(SIZE) // 80 // 8 * 10 + np.arange(80) // 8 == k for k in range(120)])
"""Segments of 8×8 px that tile an image of `SIZE`."""


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32))
def test_area_is_what_the_recipe_says(seed):
    recipe = sample_mask(np.random.default_rng(seed), MaskConfig(), has_segments=True)
    assert 0.005 <= recipe.area <= 0.6
    assert 0 <= recipe.feather <= 6
    mask = render_mask(recipe, PHOTO, TILES)
    assert mask.dtype == np.float32
    assert mask.shape == SIZE
    assert 0 <= mask.min() <= mask.max() == 1
    full = np.count_nonzero(mask == 1) / mask.size
    if recipe.shape in WHOLE:  # whole segments where they come near enough
        assert 0.73 * recipe.area - 2 / mask.size <= full <= 1.35 * recipe.area + 2 / mask.size
    else:
        assert full == pytest.approx(recipe.area, abs=1 / mask.size)
    assert np.array_equal(mask, render_mask(recipe, PHOTO, TILES))
    assert TypeAdapter(MaskRecipe).validate_json(json.dumps(dataclasses.asdict(recipe))) == recipe


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40), st.data())
def test_the_largest_are_those_a_stable_sort_finds(seed, height, width, data):
    potential = np.random.default_rng(seed).integers(0, 9, (height, width)).astype(np.float32)  # many ties
    count = data.draw(st.integers(1, height * width))
    expected = np.zeros(height * width, dtype=bool)
    expected[np.argsort(-potential, axis=None, kind="stable")[:count]] = True
    assert np.array_equal(largest(potential, count).ravel(), expected)


@pytest.mark.parametrize("shape", ["superpixels", "graph_segments"])
def test_content_comes_near_its_area_on_a_photo(crop, shape):
    ratios = []
    for seed in range(16):
        area = float(np.exp(np.random.default_rng(seed).uniform(*np.log((0.01, 0.6)))))
        ratios.append(render_mask(MaskRecipe(shape, area, 0.0, 1, seed), crop).mean() / area)
    assert 0.74 < min(ratios) <= max(ratios) < 1.34
    assert sum(abs(ratio - 1) > 1e-3 for ratio in ratios) >= 8  # most are whole segments, not cut


@pytest.mark.parametrize("shape", ["superpixels", "graph_segments"])
def test_content_follows_edges(crop, shape):
    """Inside a segment colours vary less than inside a blob of that size."""

    def spread(shape):
        inside = [crop[render_mask(MaskRecipe(shape, 0.02, 0.0, 1, seed), crop) == 1] for seed in range(20)]
        return np.mean([pixels.std(axis=0).mean() for pixels in inside])

    assert spread(shape) < spread("blob")


@pytest.mark.parametrize("size", [(97, 81), (9, 13), (1, 5), (64, 64)])
@pytest.mark.parametrize("shape", SHAPES)
def test_any_size_of_photo(shape, size):
    photo = np.random.default_rng(1).uniform(size=(*size, 3)).astype(np.float32)
    nothing = np.zeros((0, *size), dtype=bool)
    for area in (0.2, 1.0):
        mask = render_mask(MaskRecipe(shape, area, 2.0, 2, 3), photo, nothing)
        assert mask.shape == size
        assert mask.max() == 1
        if area == 1.0 and shape not in WHOLE:
            assert mask.min() == 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", [4.0, 2.5])
def test_feather_is_a_ramp_of_its_width_outside(shape, width):
    hard = MaskRecipe(shape, 0.1, 0.0, 2, 5)
    soft = dataclasses.replace(hard, feather=width)
    inside, ramp = render_mask(hard, PHOTO, TILES), render_mask(soft, PHOTO, TILES)
    assert set(np.unique(inside)) == {0.0, 1.0}
    distance = ndimage.distance_transform_edt(inside == 0)
    assert np.allclose(ramp, np.clip(1 - distance / (width + 1), 0, 1), atol=1e-6)


# -- drawing --


def test_weights_decide_how_often_a_shape_is_drawn():
    rng = np.random.default_rng(0)
    config = MaskConfig(shapes={"blob": 3.0, "box": 1.0, "stroke": 0.0, "segments": 4.0})
    drawn = [sample_mask(rng, config).shape for _ in range(400)]
    assert set(drawn) == {"blob", "box"}
    assert drawn.count("blob") / 400 == pytest.approx(0.75, abs=0.07)
    drawn = [sample_mask(rng, config, has_segments=True).shape for _ in range(400)]
    assert set(drawn) == {"blob", "box", "segments"}
    assert drawn.count("segments") / 400 == pytest.approx(0.5, abs=0.08)
    with pytest.raises(RegionError, match="there is no segmentation model"):
        sample_mask(rng, MaskConfig(shapes={"segments": 1.0}))


def test_all_there_is_to_draw_is_drawn():
    rng = np.random.default_rng(0)
    drawn = [sample_mask(rng, MaskConfig()) for _ in range(400)]
    assert {recipe.shape for recipe in drawn} == set(SHAPES) - {"segments"}
    assert {recipe.pieces for recipe in drawn} == {1, 2, 3}
    assert min(recipe.pieces for recipe in drawn if recipe.shape == "mixed") == 2
    areas = np.log([recipe.area for recipe in drawn])
    assert np.mean(areas) == pytest.approx(np.mean(np.log((0.005, 0.6))), abs=0.2)  # log-uniform
    assert np.std(areas) == pytest.approx(np.log(0.6 / 0.005) / np.sqrt(12), abs=0.15)
    assert np.mean([recipe.feather == 0 for recipe in drawn]) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(
    "broken",
    [
        {"shapes": {"heart": 1.0}},
        {"shapes": {}},
        {"shapes": {"box": 0.0}},
        {"shapes": {"box": -1.0, "blob": 2.0}},
        {"area": (0.0, 0.5)},
        {"area": (0.5, 0.1)},
        {"feather": (-1.0, 2.0)},
        {"hard": 1.5},
        {"pieces": 0},
    ],
)
def test_a_meaningless_config_is_refused(broken):
    with pytest.raises(DrawError):
        MaskConfig(**broken)
    with pytest.raises(ValidationError):
        TypeAdapter(MaskConfig).validate_python(broken)


@pytest.mark.parametrize("area", [0.0, 1e-6, 1.5])
def test_an_empty_mask_is_an_error(area):
    with pytest.raises(RegionError, match="must cover"):
        render_mask(MaskRecipe("box", area, 0.0, 1, 0), PHOTO)


# -- drawn shapes --


def test_sides_of_polygons_are_straight():
    """Along any line the potential bends only where sectors meet, at most once a corner (rasterised: two pixels)."""
    for seed in range(12):
        potential = shape_potential("polygon", np.random.default_rng(seed), (90, 120), 0.05, 1).astype(np.float64)
        for lines in (potential, potential.T):
            bends = np.abs(np.diff(lines, n=2, axis=1)) > 1e-4 * np.abs(lines).max()
            assert bends.sum(axis=1).max() <= 2 * 9
        assert potential.max() <= 0


def test_several_pieces_are_apart_where_there_is_room():
    counts = []
    for seed in range(20):
        mask = render_mask(MaskRecipe("ellipse", 0.02, 0.0, 3, seed), np.zeros((128, 128, 3), dtype=np.float32))
        counts.append(ndimage.label(mask)[1])
    assert max(counts) == 3
    assert np.mean(counts) > 1.5


def test_mixed_masks_hold_several_shapes():
    for seed in range(10):
        potential = mixed_potential(np.random.default_rng(seed), (128, 128), 0.06, 3)
        assert ndimage.label(largest(potential, 983))[1] >= 2


def test_drawn_shapes_do_not_look_at_the_photo():
    other = PHOTO[::-1]
    for shape in (*DRAWN_SHAPES, "mixed"):
        recipe = MaskRecipe(shape, 0.1, 0.0, 2, 8)
        assert np.array_equal(render_mask(recipe, PHOTO), render_mask(recipe, other))


# -- segments of a model --


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0.02, 0.6))
def test_segments_are_taken_whole(seed, area):
    mask = render_mask(MaskRecipe("segments", area, 0.0, 1, seed), PHOTO, TILES) == 1
    share = [(mask & tile).sum() / tile.sum() for tile in TILES]
    assert set(share) == {0.0, 1.0}
    assert abs(mask.sum() - area * mask.size) <= 0.1 * area * mask.size + 64


def test_a_single_object_of_the_right_size_is_the_mask(crop):
    """An object that fits is taken; others, which would take the union away from the area, are not."""
    segments = np.zeros((3, *crop.shape[:2]), dtype=bool)
    segments[0, 20:60, 30:90] = True  # 2400 px
    segments[1] = True
    segments[2, 100:, 100:] = True  # 3600 px
    mask = render_mask(MaskRecipe("segments", 2400 / segments[1].size, 0.0, 1, 0), crop, segments)
    assert np.array_equal(mask == 1, segments[0])


def test_overlapping_segments_count_once():
    segments = np.zeros((2, *SIZE), dtype=bool)
    segments[0, :40], segments[1, 10:50] = True, True
    mask = render_mask(MaskRecipe("segments", 0.52, 0.0, 1, 1), PHOTO, segments)
    assert np.array_equal(mask == 1, segments.any(axis=0))


def test_without_fitting_segments_superpixels_take_their_place(crop):
    recipe = MaskRecipe("segments", 0.1, 3.0, 1, 4)
    expected = render_mask(dataclasses.replace(recipe, shape="superpixels"), crop)
    none = np.zeros((0, *crop.shape[:2]), dtype=bool)
    speck = np.zeros((2, *crop.shape[:2]), dtype=bool)
    speck[0, 5, 5] = True
    for unfit in (none, speck, ~none.any(axis=0)[None]):
        assert np.array_equal(render_mask(recipe, crop, unfit), expected)


def test_segments_must_be_there_and_of_the_photos_size():
    recipe = MaskRecipe("segments", 0.1, 0.0, 1, 0)
    with pytest.raises(RegionError, match="expected K×96×80, got none"):
        render_mask(recipe, PHOTO)
    with pytest.raises(RegionError, match="got K×80×96"):
        render_mask(recipe, PHOTO, TILES.transpose(0, 2, 1))


def test_graph_segments_separate_what_differs():
    photo = np.full((60, 90, 3), 0.2, dtype=np.float32)
    photo[:, 45:] = (0.9, 0.5, 0.1)
    labels = graph_segments(photo, 100.0, 20)
    left, right = np.unique(labels[:, :43]), np.unique(labels[:, 47:])
    assert not set(left) & set(right)
    assert len(left) + len(right) < 8  # and what is alike stays together
