"""Each effect has the mark it is named after."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from data_synth.effects import colour, geometry, noise, periodic, sharpening, smoothing
from data_synth.images import luma


def step_edge() -> np.ndarray:
    image = np.full((64, 64, 3), 0.3, dtype=np.float32)
    image[:, 32:] = 0.7
    return image


def test_luma_is_the_weighted_sum_bit_by_bit_the_same_however_the_image_lies(crop):
    grey = luma(crop)
    assert grey.dtype == np.float32
    assert np.allclose(grey, crop.astype(np.float64) @ [0.299, 0.587, 0.114], atol=1e-6)
    assert all(np.array_equal(grey[row], luma(crop[row : row + 1])[0]) for row in range(0, len(crop), 7))
    assert np.array_equal(grey, luma(np.asfortranarray(crop)))
    red, green, blue = (np.float32(weight) * crop[..., i] for i, weight in enumerate((0.299, 0.587, 0.114)))
    assert np.array_equal(grey, (red + green) + blue)


def test_painterly_flattens_noise_and_keeps_an_edge():
    noisy = step_edge() + 0.03 * np.random.default_rng(0).standard_normal((64, 64, 3)).astype(np.float32)
    result = smoothing.painterly(noisy, radius=3, amount=1.0)
    assert result[:, 4:28].std() < 0.5 * noisy[:, 4:28].std()
    # a blur of that size would leave intermediate values beside the edge
    assert np.abs(result[4:-4, 31] - 0.3).max() < 0.1
    assert np.abs(result[4:-4, 32] - 0.7).max() < 0.1


def test_halo_over_and_undershoots():
    result = sharpening.halo(step_edge(), sigma=1.5, amount=1.0)
    assert result.max() > 0.8
    assert result.min() < 0.2


def test_ringing_ripples_beside_an_edge():
    profile = sharpening.ringing(step_edge(), cutoff=0.2, boost=2.0)[32, :28, 0] - 0.3
    assert np.count_nonzero(np.diff(np.sign(profile[8:]))) >= 4


def test_checkerboard_repeats_with_its_period():
    flat = np.full((32, 32, 3), 0.5, dtype=np.float32)
    pattern = periodic.checkerboard(flat, seed=1, period=4, amplitude=0.2) - flat
    assert np.array_equal(pattern[:-4], pattern[4:])
    assert np.array_equal(pattern[:, :-4], pattern[:, 4:])
    assert pattern.std() > 0.02


def test_grid_repeats_with_its_period_on_the_chosen_axis():
    flat = np.full((32, 32, 3), 0.5, dtype=np.float32)
    stripes = periodic.grid(flat, period=8, both_axes=0, vertical=1, amplitude=0.1)
    assert np.array_equal(stripes[0], stripes[-1])
    assert np.array_equal(stripes[:, :-8], stripes[:, 8:])
    assert stripes[0, 0, 0] < stripes[0, 4, 0]


def test_texture_is_stronger_where_the_image_has_detail():
    image = np.full((96, 96, 3), 0.5, dtype=np.float32)
    image[:, 48:] += 0.2 * np.random.default_rng(0).standard_normal((96, 48, 1)).astype(np.float32)
    added = noise.oriented_texture(image, seed=0, period=5, angle=0.4, bandwidth=0.3, amplitude=0.1) - image
    assert added[:, 60:].std() > 3 * added[:, :36].std()


def test_texture_has_its_period_and_direction():
    flat = np.full((64, 64, 3), 0.5, dtype=np.float32)
    added = (noise.oriented_texture(flat, seed=0, period=8, angle=0.0, bandwidth=0.1, amplitude=0.1) - flat)[..., 0]
    spectrum = np.abs(np.fft.fft2(added))
    y, x = np.unravel_index(spectrum.argmax(), spectrum.shape)
    assert abs(min(x, 64 - x) - 8) <= 1
    assert min(y, 64 - y) <= 1


def test_colour_drift_keeps_luma(crop):
    luma = np.array([0.299, 0.587, 0.114])
    moved = colour.colour_drift(crop, seed=0, hue=1.0, size=30, amplitude=0.1)
    assert np.abs((moved - crop) @ luma).max() < 1e-5
    assert np.abs(moved - crop).max() > 0.05


def test_grain_has_its_amplitude_and_its_chroma():
    flat = np.full((128, 128, 3), 0.5, dtype=np.float32)
    grey = noise.grain(flat, seed=0, size=1.0, chroma=0.0, amplitude=0.05) - flat
    assert grey.std() == pytest.approx(0.05, rel=0.05)
    assert np.allclose(grey[..., 0], grey[..., 1], atol=1e-6)
    coloured = noise.grain(flat, seed=0, size=0.0, chroma=1.0, amplitude=0.05) - flat
    assert abs(np.corrcoef(coloured[..., 0].ravel(), coloured[..., 1].ravel())[0, 1]) < 0.05


def test_aliasing_repeats_pixels():
    image = np.random.default_rng(0).uniform(size=(32, 32, 3)).astype(np.float32)
    result = geometry.aliasing(image, factor=4.0, amount=1.0)
    assert np.allclose(result[0:4, 0:4], image[2, 2], atol=1e-6)
    assert np.allclose(result[4:8, 8:12], image[6, 10], atol=1e-6)


def test_anisotropic_painterly_smooths_along_hairs_not_across():
    rng = np.random.default_rng(0)
    hairs = np.repeat(0.5 + 0.2 * np.sin(np.arange(64) * 2 * np.pi / 8)[None, :], 64, axis=0)
    image = np.repeat((hairs + 0.05 * rng.standard_normal((64, 64)))[..., None], 3, axis=-1).astype(np.float32)
    result = smoothing.painterly_anisotropic(image, size=3.0, length=4.0, amount=1.0)[8:-8, 8:-8, 0]
    along, across = np.diff(result, axis=0).std(), result.mean(axis=0).std()
    assert along < 0.25 * np.diff(image[8:-8, 8:-8, 0], axis=0).std()
    assert across > 0.9 * hairs[0].std()


def test_stripes_have_their_period_and_direction():
    flat = np.full((96, 96, 3), 0.5, dtype=np.float32)
    added = (periodic.stripes(flat, seed=0, period=8, angle=0.0, wander=0.0, colour=0.0, amplitude=0.05) - flat)[..., 1]
    spectrum = np.abs(np.fft.rfft2(added))
    assert np.unravel_index(spectrum.argmax(), spectrum.shape) == (0, 12)


def test_moire_takes_the_place_of_fine_detail(crop):
    flat = np.full_like(crop, 0.5)
    settings = {"seed": 0, "period": 10.0, "angle": 0.5, "bend": 1.0, "colour": 0.5, "amplitude": 0.1}
    assert np.abs(periodic.moire(crop, **settings) - crop).mean() > 4 * np.abs(periodic.moire(flat, **settings) - flat).mean()


def test_ghosting_is_the_mean_of_the_image_and_its_shifted_copy(crop):
    result = geometry.ghosting(crop, seed=0, angle=0.0, distance=4.0, spread=0.0, amount=0.5)
    assert np.allclose(result[:, :-8], 0.5 * (crop[:, :-8] + crop[:, 4:-4]), atol=1e-4)


def test_warp_moves_by_its_distance():
    ramp = np.repeat(np.repeat(np.linspace(0, 1, 128, dtype=np.float32)[None, :, None], 128, axis=0), 3, axis=2)
    moved = (geometry.warp(ramp, seed=0, correlation=12, distance=3.0) - ramp)[16:-16, 16:-16, 0] * 127
    assert np.sqrt((moved**2).mean()) == pytest.approx(3 / np.sqrt(2), rel=0.2)
    # smooth: neighbours move together
    assert np.diff(moved, axis=0).std() < 0.25 * moved.std()


def test_broken_lines_interrupts_a_thin_line_and_leaves_a_wide_one():
    image = np.full((64, 96, 3), 0.2, dtype=np.float32)
    image[20:22] = 0.9
    image[40:52] = 0.9
    result = geometry.broken_lines(image, seed=0, width=3, correlation=4.0, share=0.5, distance=0.01)
    thin = result[20, :, 0]
    assert thin.min() < 0.3 and thin.max() > 0.8
    assert 0.25 < (thin < 0.55).mean() < 0.75
    assert np.allclose(result[42:50], 0.9, atol=1e-3)


def test_without_lines_removes_light_and_dark_lines_alike():
    image = np.full((64, 64, 3), 0.5, dtype=np.float32)
    image[:, 20] = 1.0
    image[:, 40] = 0.0
    assert np.allclose(geometry.without_lines(image, 3), 0.5)


def test_colour_bleeding_keeps_luma_and_moves_colour_over_an_edge():
    image = np.zeros((64, 64, 3), dtype=np.float32)
    image[:, :32] = (0.6, 0.3, 0.3)
    image[:, 32:] = (0.3, 0.3, 0.6)
    result = colour.colour_bleeding(image, seed=0, gain=1.0, correlation=12, sigma=6)
    luma = np.array([0.299, 0.587, 0.114])
    assert np.abs((result - image) @ luma).max() < 1e-4
    redness = (result[..., 0] - result[..., 2]).mean(axis=0)
    assert redness[2] > 0.25 and redness[-3] < -0.25
    assert abs(redness[34]) < 0.25
    assert ndimage.gaussian_filter1d(redness, 2).argmin() > 36
