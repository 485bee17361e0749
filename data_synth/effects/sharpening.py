"""Edges overdone: halos and ringing."""

from __future__ import annotations

import numpy as np

from data_synth.effects.fields import smooth
from data_synth.images import FloatImage


def halo(image: FloatImage, *, sigma: float, amount: float) -> FloatImage:
    """Bright and dark rims along edges: over-sharpening by adversarial losses or an over-guided sampler (unsharp mask)."""
    return image + np.float32(amount) * (image - smooth(image, sigma))


def ringing(image: FloatImage, *, cutoff: float, boost: float) -> FloatImage:
    """Ripples beside edges: a network (or codec) that cuts or lifts a band sharply.

    Frequencies within 12 % below ``cutoff`` (cycles/px, Nyquist 0.5) are lifted by ``boost``, those above it cut in proportion;
    such steep flanks in frequency are ripples in space.
    """
    height, width = image.shape[:2]
    margin = min(16, height - 1, width - 1)
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    fy, fx = np.fft.fftfreq(padded.shape[0])[:, None], np.fft.rfftfreq(padded.shape[1])[None, :]
    radius = np.hypot(fy, fx)
    gain = np.where(radius > cutoff, 1 / (1 + boost), np.where(radius > 0.88 * cutoff, 1 + boost, 1.0))
    rung = np.fft.irfft2(np.fft.rfft2(padded, axes=(0, 1)) * gain[..., None], s=padded.shape[:2], axes=(0, 1))
    return rung[margin : margin + height, margin : margin + width].astype(np.float32)
