"""Recipes: JSON and back bit for bit, exact replay, and samples that keep the method's identities."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_synth.recipe import (
    ModelCall,
    Recipe,
    RecipeConfig,
    RecipeError,
    apply_recipe,
    crop_gt,
    make_lr,
    sample_recipe,
    swap_region,
)
from data_synth.schema.errors import SchemaError

MODELS = {"a": "1", "b": "2"}
CONFIG = RecipeConfig(crop=96)


def draw(seed, config=CONFIG, models=None, size=(300, 451)):
    return sample_recipe(np.random.default_rng(seed), "sample:chelsea", size, config, models)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**63))
def test_json_round_trip_is_exact(seed):
    recipe = draw(seed, models=MODELS)
    text = recipe.to_json()
    assert Recipe.from_json(text) == recipe
    assert Recipe.from_json(text).to_json() == text


@pytest.mark.parametrize("text", ["", "{}", '{"source_id": 3}', "[1"])
def test_what_is_not_a_recipe_is_refused(text):
    with pytest.raises(SchemaError, match="recipe"):
        Recipe.from_json(text)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_replay_is_exact_and_identities_hold(seed, chelsea):
    recipe = draw(seed)
    sample = apply_recipe(recipe, chelsea)
    again = apply_recipe(Recipe.from_json(recipe.to_json()), chelsea)
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
    sample = apply_recipe(recipe, chelsea)
    assert np.array_equal(sample.syn, sample.gt)
    assert not sample.map.any()
    assert not np.array_equal(sample.sr, sample.gt)
    assert recipe.origin == "clean"


def test_sr_output_is_what_gets_swapped_in(chelsea):
    config = dataclasses.replace(CONFIG, model_share=1.0, artefact_on_model_share=0.0, clean_share=0.0)
    recipe = draw(0, config, MODELS)
    assert recipe.model is not None
    output = np.full((96, 96, 3), 0.25, dtype=np.float32)
    sample = apply_recipe(recipe, chelsea, output)
    assert (sample.sr == 64).all()
    assert (sample.syn[sample.mask == 1] == 64).all()
    assert recipe.origin == "model"


def test_flip_mirrors_the_crop(chelsea):
    recipe = dataclasses.replace(draw(0), flip=False)
    assert np.array_equal(crop_gt(dataclasses.replace(recipe, flip=True), chelsea), crop_gt(recipe, chelsea)[:, ::-1])
    assert np.array_equal(crop_gt(recipe, chelsea)[0, 0], chelsea[recipe.top, recipe.left])


def test_shares_are_those_of_the_config():
    counts = Counter(draw(seed, models=MODELS).origin for seed in range(600))
    assert counts["clean"] / 600 == pytest.approx(0.05, abs=0.03)
    assert (counts["model"] + counts["model+artefact"]) / 600 == pytest.approx(0.95 * 0.5, abs=0.06)
    assert counts["model+artefact"] / 600 == pytest.approx(0.95 * 0.5 * 0.3, abs=0.05)
    assert {draw(seed, models=MODELS).model for seed in range(50)} > {None}
    assert all(draw(seed).model is None for seed in range(50))


def test_lr_is_what_the_model_is_given(chelsea):
    recipe = draw(1)
    assert np.array_equal(make_lr(recipe, crop_gt(recipe, chelsea)), apply_recipe(recipe, chelsea).lr)


def test_wrong_calls_are_named(chelsea):
    recipe = draw(1)
    with pytest.raises(RecipeError, match="SR output expected from None, got one"):
        apply_recipe(recipe, chelsea, np.zeros((96, 96, 3), dtype=np.float32))
    called = dataclasses.replace(recipe, model=ModelCall("a", "1", 0))
    with pytest.raises(RecipeError, match="got none"):
        apply_recipe(called, chelsea)
    with pytest.raises(RecipeError, match=r"must be \(96, 96, 3\), got \(24, 24, 3\)"):
        apply_recipe(called, chelsea, np.zeros((24, 24, 3), dtype=np.float32))
    with pytest.raises(RecipeError, match="another photo"):
        apply_recipe(recipe, chelsea[:50])
    with pytest.raises(RecipeError, match="at least 96 px on each side, got 451x90"):
        draw(0, size=(90, 451))


@pytest.mark.parametrize("wrong", [{"crop": 100}, {"crop": 0}, {"clean_share": 1.5}, {"kinds": ()}, {"max_artefacts": 0}])
def test_settings_are_checked_when_built(wrong):
    with pytest.raises(RecipeError, match="got"):
        RecipeConfig(**wrong)
