"""Patterns that repeat: checkerboard, grid, stripes, moiré."""

from __future__ import annotations

import math

import numpy as np

from data_synth.effects.fields import local_energy, noise_field, smooth
from data_synth.images import Field, FloatImage


def checkerboard(image: FloatImage, *, seed: int, period: int, amplitude: float) -> FloatImage:
    """Uneven gain repeating every ``period`` px: a transposed convolution whose kernel its stride does not divide.

    The gain pattern is drawn once (weights of such a layer are arbitrary) around the overlap count's alternation.
    """
    rng = np.random.default_rng(seed)
    overlap = np.where(np.arange(period) % 2, 1.0, -1.0)
    tile = 0.5 * np.add.outer(overlap, overlap) + 0.5 * rng.standard_normal((period, period))
    tile = (tile - tile.mean()) / tile.std()
    height, width = image.shape[:2]
    pattern = np.tile(tile, (height // period + 1, width // period + 1))[:height, :width].astype(np.float32)
    gain = np.float32(0.5 * amplitude) * pattern[..., None]
    return image + gain * (np.float32(0.15) + np.float32(0.85) * image)


def grid(image: FloatImage, *, period: int, both_axes: int, vertical: int, amplitude: float) -> FloatImage:
    """Lines every ``period`` px, on the pixel grid: patch borders of transformers and latents, training size ≠ inference size.

    ``both_axes`` and ``vertical`` are 0 or 1; ``vertical`` chooses the one axis when there is one.
    """
    height, width = image.shape[:2]
    columns = _comb(width, period)[None, :] + np.zeros((height, 1), dtype=np.float32)
    rows = _comb(height, period)[:, None] + np.zeros((1, width), dtype=np.float32)
    pattern = (rows + columns) / math.sqrt(2) if both_axes else columns if vertical else rows
    return image + (np.float32(amplitude) * pattern)[..., None]


def stripes(
    image: FloatImage, *, seed: int, period: float, angle: float, wander: float, colour: float, amplitude: float
) -> FloatImage:
    """Parallel bands in patches: attention and tiling seams of diffusion SR, and one frequency that a network lets resonate.

    Bands of ``period`` px across direction ``angle`` (rad), bent by ``wander`` rad of phase over 40 px, coming and going over the
    image; ``colour`` in [0, 1] is how far the three channels are out of step.
    """
    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    phase = (2 * math.pi / period) * (x * math.cos(angle) + y * math.sin(angle)) + wander * noise_field(rng, (height, width), 40)
    patches = 1 / (1 + np.exp(-2 * noise_field(rng, (height, width), 48)))
    offsets = np.float32(colour) * rng.uniform(-math.pi / 2, math.pi / 2, 3).astype(np.float32)
    # tanh flattens the tops: bands rather than a pure sine
    bands = np.tanh(1.5 * np.sin(phase[..., None] + offsets)).astype(np.float32)
    return image + np.float32(1.6 * amplitude) * (patches[..., None] * bands).astype(np.float32)


def moire(
    image: FloatImage, *, seed: int, period: float, angle: float, bend: float, colour: float, amplitude: float
) -> FloatImage:
    """Wide curved fringes, often coloured, where fabric, roofs or screens had fine detail: aliased LR detail taken for structure.

    The beat of two fine gratings: fringes of about ``period`` px around direction ``angle`` (rad), bent by ``bend`` rad of phase
    over three periods, strong where the image has fine detail, which gives way to them; ``colour`` in [0, 1] sets the channels
    out of step.
    """
    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    beat = (2 * math.pi / period) * (x * math.cos(angle) + y * math.sin(angle))
    beat += bend * noise_field(rng, (height, width), 3 * period)
    offsets = np.float32(colour) * rng.uniform(-2.0, 2.0, 3).astype(np.float32)
    fine = image - smooth(image, 1.2)
    where = local_energy(image)[..., None] ** 2
    share = np.float32(min(1.0, 8 * amplitude)) * where
    return image - share * fine + np.float32(1.4 * amplitude) * where * np.sin(beat[..., None] + offsets)


def _comb(length: int, period: int) -> Field:
    """Zero-mean, unit-variance lines: one dark px, and a soft neighbour, every ``period``."""
    tile = np.zeros(period)
    tile[0], tile[1] = -1.0, -0.4
    tile = (tile - tile.mean()) / tile.std()
    return np.resize(tile, length).astype(np.float32)
