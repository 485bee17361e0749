"""Procedural artefacts: pure, replayed exactly, worse with severity, and each with the mark it is named after."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.stats import spearmanr

from data_synth import artefact_effects as effects
from data_synth.artefacts import ARTEFACT_KINDS, Artefact, apply_artefact, artefact_of_severity, sample_artefact
from data_synth.ground_truth import GroundTruthConfig, ground_truth_map

WHOLE = np.ones((160, 160), dtype=np.float32)


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
def test_map_rises_with_severity(kind, crop):
    severities = np.linspace(0, 1, 10)
    means = []
    for severity in severities:
        broken = apply_artefact(artefact_of_severity(np.random.default_rng(3), kind, severity), crop)
        means.append(float(ground_truth_map(crop, broken, WHOLE, GroundTruthConfig()).mean()))
    assert spearmanr(severities, means).statistic >= 0.95
    assert means[-1] > 0.15
    assert means[-1] > 2 * means[0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([(16, 16), (33, 48), (64, 20)]))
def test_any_drawn_artefact_suits_any_size(seed, size):
    rng = np.random.default_rng(seed)
    image = rng.uniform(size=(*size, 3)).astype(np.float32)
    artefact = sample_artefact(rng)
    result = apply_artefact(artefact, image)
    assert result.shape == image.shape
    assert np.isfinite(result).all()
    assert 0.15 <= artefact.severity <= 1


def test_severity_does_not_change_what_else_is_drawn():
    for kind in ARTEFACT_KINDS:
        mild, gross = (artefact_of_severity(np.random.default_rng(5), kind, severity) for severity in (0.1, 0.9))
        assert mild.seed == gross.seed
        assert mild.params != gross.params


def test_severity_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\], got 1.5"):
        artefact_of_severity(np.random.default_rng(0), "blur", 1.5)


def test_all_kinds_are_drawn():
    rng = np.random.default_rng(0)
    assert {sample_artefact(rng).kind for _ in range(300)} == set(ARTEFACT_KINDS)
    assert {sample_artefact(rng, kinds=("blur",)).kind for _ in range(10)} == {"blur"}


# -- each does what its name says ---------------------------------------------------------------------------------------


def step_edge() -> np.ndarray:
    image = np.full((64, 64, 3), 0.3, dtype=np.float32)
    image[:, 32:] = 0.7
    return image


def test_painterly_flattens_noise_and_keeps_an_edge():
    noisy = step_edge() + 0.03 * np.random.default_rng(0).standard_normal((64, 64, 3)).astype(np.float32)
    result = effects.painterly(noisy, radius=3, amount=1.0)
    assert result[:, 4:28].std() < 0.5 * noisy[:, 4:28].std()
    # a blur of that size would leave intermediate values beside the edge
    assert np.abs(result[4:-4, 31] - 0.3).max() < 0.1
    assert np.abs(result[4:-4, 32] - 0.7).max() < 0.1


def test_halo_over_and_undershoots():
    result = effects.halo(step_edge(), sigma=1.5, amount=1.0)
    assert result.max() > 0.8
    assert result.min() < 0.2


def test_ringing_ripples_beside_an_edge():
    profile = effects.ringing(step_edge(), cutoff=0.2, boost=2.0)[32, :28, 0] - 0.3
    assert np.count_nonzero(np.diff(np.sign(profile[8:]))) >= 4


def test_checkerboard_repeats_with_its_period():
    flat = np.full((32, 32, 3), 0.5, dtype=np.float32)
    pattern = effects.checkerboard(flat, seed=1, period=4, amplitude=0.2) - flat
    assert np.array_equal(pattern[:-4], pattern[4:])
    assert np.array_equal(pattern[:, :-4], pattern[:, 4:])
    assert pattern.std() > 0.02


def test_grid_repeats_with_its_period_on_the_chosen_axis():
    flat = np.full((32, 32, 3), 0.5, dtype=np.float32)
    stripes = effects.grid(flat, period=8, both_axes=False, vertical=True, amplitude=0.1)
    assert np.array_equal(stripes[0], stripes[-1])
    assert np.array_equal(stripes[:, :-8], stripes[:, 8:])
    assert stripes[0, 0, 0] < stripes[0, 4, 0]


def test_texture_is_stronger_where_the_image_has_detail():
    image = np.full((96, 96, 3), 0.5, dtype=np.float32)
    image[:, 48:] += 0.2 * np.random.default_rng(0).standard_normal((96, 48, 1)).astype(np.float32)
    added = effects.oriented_texture(image, seed=0, period=5, angle=0.4, bandwidth=0.3, amplitude=0.1) - image
    assert added[:, 60:].std() > 3 * added[:, :36].std()


def test_texture_has_its_period_and_direction():
    flat = np.full((64, 64, 3), 0.5, dtype=np.float32)
    added = (effects.oriented_texture(flat, seed=0, period=8, angle=0.0, bandwidth=0.1, amplitude=0.1) - flat)[..., 0]
    spectrum = np.abs(np.fft.fft2(added))
    y, x = np.unravel_index(spectrum.argmax(), spectrum.shape)
    assert abs(min(x, 64 - x) - 8) <= 1
    assert min(y, 64 - y) <= 1


def test_displaced_detail_keeps_low_band_and_statistics_but_not_structure(crop):
    result = effects.displaced_detail(crop, seed=0, cutoff=2.0, correlation=3.0, distance=3.0)

    def bands(image):
        low = ndimage.gaussian_filter(image, (4, 4, 0))
        return low, image - ndimage.gaussian_filter(image, (2, 2, 0))

    (low, high), (low_moved, high_moved) = bands(crop), bands(result)
    assert np.abs(low - low_moved).mean() < 0.02
    assert 0.8 < high_moved.std() / high.std() < 1.2
    assert np.corrcoef(high.ravel(), high_moved.ravel())[0, 1] < 0.5


def test_colour_drift_keeps_luma(crop):
    luma = np.array([0.299, 0.587, 0.114])
    moved = effects.colour_drift(crop, seed=0, hue=1.0, size=30, amplitude=0.1)
    assert np.abs((moved - crop) @ luma).max() < 1e-5
    assert np.abs(moved - crop).max() > 0.05


def test_grain_has_its_amplitude_and_its_chroma():
    flat = np.full((128, 128, 3), 0.5, dtype=np.float32)
    grey = effects.grain(flat, seed=0, size=1.0, chroma=0.0, amplitude=0.05) - flat
    assert grey.std() == pytest.approx(0.05, rel=0.05)
    assert np.allclose(grey[..., 0], grey[..., 1], atol=1e-6)
    coloured = effects.grain(flat, seed=0, size=0.0, chroma=1.0, amplitude=0.05) - flat
    assert abs(np.corrcoef(coloured[..., 0].ravel(), coloured[..., 1].ravel())[0, 1]) < 0.05


def test_aliasing_repeats_pixels():
    image = np.random.default_rng(0).uniform(size=(32, 32, 3)).astype(np.float32)
    result = effects.aliasing(image, factor=4.0, amount=1.0)
    assert np.allclose(result[0:4, 0:4], image[2, 2], atol=1e-6)
    assert np.allclose(result[4:8, 8:12], image[6, 10], atol=1e-6)
