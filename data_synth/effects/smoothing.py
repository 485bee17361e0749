"""Detail lost: blur and painterly flattening."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from data_synth.effects.fields import along_flow, crispen, orientation, smooth
from data_synth.images import FloatImage, luma


def painterly(image: FloatImage, *, radius: int, amount: float) -> FloatImage:
    """Flat brush strokes with crisp borders: what reward hacking and heavy denoising of diffusion SR look like.

    Kuwahara filter (1976): each pixel takes the mean of the least varied of the four (radius+1)² windows it is a corner of,
    mixed with the image by ``amount``.
    """
    size = radius + 1
    grey = luma(image)
    mean = ndimage.uniform_filter(grey, size, mode="reflect")
    variance = ndimage.uniform_filter(grey * grey, size, mode="reflect") - mean * mean
    colour = ndimage.uniform_filter(image, (size, size, 1), mode="reflect")
    # a window's filter value stands at its centre: the four windows around a pixel are the value maps shifted by ± radius/2
    low, high = -(radius // 2), radius - radius // 2
    padded_variance = np.pad(variance, high + 1, mode="reflect")
    padded_colour = np.pad(colour, ((high + 1, high + 1), (high + 1, high + 1), (0, 0)), mode="reflect")
    height, width = grey.shape
    best = np.full(grey.shape, np.inf, dtype=np.float32)
    result = image.copy()
    for dy in (low, high):
        for dx in (low, high):
            rows, columns = slice(high + 1 + dy, high + 1 + dy + height), slice(high + 1 + dx, high + 1 + dx + width)
            candidate = padded_variance[rows, columns]
            better = candidate < best
            best = np.where(better, candidate, best)
            result = np.where(better[..., None], padded_colour[rows, columns], result)
    return image + np.float32(amount) * (result - image)


def painterly_anisotropic(image: FloatImage, *, size: float, length: float, amount: float) -> FloatImage:
    """Oil-paint strokes that follow hair, contours and foliage: the look of GAN SR on unknown input, and of reward hacking.

    Coherence-enhancing filtering (Kyprianidis and Kang, 2011): means along the local direction, ``length`` px (σ), then a shock
    across it; directions averaged over ``size`` px. Mixed with the image by ``amount``.
    """
    flow = orientation(luma(image), 0.8, size)
    strokes = along_flow(smooth(image, 0.6), flow.tangent, length, step=max(1.5, length / 3))
    strokes = crispen(strokes, scale=1.0, reach=0.8)
    strokes = crispen(strokes, scale=1.0, reach=0.8)
    return image + np.float32(amount) * (strokes - image)


def blur(image: FloatImage, *, sigma: float) -> FloatImage:
    """Detail missing: the average of all plausible images, as SR trained on a pixel loss gives. Gaussian of ``sigma`` px."""
    return smooth(image, sigma)
