"""The effects behind `artefacts`: one pure function an artefact, explicit parameters, each imitating one failure of SR models.

Images are H×W×3 float32 RGB in [0, 1]; results have the same shape and may leave [0, 1] (`apply_artefact` clips). Lengths
are in px, amplitudes in units of [0, 1] intensity. Nothing here draws parameters; a ``seed`` only fixes noise.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from data_synth.degradations import FloatImage

Field = npt.NDArray[np.float32]
"""H×W float32."""

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def painterly(image: FloatImage, *, radius: int, amount: float) -> FloatImage:
    """Flat brush strokes with crisp borders: what reward hacking and heavy denoising of diffusion SR look like.

    Kuwahara filter (1976): each pixel takes the mean of the least varied of the four (radius+1)² windows it is a corner of,
    mixed with the image by ``amount``.
    """
    size = radius + 1
    luma = image @ _LUMA
    mean = ndimage.uniform_filter(luma, size, mode="reflect")
    variance = ndimage.uniform_filter(luma * luma, size, mode="reflect") - mean * mean
    colour = ndimage.uniform_filter(image, (size, size, 1), mode="reflect")
    # a window's filter value stands at its centre: the four windows around a pixel are the value maps shifted by ± radius/2
    low, high = -(radius // 2), radius - radius // 2
    padded_variance = np.pad(variance, high + 1, mode="reflect")
    padded_colour = np.pad(colour, ((high + 1, high + 1), (high + 1, high + 1), (0, 0)), mode="reflect")
    height, width = luma.shape
    best = np.full(luma.shape, np.inf, dtype=np.float32)
    result = image.copy()
    for dy in (low, high):
        for dx in (low, high):
            rows, columns = slice(high + 1 + dy, high + 1 + dy + height), slice(high + 1 + dx, high + 1 + dx + width)
            candidate = padded_variance[rows, columns]
            better = candidate < best
            best = np.where(better, candidate, best)
            result = np.where(better[..., None], padded_colour[rows, columns], result)
    return image + np.float32(amount) * (result - image)


def halo(image: FloatImage, *, sigma: float, amount: float) -> FloatImage:
    """Bright and dark rims along edges: over-sharpening by adversarial losses or an over-guided sampler (unsharp mask)."""
    return image + np.float32(amount) * (image - _smooth(image, sigma))


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
    return image + (np.float32(amplitude) * texture * _local_energy(image))[..., None]


def displaced_detail(image: FloatImage, *, seed: int, cutoff: float, correlation: float, distance: float) -> FloatImage:
    """Sharp, natural-looking, structurally wrong: the hallucination that keeps an image's statistics.

    The low band (Gaussian of ``cutoff`` px) stays; the high band is moved by a random field of r.m.s. length ``distance``
    that varies over ``correlation`` px, and rescaled to the local strength it had.
    """
    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    low = _smooth(image, cutoff)
    high = image - low
    shift = np.stack([_noise_field(rng, (height, width), correlation) for _ in range(2)]) * np.float32(distance / math.sqrt(2))
    positions = np.mgrid[:height, :width].astype(np.float32) + shift
    moved = np.stack([ndimage.map_coordinates(high[..., c], positions, order=1, mode="reflect") for c in range(3)], axis=-1)
    before, after = (np.sqrt(_smooth((band * band).mean(axis=-1), 4.0)) for band in (high, moved))
    gain = np.clip((before + 1e-3) / (after + 1e-3), 0.5, 2.0).astype(np.float32)
    return (low + moved * gain[..., None]).astype(np.float32, copy=False)


def grain(image: FloatImage, *, seed: int, size: float, chroma: float, amplitude: float) -> FloatImage:
    """Noise left in or invented: too few denoising steps, stochastic sampling, noise of the input taken for detail.

    Grains of ``size`` px (0: single pixels); ``chroma`` in [0, 1] is the share of noise that differs between channels.
    """
    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    shared = _noise_field(rng, (height, width), size)
    separate = np.stack([_noise_field(rng, (height, width), size) for _ in range(3)], axis=-1)
    noise = math.sqrt(1 - chroma) * shared[..., None] + math.sqrt(chroma) * separate
    return image + np.float32(amplitude) * noise.astype(np.float32)


def blur(image: FloatImage, *, sigma: float) -> FloatImage:
    """Detail missing: the average of all plausible images, as SR trained on a pixel loss gives. Gaussian of ``sigma`` px."""
    return _smooth(image, sigma)


def ringing(image: FloatImage, *, cutoff: float, boost: float) -> FloatImage:
    """Ripples beside edges: a network (or codec) that cuts or lifts a band sharply.

    Frequencies within 12 % below ``cutoff`` (cycles/px, Nyquist 0.5) are lifted by ``boost``, those above it cut in proportion;
    such steep flanks in frequency are ripples in space.
    """
    height, width = image.shape[:2]
    margin = 16
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    fy, fx = np.fft.fftfreq(padded.shape[0])[:, None], np.fft.rfftfreq(padded.shape[1])[None, :]
    radius = np.hypot(fy, fx)
    gain = np.where(radius > cutoff, 1 / (1 + boost), np.where(radius > 0.88 * cutoff, 1 + boost, 1.0))
    rung = np.fft.irfft2(np.fft.rfft2(padded, axes=(0, 1)) * gain[..., None], s=padded.shape[:2], axes=(0, 1))
    return rung[margin : margin + height, margin : margin + width].astype(np.float32)


def colour_drift(image: FloatImage, *, seed: int, hue: float, size: float, amplitude: float) -> FloatImage:
    """Tints that wander over ``size`` px around a common ``hue`` (rad): colour shift of latent decoders and of late fine-tuning.

    Moves colours in the plane orthogonal to luma, so brightness stays.
    """
    rng = np.random.default_rng(seed)
    axes = np.array([[1, -1, 0], [1, 1, -2]], dtype=np.float64)
    axes -= axes @ _LUMA[:, None]  # luma weights sum to 1, so this leaves no luma in either axis
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    weights = np.array([math.cos(hue), math.sin(hue)])
    local = np.stack([_noise_field(rng, image.shape[:2], size) for _ in range(2)], axis=-1)
    return image + np.float32(amplitude) * ((0.7 * weights + 0.5 * local) @ axes).astype(np.float32)


def grid(image: FloatImage, *, period: int, both_axes: bool, vertical: bool, amplitude: float) -> FloatImage:
    """Lines every ``period`` px, on the pixel grid: patch borders of transformers and latents, training size ≠ inference size."""
    height, width = image.shape[:2]
    columns = _comb(width, period)[None, :] + np.zeros((height, 1), dtype=np.float32)
    rows = _comb(height, period)[:, None] + np.zeros((1, width), dtype=np.float32)
    pattern = (rows + columns) / math.sqrt(2) if both_axes else columns if vertical else rows
    return image + (np.float32(amplitude) * pattern)[..., None]


def aliasing(image: FloatImage, *, factor: float, amount: float) -> FloatImage:
    """Staircases and moiré: detail read off a grid ``factor`` times too coarse without a low-pass, as in naive resampling.

    Mixed with the image by ``amount``.
    """
    picks = [np.minimum((np.floor(np.arange(n) / factor) + 0.5) * factor, n - 1).astype(int) for n in image.shape[:2]]
    return image + np.float32(amount) * (image[picks[0]][:, picks[1]] - image)


def _comb(length: int, period: int) -> Field:
    """Zero-mean, unit-variance lines: one dark px, and a soft neighbour, every ``period``."""
    tile = np.zeros(period)
    tile[0], tile[1] = -1.0, -0.4
    tile = (tile - tile.mean()) / tile.std()
    return np.resize(tile, length).astype(np.float32)


def _smooth(image: npt.NDArray[np.float32], sigma: float) -> npt.NDArray[np.float32]:
    """Gaussian blur over the first two axes, ``sigma`` in px; 3σ support."""
    sigmas = (sigma, sigma, 0.0)[: image.ndim]
    smoothed: npt.NDArray[np.float32] = ndimage.gaussian_filter(image, sigmas, mode="reflect", truncate=3.0)
    return smoothed


def _noise_field(rng: np.random.Generator, shape: tuple[int, ...], correlation: float) -> Field:
    """Zero-mean, unit-variance smooth noise of correlation length ``correlation`` px (0: white).

    Long correlations are made on a coarse grid and interpolated: a wide Gaussian costs more and looks the same.
    """
    step = max(1, int(correlation / 3))
    height, width = (-(-side // step) + 3 for side in shape)
    field = rng.standard_normal((height, width), dtype=np.float32)
    if correlation > 0:
        field = _smooth(field, correlation / step)
    if step > 1:
        rows, columns = (np.arange(side, dtype=np.float32) / step + 1 for side in shape)
        field = ndimage.map_coordinates(field, np.meshgrid(rows, columns, indexing="ij"), order=1, mode="reflect")
    else:
        field = field[: shape[0], : shape[1]]
    field = field - field.mean()
    return (field / (field.std() + 1e-8)).astype(np.float32)


def _local_energy(image: FloatImage) -> Field:
    """Where the image has detail: smoothed gradient magnitude, 0.15 in flat regions, about 1 in textured ones."""
    luma = image @ _LUMA
    magnitude = np.hypot(ndimage.sobel(luma, 0, mode="reflect"), ndimage.sobel(luma, 1, mode="reflect")) / 8
    smooth = _smooth(magnitude, 3.0)
    return (0.15 + 0.85 * smooth / (smooth + 0.03)).astype(np.float32)
