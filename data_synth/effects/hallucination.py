"""Sharp, natural-looking, structurally wrong: what GAN and diffusion SR do. Low frequencies and local statistics stay.

Every effect here keeps what is coarser than its ``cutoff`` and the local strength of what is finer, and falsifies the structure
of the latter, so that neither sharpness nor contrast tells the result from the photo; see also `look_alike` and `glyphs`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import fft

from data_synth.effects.fields import (
    Array,
    along_flow,
    coloured_like,
    crispen,
    displace,
    displacement_field,
    noise_field,
    orientation,
    smooth,
    strength,
    texture_share,
    with_strength_of,
)
from data_synth.images import Field, FloatImage, luma

Spectra = npt.NDArray[np.complex64]


def displaced_detail(image: FloatImage, *, seed: int, cutoff: float, correlation: float, distance: float) -> FloatImage:
    """Detail of the right kind in the wrong place: fine texture as GAN SR guesses it.

    The low band (Gaussian of ``cutoff`` px) stays; the high band is moved by a random field of r.m.s. length ``distance``
    that varies over ``correlation`` px, and rescaled to the local strength it had.
    """
    low = smooth(image, cutoff)
    high = image - low
    shift = displacement_field(np.random.default_rng(seed), image.shape[:2], correlation, distance)
    return low + with_strength_of(displace(high, shift), strength(high))


def fine_displacement(image: FloatImage, *, seed: int, cutoff: float, correlation: float, distance: float) -> FloatImage:
    """Contours frayed yet crisp, letters and eyes misshapen: few-step or strongly guided diffusion SR.

    The whole image is moved by a rough field (r.m.s. ``distance`` px over ``correlation`` px), edges made steep again, and the
    local strength of everything finer than ``cutoff`` px restored; what is coarser stays.
    """
    shift = displacement_field(np.random.default_rng(seed), image.shape[:2], correlation, distance)
    moved = crispen(displace(image, shift), scale=0.8, reach=0.6)
    low = smooth(image, cutoff)
    return low + with_strength_of(moved - smooth(moved, cutoff), strength(image - low))


def phase_scramble(image: FloatImage, *, seed: int, window: int, cutoff: float, spread: float) -> FloatImage:
    """Texture with the right spectrum and no structure: what a texture (Gram) loss or an adversarial loss alone asks for.

    In overlapping windows of ``window`` px, the phase of everything finer than ``cutoff`` px turns by normal angles of
    ``spread`` rad, the same in all channels; magnitudes, and so the measured envelope, stay. Lone contours stay too.
    """
    low = smooth(image, cutoff)
    high = image - low
    spectra = _window_spectra(high, window)
    angles = np.random.default_rng(seed).standard_normal((*spectra.shape[:2], 1, *spectra.shape[3:]), dtype=np.float32)
    angles *= np.float32(spread)
    turns = np.empty(angles.shape, dtype=np.complex64)  # exp(iφ), which NumPy computes several times slower
    turns.real, turns.imag = np.cos(angles), np.sin(angles)
    scrambled = _from_window_spectra(spectra * turns, window, image.shape[:2])
    return low + _in_textured_places(scrambled, high)


def lattice(image: FloatImage, *, seed: int, window: int, peaks: int, amount: float) -> FloatImage:
    """Fences, windows, fabric and scales regenerated with the wrong phase and the wrong members: SR's guess at lattices.

    Each window of ``window`` px is rebuilt from the ``peaks`` strongest waves of its own high band, every wave at one random
    phase over the whole image so that neighbouring windows agree; replaces the high band by ``amount``, at its local strength.
    """
    low = smooth(image, window / 8)
    high = image - low
    magnitude = np.abs(_window_spectra(luma(high)[..., None], window))
    rows, columns = magnitude.shape[:2]
    strongest = np.partition(magnitude.reshape(rows, columns, -1), -peaks, axis=-1)[..., -peaks, None, None, None]
    phase = np.random.default_rng(seed).uniform(-math.pi, math.pi, magnitude.shape[-2:])
    # a wave keeps its phase over the image: a window that starts half a window later reads it that much further on
    fy, fx = fft.fftfreq(window)[:, None], fft.rfftfreq(window)[None, :]
    start_y, start_x = (window // 2 * np.arange(n) for n in (rows, columns))
    travelled = 2 * math.pi * (start_y[:, None, None, None, None] * fy + start_x[None, :, None, None, None] * fx)
    waves = np.where(magnitude >= strongest, magnitude, 0) * np.exp(1j * (phase + travelled)).astype(np.complex64)
    rebuilt = coloured_like(_from_window_spectra(waves, window, image.shape[:2])[..., 0], high)
    return low + _in_textured_places(rebuilt, high, amount)


def mirrored(image: FloatImage, *, seed: int, cell: int, cutoff: float, share: float) -> FloatImage:
    """Letters mirrored, slats and hairs pointing the wrong way: SR that knows which marks belong there but not how they stand.

    On a grid of ``cell`` px, the detail finer than ``cutoff`` px is turned left to right, upside down, or both, in a ``share``
    of the cells; every mark keeps its colours, its contrast and its place up to a cell.
    """
    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    low = smooth(image, cutoff)
    top, left = rng.integers(cell, size=2)
    rows, columns = -(-(height + top) // cell), -(-(width + left) // cell)
    turn = rng.integers(1, 4, size=(rows, columns))  # bit 0: left to right, bit 1: upside down
    turn = np.where(rng.uniform(size=(rows, columns)) < share, turn, 0)
    # cells get uneven borders: straight ones would give the grid away
    y, x = np.mgrid[top : top + height, left : left + width]
    uneven_y, uneven_x = (0.15 * cell * noise_field(rng, (height, width), 2.0) for _ in range(2))
    row = np.clip(np.floor((y + uneven_y) / cell).astype(int), 0, rows - 1)
    column = np.clip(np.floor((x + uneven_x) / cell).astype(int), 0, columns - 1)
    here = turn[row, column]
    from_y = np.where(here & 2, 2 * row * cell + cell - 1 - y, y) - top
    from_x = np.where(here & 1, 2 * column * cell + cell - 1 - x, x) - left
    from_y, from_x = (np.abs(np.where(at >= n, 2 * n - 2 - at, at)) for at, n in ((from_y, height), (from_x, width)))
    high = image - low
    return low + _in_textured_places(high[from_y, from_x], high)


def strokes(image: FloatImage, *, seed: int, cutoff: float, length: float, thickness: float, amount: float) -> FloatImage:
    """Invented hairs, wood grain and brush fibres that follow the contours: the signature of real-world GAN SR on texture.

    Noise drawn out over ``length`` px (σ) along the local direction, ``thickness`` px (σ) across, takes the place of what is
    finer than ``cutoff`` px by ``amount``, at that band's local strength and in its local colours.
    """
    low = smooth(image, cutoff)
    high = image - low
    flow = orientation(luma(image), 1.0, 3.0)
    fibres = along_flow(_sparse_noise(seed, image.shape[:2], thickness), flow.tangent, length, step=1.5)
    invented = coloured_like(fibres - smooth(fibres, cutoff), high)
    return low + _in_textured_places(invented, high, amount)


def redrawn(image: FloatImage, *, seed: int, cutoff: float, fibre: float) -> FloatImage:
    """Contours redrawn crisp and rounded, detail between them invented: how BSRGAN and Real-ESRGAN restore unknown degradations.

    The image blurred by ``cutoff`` px gets its edges back by shock filtering along the contours; of the strength still missing,
    a share ``fibre`` is filled up by invented fibres, the rest by contrast.
    """
    flow = orientation(luma(image), max(0.8, 0.4 * cutoff), 2.5)
    noise = _sparse_noise(seed, image.shape[:2], 0.5)
    flowing = along_flow(np.concatenate([smooth(image, cutoff), noise[..., None]], axis=-1), flow.tangent, 1.0 + cutoff, step=1.5)
    drawn, fibres = flowing[..., :3], flowing[..., 3]
    for _ in range(2):
        drawn = crispen(drawn, scale=0.8, reach=0.7 * cutoff)
    low = smooth(image, 2.0)
    wanted = strength(image - low)
    contours = drawn - smooth(drawn, 2.0)
    missing = np.sqrt(np.maximum(wanted**2 - strength(contours) ** 2, 0)) * texture_share(image - low)
    fibres = fibres - smooth(fibres, 2.0)
    fibres *= np.float32(fibre) * missing / (strength(fibres) + np.float32(1e-3))
    return low + with_strength_of(contours + fibres[..., None], wanted, limit=1.6)


def _in_textured_places(invented: FloatImage, high: FloatImage, amount: float = 1.0) -> FloatImage:
    """``high``, replaced where it is texture by ``invented`` (by ``amount``), at the local strength it had."""
    mixed = high + amount * texture_share(high)[..., None] * (invented - high)
    return with_strength_of(mixed, strength(high))


def _sparse_noise(seed: int, shape: tuple[int, ...], size: float) -> Field:
    """Noise with few strong grains of ``size`` px rather than many faint ones: drawn out, it makes single hairs."""
    noise = noise_field(np.random.default_rng(seed), shape, size)
    return noise * np.abs(noise)


def _window_spectra(image: Array, window: int) -> Spectra:
    """Spectra of windows half a window apart (root-Hann, twice applied: squares of neighbours add up to 1): R×C×K×N×(N/2+1)."""
    hop = window // 2
    rows, columns = (-(-side // hop) + 1 for side in image.shape[:2])
    after = ((rows + 1) * hop - hop - image.shape[0], (columns + 1) * hop - hop - image.shape[1])
    padded = np.pad(image, ((hop, after[0]), (hop, after[1]), (0, 0)), mode="symmetric")
    frames = np.lib.stride_tricks.sliding_window_view(padded, (window, window), axis=(0, 1))[::hop, ::hop]
    spectra: Spectra = fft.rfft2(frames * _taper(window), axes=(-2, -1))
    return spectra


def _from_window_spectra(spectra: Spectra, window: int, shape: tuple[int, ...]) -> Array:
    """The image of H×W×K whose `_window_spectra` these are, when nothing was changed."""
    hop = window // 2
    frames = fft.irfft2(spectra, s=(window, window), axes=(-2, -1)) * _taper(window)
    rows, columns, channels = frames.shape[:3]
    total = np.zeros((rows + 1, hop, columns + 1, hop, channels), dtype=np.float32)
    for down in (0, 1):
        for right in (0, 1):
            part = frames[..., down * hop : (down + 1) * hop, right * hop : (right + 1) * hop]
            total[down : down + rows, :, right : right + columns] += part.transpose(0, 3, 1, 4, 2)
    whole = total.reshape((rows + 1) * hop, (columns + 1) * hop, channels)
    return whole[hop : hop + shape[0], hop : hop + shape[1]]


def _taper(window: int) -> Array:
    root = np.sqrt(np.hanning(window + 1)[:window]).astype(np.float32)
    return root[:, None] * root
