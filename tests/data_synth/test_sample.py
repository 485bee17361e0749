"""Samples: exact replay, and the method's identities."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_synth.back_projection import BackProjection, BackProjectionError, back_project
from data_synth.degradations import resize_image
from data_synth.explain import explain_sheet, explained_panels
from data_synth.ground_truth import GroundTruthConfig
from data_synth.images import to_8bit, to_float
from data_synth.recipe import ModelCall, PhotoSize, Recipe, RecipeConfig, RecipeError, sample_recipe
from data_synth.sample import Ingredients, apply_recipe, crop_photo, make_lr, sr_steps, swap_region
from data_synth.sr_models.protocol import Crop

CONFIG = RecipeConfig(crop=96, back_projection_share=0.0)


def draw(seed, config=CONFIG):
    return sample_recipe(np.random.default_rng(seed), PhotoSize("sample:chelsea", 300, 451), config)


def ingredients_of(recipe, photo, **more):
    gt = crop_photo(recipe.crop, photo)
    return Ingredients(gt=gt, lr=make_lr(recipe, gt), **more)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_replay_is_exact_and_identities_hold(seed, chelsea):
    recipe = draw(seed)
    ingredients = ingredients_of(recipe, chelsea)
    sample, again = apply_recipe(recipe, ingredients), apply_recipe(Recipe.from_json(recipe.to_json()), ingredients)
    for name in ("gt", "lr", "sr", "syn", "mask", "map"):
        assert np.array_equal(getattr(sample, name), getattr(again, name)), name
    assert sample.gt.shape == sample.sr.shape == sample.syn.shape == (96, 96, 3)
    assert sample.lr.shape == (24, 24, 3)
    outside = sample.mask == 0
    assert np.array_equal(sample.syn[outside], sample.gt[outside])
    assert not sample.map[outside].any()
    if recipe.kind == "clean":
        assert np.array_equal(sample.syn, sample.gt)
        assert not sample.map.any()
    else:
        full = sample.mask == 1
        assert np.array_equal(sample.syn[full], sample.sr[full])


def test_blend_is_the_papers_equation():
    gt, sr = np.full((1, 3, 3), 100, dtype=np.uint8), np.full((1, 3, 3), 200, dtype=np.uint8)
    mask = np.array([[0.0, 0.25, 1.0]], dtype=np.float32)
    assert swap_region(gt, sr, mask)[0, :, 0].tolist() == [100, 125, 200]


def test_clean_swap_is_clean_though_sr_is_broken(chelsea):
    recipe = dataclasses.replace(draw(3), kind="clean")
    sample = apply_recipe(recipe, ingredients_of(recipe, chelsea))
    assert np.array_equal(sample.syn, sample.gt)
    assert not sample.map.any()
    assert not np.array_equal(sample.sr, sample.gt)
    assert recipe.origin == "clean"


def test_sr_output_is_what_gets_swapped_in(chelsea):
    recipe = dataclasses.replace(draw(0), kind="swap", model=ModelCall("a", "1", "gan", 0, {}), artefacts=())
    sample = apply_recipe(recipe, ingredients_of(recipe, chelsea, sr_output=np.full((96, 96, 3), 64, dtype=np.uint8)))
    assert (sample.sr == 64).all()
    assert (sample.syn[sample.mask == 1] == 64).all()
    assert recipe.origin == "model"


def test_crop_is_cut_and_mirrored(chelsea):
    crop = Crop("sample:chelsea", 7, 9, 96)
    assert np.array_equal(crop_photo(crop, chelsea), chelsea[7:103, 9:105])
    assert np.array_equal(crop_photo(dataclasses.replace(crop, flip=True), chelsea), chelsea[7:103, 9:105][:, ::-1])
    with pytest.raises(RecipeError, match="another photo"):
        crop_photo(crop, chelsea[:50])


def test_missing_and_superfluous_ingredients_are_named(chelsea):
    recipe = draw(1)
    gt = crop_photo(recipe.crop, chelsea)
    called = dataclasses.replace(recipe, model=ModelCall("a", "1", "gan", 0, {}))
    with pytest.raises(RecipeError, match=r"SR output must be absent, got \(96, 96, 3\)"):
        apply_recipe(recipe, ingredients_of(recipe, chelsea, sr_output=gt))
    with pytest.raises(RecipeError, match=r"SR output must be \(96, 96, 3\), got none"):
        apply_recipe(called, ingredients_of(called, chelsea))
    with pytest.raises(RecipeError, match=r"must be \(96, 96, 3\), got \(24, 24, 3\)"):
        apply_recipe(called, ingredients_of(called, chelsea, sr_output=gt[:24, :24]))
    with pytest.raises(RecipeError, match="donor must be absent"):
        apply_recipe(recipe, ingredients_of(recipe, chelsea, donor=gt))


def test_eight_bits_and_back():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    assert np.array_equal(to_8bit(to_float(levels)), levels)


# -- back-projection ----------------------------------------------------------------------------------------------------


def test_back_projection_makes_an_image_agree_with_its_input(crop):
    """The residual shrinks from step to step, and detail that the input cannot see is kept."""
    lr = np.clip(resize_image(crop, (40, 40), "bicubic"), 0, 1)
    broken = np.clip(crop + 0.1 * np.sin(np.arange(160, dtype=np.float32) * 2.6)[None, :, None] + 0.1, 0, 1).astype(np.float32)
    residuals = []
    for iterations in (1, 2, 4, 8):
        projected = back_project(broken, lr, BackProjection(iterations))
        residuals.append(float(np.abs(resize_image(projected, (40, 40), "bicubic") - lr).mean()))
    before = float(np.abs(resize_image(broken, (40, 40), "bicubic") - lr).mean())
    assert all(later < earlier for earlier, later in zip([before, *residuals], residuals, strict=False))
    assert residuals[-1] < 0.1 * before
    assert np.abs(projected - crop).mean() > 0.03


def test_an_image_that_agrees_already_stays(crop):
    lr = resize_image(crop, (40, 40), "bicubic")
    assert np.allclose(back_project(crop, lr, BackProjection(3)), crop, atol=1e-5)
    with pytest.raises(BackProjectionError, match="at least 1, got 0"):
        BackProjection(0)


# -- explaining ---------------------------------------------------------------------------------------------------------


def test_every_step_is_shown(chelsea):
    recipe = dataclasses.replace(
        draw(5), kind="swap", model=ModelCall("net", "1", "gan", 0, {}), back_projection=BackProjection(2)
    )
    gt = crop_photo(recipe.crop, chelsea)
    ingredients = ingredients_of(recipe, chelsea, sr_output=gt)
    captions = [caption for caption, _ in explained_panels(recipe, ingredients, GroundTruthConfig())]
    steps = [step.label for step in sr_steps(recipe, ingredients)]
    assert steps == ["net", *(f"{a.kind} {a.severity:.2f}" for a in recipe.artefacts), "back-projected 2×"]
    assert [caption for caption in captions if caption.startswith("sr: ")] == [f"sr: {label}" for label in steps]
    assert captions[0] == "gt: sample:chelsea" and captions[-1].startswith("map: ")
    sheet = explain_sheet(recipe, ingredients, GroundTruthConfig())
    assert sheet.width == 4 * (96 + 6) and np.array_equal(np.asarray(sheet)[16 : 16 + 96, :96], gt)
