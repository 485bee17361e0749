"""Colours of a map: even in lightness, faithful in 16 bits."""

from __future__ import annotations

import numpy as np
import pytest

from finpercep.heatmap import COLOURS, from_samples, heat_colours, map_samples, overlay
from tests.fakes import photo


def lightness(colours: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB colours."""
    linear = np.where(colours <= 10.31, colours / 255 / 12.92, ((colours / 255 + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    return np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)


def test_lightness_rises_evenly():
    light = lightness(COLOURS.astype(np.float64))
    assert light[0] < 1 and light[-1] > 95
    assert (np.diff(light[::8]) > 0).all()
    assert np.abs(light - np.linspace(light[0], light[-1], 256)).max() < 8


def test_ends_of_the_scale():
    np.testing.assert_array_equal(heat_colours(np.array([[0.0, 1.0]])), COLOURS[None, [0, 255]])


def test_overlay_leaves_a_clean_picture_grey_and_shows_a_defect():
    pixels = photo()
    degradation = np.zeros(pixels.shape[:2], np.float32)
    clean = overlay(pixels, degradation)
    assert (clean[..., 0] == clean[..., 1]).all() and (clean[..., 1] == clean[..., 2]).all()
    degradation[10:20, 10:20] = 1
    shown = overlay(pixels, degradation, opacity=1)
    np.testing.assert_array_equal(shown[12, 12], COLOURS[255])
    np.testing.assert_array_equal(shown[30:], clean[30:])
    with pytest.raises(ValueError, match="one size"):
        overlay(pixels, degradation[:-1])


def test_samples_round_trip():
    samples = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(map_samples(from_samples(samples)), samples)
    values = np.random.default_rng(0).random((8, 8)).astype(np.float32)
    np.testing.assert_allclose(from_samples(map_samples(values)), values, rtol=0, atol=0.5001 / 65535)
