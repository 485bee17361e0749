"""Letters regenerated: marks that look like writing, in the colours and the contrast of what stood there."""

from __future__ import annotations

import math

import numpy as np

from data_synth.effects.fields import (
    Array,
    coloured_like,
    displace,
    displacement_field,
    noise_field,
    smooth,
    smooth_coarsely,
    strength,
    texture_share,
    with_strength_of,
)
from data_synth.images import Field, FloatImage, luma

_ALPHABET = 48  # marks drawn a call
_STROKES = 4  # at most, in a mark


def glyphs(image: FloatImage, *, seed: int, height: int, weight: float, slant: float, share: float) -> FloatImage:
    """Letters that are none: SR's well-known failure on text, and small signs, plates and ornaments turned into scribble.

    Where the image has strong fine structure, rows of invented marks ``height`` px high with strokes of ``weight`` px (leaning by
    ``slant`` rad) take the place of the detail, at its contrast and in its colours, dark on light or light on dark as before.
    ``share`` is the part of the image so redrawn, the likeliest places first.
    """
    rng = np.random.default_rng(seed)
    shape = image.shape[:2]
    ink = _writing(rng, shape, height, weight, slant)
    ink = displace(ink, displacement_field(rng, shape, 2.0 * height, 0.12 * height))
    low = smooth(image, 0.2 * height)
    high = image - low
    mask = _likely_places(high, rng, height, share)[..., None]
    marks = _polarity(high, height) * (ink - smooth(ink, 0.2 * height))
    return image + mask * (with_strength_of(coloured_like(marks, high), strength(high)) - high)


def _likely_places(high: FloatImage, rng: np.random.Generator, height: int, share: float) -> Field:
    """Soft mask over ``share`` of the image: fine contrast first, with some chance in it. Nested as ``share`` grows."""
    contrast = strength(high, 0.5 * height)
    texture = texture_share(high)
    score = np.log(contrast * texture + np.float32(0.003))
    score = score + np.float32(0.25) * noise_field(rng, high.shape[:2], 1.5 * height)
    chosen = smooth((score > np.quantile(score, 1 - share)).astype(np.float32), 0.8)
    return chosen * texture


def _polarity(high: FloatImage, height: int) -> Field:
    """Whether fine marks are lighter (towards 1) or darker (towards −1) than their ground here: the sign of the skewness."""
    grey = luma(high)
    skewness = smooth_coarsely(grey**3, height) / (smooth_coarsely(grey * grey, height) ** 1.5 + np.float32(1e-6))
    return np.tanh(20 * skewness)


def _writing(rng: np.random.Generator, shape: tuple[int, ...], height: int, weight: float, slant: float) -> Field:
    """A sheet of rows of marks, H×W, 1 = ink."""
    advance = max(4, round(0.72 * height))
    pitch = height + max(2, height // 4)
    alphabet = _alphabet(rng, height, advance, weight, slant)
    rows, columns = -(-shape[0] // pitch) + 1, -(-shape[1] // advance) + 1
    choice = rng.integers(_ALPHABET, size=(rows, columns))
    is_gap = rng.uniform(size=(rows, columns)) < 0.12
    cells = np.where(is_gap[..., None, None], 0, alphabet[choice])
    cells = np.pad(cells, ((0, 0), (0, 0), (0, pitch - height), (0, 0)))
    sheet = cells.transpose(0, 2, 1, 3).reshape(rows * pitch, columns * advance)
    top, left = int(rng.integers(pitch)), int(rng.integers(advance))
    return np.ascontiguousarray(np.roll(sheet, (top, left), axis=(0, 1))[: shape[0], : shape[1]], dtype=np.float32)


def _alphabet(rng: np.random.Generator, height: int, advance: int, weight: float, slant: float) -> Array:
    """Marks of stems, bars, diagonals and bows, `_ALPHABET`×height×advance, 1 = ink, antialiased."""
    y, x = np.meshgrid(np.arange(height) + 0.5, np.arange(advance) + 0.5, indexing="ij")
    points = np.stack([y, x + (y - height / 2) * math.tan(slant)], axis=-1).astype(np.float32)
    margin = weight / 2 + 0.4
    knots = rng.integers(3, size=(_ALPHABET, _STROKES, 2, 2))
    knots[:, :, 1] = np.where((knots[:, :, :1] == knots[:, :, 1:]).all(axis=-1), (knots[:, :, 0] + (1, 2)) % 3, knots[:, :, 1])
    corner, far = np.array([margin, margin]), np.array([height - margin, advance - margin - 0.6])
    start, end = np.moveaxis(corner + knots / 2 * (far - corner), 2, 0).astype(np.float32)
    side = (end - start)[..., ::-1] * np.array([1, -1], dtype=np.float32)
    bow = rng.choice([0.0, 0.0, 0.35, -0.35], size=(_ALPHABET, _STROKES, 1)).astype(np.float32)
    middle = (start + end) / 2 + bow * side
    distance = np.minimum(_to_segment(points, start, middle), _to_segment(points, middle, end))
    # marks have two to four strokes
    distance[np.arange(_STROKES) >= rng.integers(2, _STROKES + 1, size=(_ALPHABET, 1))] = np.inf
    return np.clip(weight / 2 + 0.5 - distance.min(axis=1), 0, 1)


def _to_segment(points: Array, a: Array, b: Array) -> Array:
    """Distances of H×W points to M×S segments from ``a`` to ``b``: M×S×H×W."""
    leg = b - a
    offset = points - a[..., None, None, :]
    along = np.einsum("mshwc,msc->mshw", offset, leg) / ((leg * leg).sum(-1)[..., None, None] + np.float32(1e-6))
    rest = offset - np.clip(along, 0, 1)[..., None] * leg[..., None, None, :]
    return np.sqrt(np.einsum("mshwc,mshwc->mshw", rest, rest))
