"""Structure in the wrong place: aliasing, ghosts, warps, broken lines."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from scipy import ndimage

from data_synth.effects.fields import displace, displacement_field, noise_field, smooth
from data_synth.images import FloatImage


def aliasing(image: FloatImage, *, factor: float, amount: float) -> FloatImage:
    """Staircases and moiré: detail read off a grid ``factor`` times too coarse without a low-pass, as in naive resampling.

    Mixed with the image by ``amount``.
    """
    picks = [np.minimum((np.floor(np.arange(n) / factor) + 0.5) * factor, n - 1).astype(int) for n in image.shape[:2]]
    return image + np.float32(amount) * (image[picks[0]][:, picks[1]] - image)


def ghosting(image: FloatImage, *, seed: int, angle: float, distance: float, spread: float, amount: float) -> FloatImage:
    """Double contours: two half-agreeing samples averaged, control image and latent out of register, burst frames misaligned.

    A copy ``distance`` px away in direction ``angle`` (rad), its offset varying by ``spread`` (relative) over 24 px, mixed in by
    ``amount``.
    """
    rng = np.random.default_rng(seed)
    shift = displacement_field(rng, image.shape[:2], 24, spread * distance)
    shift += np.float32(distance) * np.array([math.sin(angle), math.cos(angle)], dtype=np.float32)[:, None, None]
    return image + np.float32(amount) * (displace(image, shift) - image)


def warp(image: FloatImage, *, seed: int, correlation: float, distance: float) -> FloatImage:
    """Straight lines wavy, faces and letters out of shape: the geometry drift of strong generative priors.

    Everything is displaced by a smooth field of r.m.s. ``distance`` px that varies over ``correlation`` px.
    """
    shift = displacement_field(np.random.default_rng(seed), image.shape[:2], correlation, distance)
    return displace(image, shift)


def broken_lines(image: FloatImage, *, seed: int, width: int, correlation: float, share: float, distance: float) -> FloatImage:
    """Thin structure interrupted, merged or shifted: hair, wires, lattices and strokes of letters under SR that guesses them.

    Lines up to ``width`` px, light or dark, are lifted off the image, wiped out in a ``share`` of places of
    ``correlation`` px size, moved by r.m.s. ``distance`` px elsewhere, and laid down again.
    """
    rng = np.random.default_rng(seed)
    shape = image.shape[:2]
    ground = without_lines(image, width)
    lines = image - ground
    kept = smooth((noise_field(rng, shape, correlation) > NormalDist().inv_cdf(share)).astype(np.float32), 0.6)
    shift = displacement_field(rng, shape, correlation, distance)
    return ground + displace(lines, shift) * kept[..., None]


def without_lines(image: FloatImage, width: int) -> FloatImage:
    """``image`` without anything up to ``width`` px thin, light or dark: the mean of its open-closing and its close-opening."""
    footprint = (width + 1, width + 1, 1)
    opened = ndimage.grey_opening(image, footprint, mode="reflect")
    closed = ndimage.grey_closing(image, footprint, mode="reflect")
    both = ndimage.grey_closing(opened, footprint, mode="reflect") + ndimage.grey_opening(closed, footprint, mode="reflect")
    return np.float32(0.5) * both
