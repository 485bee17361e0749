"""Procedural artefacts: pure, replayed exactly, worse with severity, and every kind in one family and one table."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from data_synth.artefact_kinds import DRAWS, KINDS
from data_synth.artefacts import (
    ARTEFACT_KINDS,
    DONOR_KINDS,
    FAMILIES,
    Artefact,
    apply_artefact,
    artefact_of_severity,
    family_of,
    sample_artefact,
)
from data_synth.gallery import artefact_gallery
from data_synth.ground_truth import GroundTruthConfig, ground_truth_map
from data_synth.photos import Photo
from data_synth.recipe import RecipeConfig


@pytest.fixture(scope="module")
def photographs(china, chelsea):
    """Real photographs of much and of little detail, 128×128, float32 in [0, 1]."""
    corners = {"china": (china, 180, 200), "chelsea": (chelsea, 40, 110), "coffee": (Photo("sample:coffee").read(), 150, 250)}
    return {
        name: np.ascontiguousarray(photo[top : top + 128, left : left + 128]).astype(np.float32) / 255
        for name, (photo, top, left) in corners.items()
    }


@pytest.mark.parametrize("kind", ARTEFACT_KINDS)
def test_pure_and_replayed_exactly(kind, crop):
    before = crop.copy()
    artefact = artefact_of_severity(np.random.default_rng(7), kind, 0.6)
    result = apply_artefact(artefact, crop)
    assert result.shape == crop.shape
    assert result.dtype == np.float32
    assert 0 <= result.min() <= result.max() <= 1
    assert not np.array_equal(result, crop)
    assert np.array_equal(crop, before)
    from_disk = Artefact(**json.loads(json.dumps(asdict(artefact))))
    assert np.array_equal(apply_artefact(from_disk, crop), result)


@pytest.mark.parametrize("kind", ARTEFACT_KINDS)
def test_map_rises_with_severity_on_every_photo(kind, photographs):
    whole = np.ones((128, 128), dtype=np.float32)
    severities = np.linspace(0, 1, 10)
    for name, photo in photographs.items():
        means = []
        for severity in severities:
            broken = apply_artefact(artefact_of_severity(np.random.default_rng(3), kind, severity), photo)
            means.append(float(ground_truth_map(photo, broken, whole, GroundTruthConfig()).mean()))
        assert spearmanr(severities, means).statistic >= 0.95, f"{name}: {np.round(means, 4)}"
        assert means[-1] > 2 * means[0]
        if name == "china":  # detail and colour enough for any of them to show
            assert means[-1] > 0.15


@pytest.mark.parametrize("kind", ARTEFACT_KINDS)
@pytest.mark.parametrize("severity", [0.0, 1.0])
def test_small_oblong_and_flat_images(kind, severity):
    rng = np.random.default_rng(0)
    for size in ((32, 32), (33, 48), (64, 32)):
        textured = rng.uniform(size=(*size, 3)).astype(np.float32)
        for image in (textured, np.zeros_like(textured), np.ones_like(textured)):
            result = apply_artefact(artefact_of_severity(rng, kind, severity), image)
            assert result.shape == image.shape
            assert np.isfinite(result).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([(16, 16), (33, 48), (64, 20)]))
def test_any_drawn_artefact_suits_any_size(seed, size):
    rng = np.random.default_rng(seed)
    image = rng.uniform(size=(*size, 3)).astype(np.float32)
    artefact = sample_artefact(rng)
    result = apply_artefact(artefact, image, rng.uniform(size=image.shape).astype(np.float32))
    assert result.shape == image.shape
    assert np.isfinite(result).all()
    low, high = RecipeConfig().severity
    assert low <= artefact.severity <= high
    assert inspect.signature(sample_artefact).parameters["severity"].default == (low, high)


@pytest.mark.parametrize("kind", ARTEFACT_KINDS)
def test_severity_does_not_change_what_else_is_drawn(kind):
    rngs = [np.random.default_rng(5) for _ in range(2)]
    mild, gross = (artefact_of_severity(rng, kind, severity) for rng, severity in zip(rngs, (0.1, 0.9), strict=True))
    assert mild.seed == gross.seed
    assert mild.params != gross.params
    assert rngs[0].uniform() == rngs[1].uniform()


def test_severity_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\], got 1.5"):
        artefact_of_severity(np.random.default_rng(0), "blur", 1.5)


def test_all_kinds_are_drawn():
    rng = np.random.default_rng(0)
    assert {sample_artefact(rng).kind for _ in range(600)} == set(ARTEFACT_KINDS)
    assert {sample_artefact(rng, kinds=("blur",)).kind for _ in range(10)} == {"blur"}


def test_every_kind_stands_in_the_table_and_in_one_family():
    assert set(KINDS) == set(ARTEFACT_KINDS)
    listed = [kind for kinds in FAMILIES.values() for kind in kinds]
    assert sorted(listed) == sorted(ARTEFACT_KINDS)
    assert all(kind in FAMILIES[family_of(kind)] for kind in ARTEFACT_KINDS)
    assert all(FAMILIES.values())


@pytest.mark.parametrize("kind", ARTEFACT_KINDS)
def test_the_table_names_the_effects_arguments(kind):
    entry = KINDS[kind]
    arguments = set(inspect.signature(entry.effect).parameters) - {"image"}
    expected = set(entry.parameters) | ({"seed"} if entry.seeded else set()) | ({"donor"} if entry.uses_donor else set())
    assert arguments == expected
    assert len(entry.parameters) <= DRAWS
    assert entry.effect.__doc__


def test_only_donor_kinds_look_at_the_donor(crop, chelsea):
    donor = np.ascontiguousarray(chelsea[60:220, 120:280]).astype(np.float32) / 255
    for kind in ARTEFACT_KINDS:
        artefact = artefact_of_severity(np.random.default_rng(1), kind, 0.8)
        alone, helped = apply_artefact(artefact, crop), apply_artefact(artefact, crop, donor)
        assert np.array_equal(alone, helped) == (kind not in DONOR_KINDS)


def test_a_donor_of_another_size_is_refused(crop):
    artefact = artefact_of_severity(np.random.default_rng(1), "look_alike", 0.8)
    with pytest.raises(ValueError, match="donor must have the image's shape"):
        apply_artefact(artefact, crop, crop[:100])


def test_gallery_shows_each_kind_beside_the_photo(crop):
    photo = np.rint(crop * 255).astype(np.uint8)
    sheet = np.asarray(artefact_gallery(photo, kinds=FAMILIES["smoothing"], severities=(0.3, 1.0)))
    rows = len(FAMILIES["smoothing"])
    cell = sheet.shape[0] // rows
    assert sheet.shape[1] >= 3 * 160
    for row in range(rows):
        panels = sheet[row * cell + 14 : row * cell + 174]
        assert np.array_equal(panels[:, :160], photo)
        mild, gross = panels[:, 164:324].astype(int), panels[:, 328:488].astype(int)
        assert 0 < np.abs(mild - photo).mean() < np.abs(gross - photo).mean()
    with pytest.raises(ValueError, match="at least one kind"):
        artefact_gallery(photo, kinds=())
