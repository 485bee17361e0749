"""Statistics-preserving hallucination: low frequencies and local strength stay, the structure of the detail does not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from data_synth.artefacts import FAMILIES, apply_artefact, artefact_of_severity
from data_synth.effects import fields, glyphs, hallucination, look_alike

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@pytest.fixture(scope="module")
def photographs(china, chelsea):
    """Real photographs of much detail, 128×128, float32 in [0, 1]."""
    corners = {"china": (china, 180, 200), "chelsea": (chelsea, 40, 110)}
    return {
        name: np.ascontiguousarray(photo[top : top + 128, left : left + 128]).astype(np.float32) / 255
        for name, (photo, top, left) in corners.items()
    }


def low_band(image):
    return ndimage.gaussian_filter(image, (4, 4, 0))


def high_band(image):
    return image - ndimage.gaussian_filter(image, (2, 2, 0))


def local_strength(band):
    return np.sqrt(ndimage.gaussian_filter((band**2).mean(axis=-1), 4))


@pytest.mark.parametrize("kind", FAMILIES["hallucination"])
@pytest.mark.parametrize("seed", [0, 3])
def test_keeps_low_band_and_local_strength_but_not_structure(kind, seed, photographs):
    for name in ("china", "chelsea"):  # photographs of much detail
        photo = photographs[name]
        result = apply_artefact(artefact_of_severity(np.random.default_rng(seed), kind, 1.0), photo)
        assert np.abs(low_band(result) - low_band(photo)).mean() < 0.015
        before, after = high_band(photo), high_band(result)
        changed = (ndimage.gaussian_filter(np.abs(result - photo).mean(axis=-1), 2) > 0.01) & (local_strength(before) > 0.02)
        assert changed.mean() > 0.1
        ratio = np.median(local_strength(after)[changed] / local_strength(before)[changed])
        # redrawing keeps contours and drops the finest detail, as real-world SR does
        assert (0.5 if kind == "redrawn" else 0.75) < ratio < 1.25
        assert np.corrcoef(before[changed].ravel(), after[changed].ravel())[0, 1] < 0.6


@pytest.mark.parametrize("kind", FAMILIES["hallucination"])
def test_sharpness_does_not_betray_it(kind, photographs):
    """A blind measure of sharpness sees no blur: mean gradient against the photo's, where a blur of 1.5 px has under half."""

    def sharpness(image):
        return np.hypot(*np.gradient(image @ LUMA)).mean()

    photo = photographs["china"]
    result = apply_artefact(artefact_of_severity(np.random.default_rng(0), kind, 0.5), photo)
    assert 0.7 < sharpness(result) / sharpness(photo) < 1.3
    assert sharpness(ndimage.gaussian_filter(photo, (1.5, 1.5, 0))) / sharpness(photo) < 0.5


@pytest.mark.parametrize("kind", ["phase_scramble", "look_alike", "mirrored", "strokes", "lattice", "glyphs"])
def test_a_lone_contour_is_left_alone(kind):
    image = np.full((96, 96, 3), 0.3, dtype=np.float32)
    image[:, 48:] = 0.7
    result = apply_artefact(artefact_of_severity(np.random.default_rng(0), kind, 0.6), image)
    assert np.abs(result - image).max() < 0.1


def test_window_spectra_invert():
    image = np.random.default_rng(0).uniform(size=(37, 50, 2)).astype(np.float32)
    for window in (8, 12, 16):
        spectra = hallucination._window_spectra(image, window)
        assert np.allclose(hallucination._from_window_spectra(spectra, window, image.shape[:2]), image, atol=1e-5)


def test_phase_scramble_without_spread_changes_nothing(crop):
    result = hallucination.phase_scramble(crop, seed=0, window=16, cutoff=2.0, spread=0.0)
    assert np.abs(result - crop).max() < 1e-4


def test_mirrored_without_share_changes_nothing(crop):
    assert np.abs(hallucination.mirrored(crop, seed=0, cell=7, cutoff=2.0, share=0.0) - crop).max() < 1e-4


def test_mirrored_keeps_the_values_of_the_detail(crop):
    """Without texture weighting or rescaling in the way: noise mirrored cell by cell is the same noise in other places."""
    rng = np.random.default_rng(0)
    image = (0.5 + 0.1 * rng.standard_normal((96, 96, 3))).astype(np.float32)
    result = hallucination.mirrored(image, seed=0, cell=8, cutoff=3.0, share=1.0)
    before, after = (image - ndimage.gaussian_filter(image, (3, 3, 0)) for image in (image, result))
    assert after.std() == pytest.approx(before.std(), rel=0.1)
    assert abs(np.corrcoef(before.ravel(), after.ravel())[0, 1]) < 0.2


