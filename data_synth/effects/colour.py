"""Colours wrong, brightness kept: drift and bleeding."""

from __future__ import annotations

import math

import numpy as np

from data_synth.effects.fields import displace, displacement_field, noise_field, smooth_coarsely
from data_synth.images import LUMA, FloatImage, luma


def colour_drift(image: FloatImage, *, seed: int, hue: float, size: float, amplitude: float) -> FloatImage:
    """Tints that wander over ``size`` px around a common ``hue`` (rad): colour shift of latent decoders and of late fine-tuning.

    Moves colours in the plane orthogonal to luma, so brightness stays.
    """
    rng = np.random.default_rng(seed)
    axes = np.array([[1, -1, 0], [1, 1, -2]], dtype=np.float64)
    axes -= (axes * LUMA).sum(axis=1, keepdims=True)  # luma weights sum to 1, so this leaves no luma in either axis
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    weights = np.array([math.cos(hue), math.sin(hue)])
    local = np.stack([noise_field(rng, image.shape[:2], size) for _ in range(2)], axis=-1)
    along = 0.7 * weights + 0.5 * local
    tint = along[..., :1] * axes[0] + along[..., 1:] * axes[1]  # no matrix product, see `luma`
    return image + np.float32(amplitude) * tint.astype(np.float32)


def colour_bleeding(image: FloatImage, *, seed: int, gain: float, correlation: float, sigma: float) -> FloatImage:
    """Colours that run over contours: chroma of subsampled or compressed input and of latent decoders, misplaced.

    Luma stays; chroma is displaced by up to about ``sigma`` px over ``correlation`` px, smeared over ``sigma`` px and saturated
    by ``gain``.
    """
    rng = np.random.default_rng(seed)
    grey = luma(image)[..., None]
    chroma = smooth_coarsely(image - grey, sigma)
    shift = displacement_field(rng, image.shape[:2], correlation, 0.7 * sigma)
    return grey + np.float32(gain) * displace(chroma, shift)
