"""Noise and invented texture laid over the image: what is added does not follow the photo's own statistics."""

from __future__ import annotations

import math

import numpy as np

from data_synth.effects.fields import local_energy, noise_field
from data_synth.images import FloatImage


def grain(image: FloatImage, *, seed: int, size: float, chroma: float, amplitude: float) -> FloatImage:
    """Noise left in or invented: too few denoising steps, stochastic sampling, noise of the input taken for detail.

    Grains of ``size`` px (0: single pixels); ``chroma`` in [0, 1] is the share of noise that differs between channels.
    """
    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    shared = noise_field(rng, (height, width), size)
    separate = np.stack([noise_field(rng, (height, width), size) for _ in range(3)], axis=-1)
    noise = math.sqrt(1 - chroma) * shared[..., None] + math.sqrt(chroma) * separate
    return image + np.float32(amplitude) * noise.astype(np.float32)


def oriented_texture(
    image: FloatImage, *, seed: int, period: float, angle: float, bandwidth: float, amplitude: float
) -> FloatImage:
    """Fur, scales or hatching where there was other detail: texture hallucinated by GAN and diffusion SR.

    Band-pass noise around wavelength ``period`` and direction ``angle`` (rad), ``bandwidth`` relative to the frequency,
    strong where the image has energy and faint where it is flat, as generators do.
    """
    height, width = image.shape[:2]
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    frequency = 1 / period
    along, across = fx * math.cos(angle) + fy * math.sin(angle), fy * math.cos(angle) - fx * math.sin(angle)
    spread = bandwidth * frequency
    band = np.exp(-0.5 * (((np.abs(along) - frequency) / spread) ** 2 + (across / spread) ** 2))
    noise = np.random.default_rng(seed).standard_normal((height, width))
    texture = np.fft.irfft2(np.fft.rfft2(noise) * band, s=(height, width)).astype(np.float32)
    texture /= texture.std() + 1e-8
    return image + (np.float32(amplitude) * texture * local_energy(image))[..., None]