def test_strokes_follow_the_local_direction():
    rng = np.random.default_rng(0)
    hairs = ndimage.gaussian_filter(rng.standard_normal((96, 96)), (8, 0.7))  # fine vertical hairs
    image = np.repeat((0.5 + 0.15 * hairs / hairs.std())[..., None], 3, axis=-1).astype(np.float32)
    result = hallucination.strokes(image, seed=1, cutoff=2.0, length=5.0, thickness=0.6, amount=1.0)
    down, right = (np.diff(result[8:-8, 8:-8, 0], axis=axis).std() for axis in (0, 1))
    assert right > 2 * down
    before, after = high_band(image)[8:-8, 8:-8], high_band(result)[8:-8, 8:-8]
    assert abs(np.corrcoef(before.ravel(), after.ravel())[0, 1]) < 0.3


def test_lattice_keeps_a_gratings_period_and_strength_but_not_its_phase():
    x = np.arange(96)
    image = np.repeat(np.repeat(0.5 + 0.2 * np.sin(2 * np.pi * x / 4)[None, :], 96, axis=0)[..., None], 3, -1).astype(np.float32)
    result = hallucination.lattice(image, seed=1, window=16, peaks=1, amount=1.0)
    before, after = (np.fft.rfft((picture[48, 16:80, 1] - 0.5) * np.hanning(64)) for picture in (image, result))
    assert np.abs(after).argmax() == np.abs(before).argmax() == 16
    assert np.abs(after[16]) == pytest.approx(np.abs(before[16]), rel=0.25)
    assert abs(np.angle(after[16] / before[16])) > 0.3


def test_look_alike_of_the_image_itself_never_takes_what_is_near():
    """Detail that exists once cannot be found again elsewhere: it is gone from its place."""
    rng = np.random.default_rng(0)
    wanted = offered = rng.standard_normal((400, 29)).astype(np.float32)
    places = np.stack(np.meshgrid(np.arange(20) * 4, np.arange(20) * 4, indexing="ij"), axis=-1).reshape(-1, 2)
    chosen = look_alike._nearest(wanted, offered, places, places, 8.0, np.random.default_rng(0))
    assert np.hypot(*(places[chosen] - places).T).min() >= 8
    itself = look_alike._nearest(wanted, offered, places, places, 0.0, np.random.default_rng(0))
    assert (itself == np.arange(400)).mean() > 0.2


def test_look_alike_lays_patches_where_they_belong():
    source = np.random.default_rng(0).uniform(size=(40, 52)).astype(np.float32)
    places = look_alike._places(source.shape, 10, 6)
    laid = look_alike._lay(source, places, places, np.ones(len(places), dtype=np.float32), 10, 4, source.shape)
    assert np.allclose(laid, source, atol=1e-6)


def test_glyphs_grow_from_the_same_places(crop):
    settings = {"seed": 0, "height": 9, "weight": 1.5, "slant": 0.1}
    few, many = (np.abs(glyphs.glyphs(crop, share=share, **settings) - crop).max(axis=-1) > 0.02 for share in (0.1, 0.4))
    assert 0.03 < few.mean() < 0.15
    assert many[few].mean() > 0.98
    assert many.mean() > 2 * few.mean()


def test_marks_are_strokes_of_their_weight():
    alphabet = glyphs._alphabet(np.random.default_rng(0), 12, 9, 1.5, 0.0)
    assert alphabet.shape == (48, 12, 9)
    assert alphabet.max(axis=(1, 2)).min() > 0.9
    assert 0.15 < alphabet.mean() < 0.5
    assert len({mark.tobytes() for mark in alphabet}) > 40


def test_flow_follows_a_lines_direction():
    y, x = np.mgrid[:64, :64]
    image = np.sin((x * np.cos(0.5) + y * np.sin(0.5)) * 2 * np.pi / 8).astype(np.float32)
    flow = fields.orientation(image, 0.8, 3.0)
    inner = (slice(8, -8), slice(8, -8))
    # along the grating: at right angles to (cos, sin) of its wave vector
    along = flow.tangent[0][inner] * np.sin(0.5) + flow.tangent[1][inner] * np.cos(0.5)
    assert np.abs(along).max() < 0.05
    assert flow.coherence[inner].min() > 0.9


def test_displacing_by_whole_pixels_is_exact(crop):
    shift = np.stack([np.full((160, 160), 3.0), np.full((160, 160), -5.0)]).astype(np.float32)
    assert np.allclose(fields.displace(crop, shift)[:-3, 5:], crop[3:, :-5], atol=1e-4)


def test_coarse_smoothing_agrees_with_the_gaussian(crop):
    for sigma in (1.0, 3.0, 6.0):
        exact, coarse = fields.smooth(crop, sigma), fields.smooth_coarsely(crop, sigma)
        assert np.abs(exact - coarse)[8:-8, 8:-8].mean() < 0.01


def test_crispening_steepens_a_soft_edge_without_overshoot():
    x = np.arange(64)
    edge = (0.3 + 0.4 / (1 + np.exp(-(x - 31.5) / 2.0))).astype(np.float32)
    image = np.repeat(np.repeat(edge[None, :, None], 64, axis=0), 3, axis=2)
    result = fields.crispen(image, scale=1.0, reach=1.5)
    assert np.abs(np.diff(result[32, :, 0])).max() > 1.25 * np.diff(edge).max()
    assert result.min() > 0.3 - 5e-3 and result.max() < 0.7 + 5e-3
