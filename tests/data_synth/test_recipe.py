"""Recipes: JSON and back bit for bit, parts drawn from streams of their own, shares as configured."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_synth.artefacts import DONOR_KINDS, FAMILIES
from data_synth.recipe import OriginMix, PhotoSize, Recipe, RecipeConfig, RecipeError, sample_recipe
from data_synth.regions import MaskConfig
from data_synth.schema.errors import SchemaError
from tests.data_synth.fake_sr import NearestSR

CONFIG = RecipeConfig(crop=96)
PHOTO = PhotoSize("a.png", 300, 451)
OTHER = PhotoSize("b.png", 120, 130)
MODELS = {
    model.name: model
    for model in (NearestSR("a"), NearestSR("b"), NearestSR("c", family="gan"), NearestSR("p", family="perturbed"))
}


def draw(seed, config=CONFIG, models=None, photo=PHOTO, **options):
    return sample_recipe(np.random.default_rng(seed), photo, config, models, find_donor=lambda: OTHER, **options)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**63))
def test_json_round_trip_is_exact(seed):
    recipe = draw(seed, models=MODELS)
    text = recipe.to_json()
    assert Recipe.from_json(text) == recipe
    assert Recipe.from_json(text).to_json() == text


@pytest.mark.parametrize("text", ["", "{}", '{"crop": 3}', "[1"])
def test_what_is_not_a_recipe_is_refused(text):
    with pytest.raises(SchemaError, match="recipe"):
        Recipe.from_json(text)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**63))
def test_other_masks_leave_the_rest_of_a_recipe_as_it_was(seed):
    """So that a rebuild with other masks finds its SR outputs in the cache."""
    other = dataclasses.replace(CONFIG, mask=MaskConfig(shapes={"box": 1.0}, area=(0.3, 0.3), feather=(0, 0)))
    one, two = draw(seed, models=MODELS), draw(seed, other, models=MODELS)
    assert dataclasses.replace(one, mask=two.mask) == two
    assert two.mask.shape == "box" and two.mask.area == pytest.approx(0.3)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**63))
def test_other_artefacts_leave_the_sr_call_as_it_was(seed):
    config = dataclasses.replace(CONFIG, artefact_on_model_share=1.0, kinds=FAMILIES["hallucination"] + FAMILIES["noise"])
    one, two = draw(seed, models=MODELS), draw(seed, config, models=MODELS)
    assert (one.crop, one.degradation, one.model, one.mask) == (two.crop, two.degradation, two.model, two.mask)


def test_shares_are_those_of_the_config():
    config = dataclasses.replace(
        CONFIG, mix=OriginMix(model=0.3, perturbed=0.2, hallucination=0.1, artefact=0.4), clean_share=0.1
    )
    recipes = [draw(seed, config, MODELS) for seed in range(1500)]
    origins = Counter(recipe.origin for recipe in recipes)
    expected = {"clean": 0.1, "model": 0.27, "perturbed": 0.18}
    for origin, share in expected.items():
        assert origins[origin] / 1500 == pytest.approx(share, abs=0.04), origin
    called = [recipe for recipe in recipes if recipe.model]
    plain = Counter(recipe.model.name for recipe in called if recipe.model.family != "perturbed")
    assert plain["c"] / plain.total() == pytest.approx(0.5, abs=0.08)  # families first, then models: a and b share the other half
    assert sum(bool(r.artefacts) for r in called) / len(called) == pytest.approx(config.artefact_on_model_share, abs=0.05)
    assert sum(r.back_projection is not None for r in recipes) / 1500 == pytest.approx(config.back_projection_share, abs=0.04)
    donors = [r.donor for r in recipes if any(a.kind in DONOR_KINDS for a in r.artefacts)]
    assert 0.2 < sum(d is not None for d in donors) / len(donors) < 0.8
    assert all(recipe.donor is None for recipe in recipes if not any(a.kind in DONOR_KINDS for a in recipe.artefacts))


def test_settings_of_a_call_lie_in_the_models_ranges():
    calls = [recipe.model for recipe in (draw(seed, models=MODELS) for seed in range(200)) if recipe.model]
    strengths = [call.settings["strength"] for call in calls]
    assert min(strengths) >= 0.5 and max(strengths) <= 1.5 and np.std(strengths) > 0.1


def test_a_model_is_called_only_for_photos_it_covers():
    ready = NearestSR("ready")
    ready.covers = lambda source_id: source_id == "b.png"
    called = [
        {r.model.name for r in (draw(s, models={"ready": ready}, photo=p) for s in range(80)) if r.model} for p in (PHOTO, OTHER)
    ]
    assert called == [set(), {"ready"}]


def test_families_tell_models_and_artefacts_apart():
    for seed in range(100):
        recipe = draw(seed, models=MODELS)
        known = {*FAMILIES, *(model.family for model in MODELS.values())}
        assert recipe.families and recipe.families <= known
        if recipe.origin == "hallucination":
            assert "hallucination" in recipe.families and recipe.model is None


def test_a_photo_without_any_source_of_defects_is_an_error():
    config = dataclasses.replace(CONFIG, mix=OriginMix(model=1, perturbed=0, hallucination=0, artefact=0))
    with pytest.raises(RecipeError, match="no such model or artefact is at hand"):
        draw(0, config)
    assert draw(0, config, {"a": NearestSR("a")}).model is not None


def test_a_photo_smaller_than_the_crop_is_named():
    with pytest.raises(RecipeError, match=r"a\.png: photo must be at least 96 px on each side, got 451x90"):
        draw(0, photo=PhotoSize("a.png", 90, 451))


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": 100},
        {"crop": 0},
        {"clean_share": 1.5},
        {"kinds": ()},
        {"max_artefacts": 0},
        {"severity": (0.5, 0.2)},
        {"back_projection_iterations": (0, 3)},
    ],
)
def test_settings_are_checked_when_built(wrong):
    with pytest.raises(RecipeError, match="got"):
        RecipeConfig(**wrong)


@pytest.mark.parametrize("wrong", [{"model": -0.1}, {"model": 0, "perturbed": 0, "hallucination": 0, "artefact": 0}])
def test_a_mix_needs_weights(wrong):
    with pytest.raises(RecipeError, match="weights"):
        OriginMix(**wrong)
