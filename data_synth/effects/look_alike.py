"""Detail of look-alike patches: example-based super-resolution (Freeman, Jones and Pasztor, 2002) as hallucination."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from data_synth.effects.fields import Array, coloured_like, smooth, strength, texture_share, with_strength_of
from data_synth.images import Field, FloatImage, luma

_SAMPLES = 5  # a patch's low band is compared on this many points a side
_DIMENSIONS = 8  # of the search, after principal components
_CHOICES = 3  # one of this many nearest neighbours is taken
_SEEN = 12  # neighbours looked through where near ones are excluded
_STRIDE = 4  # px between the patches on offer

Places = npt.NDArray[np.int64]
"""N×2 top left corners (row, column) in px."""


def look_alike(image: FloatImage, *, donor: FloatImage | None, seed: int, cutoff: float) -> FloatImage:
    """Plausible detail that belongs elsewhere: another window's bars, another animal's fur, what a generative prior remembers.

    What is finer than ``cutoff`` px is replaced, patch by patch, by the detail of a patch whose low band looks alike, taken from
    ``donor`` (the image itself when None, then never from nearby), fitted in contrast, and brought to the local strength there
    was.

    Args:
        image: H×W×3 float32.
        donor: a same-size photo to take detail from.
        seed: decides which of the nearest look-alikes is taken.
        cutoff: Gaussian (px) between what stays and what is replaced.
    """
    source = image if donor is None else donor
    patch, ramp = 2 * round(cutoff) + 6, 4
    low, source_low = smooth(image, cutoff), smooth(source, cutoff)
    high, source_high = image - low, source - source_low
    hop = patch - ramp
    wanted_places = _places(image.shape[:2], patch, hop)
    offered_places = _places(source.shape[:2], patch, _STRIDE)
    wanted, wanted_contrast = _describe(low, strength(high), wanted_places, patch)
    offered, offered_contrast = _describe(source_low, strength(source_high), offered_places, patch)
    exclusion = 0.8 * patch if donor is None else 0.0
    chosen = _nearest(wanted, offered, wanted_places, offered_places, exclusion, np.random.default_rng(seed))
    agreement = np.einsum("nd,nd->n", wanted[:, : _SAMPLES**2], offered[chosen, : _SAMPLES**2]) / _SAMPLES**2
    gain = np.clip(wanted_contrast / offered_contrast[chosen], 0.3, 2) * np.clip(agreement, 0.2, 1)
    invented = _lay(luma(source_high), offered_places[chosen], wanted_places, gain, patch, ramp, image.shape[:2])
    mixed = high + texture_share(high)[..., None] * (coloured_like(invented, high) - high)
    return low + with_strength_of(mixed, strength(high))


def _places(shape: tuple[int, ...], patch: int, step: int) -> Places:
    """A grid of patch corners that covers the image, the last row and column flush with its border."""
    rows, columns = (np.unique(np.append(np.arange(0, side - patch, step), side - patch)) for side in shape)
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)


def _describe(low: FloatImage, detail: Array, places: Places, patch: int) -> tuple[Array, Array]:
    """Descriptors of patches, N×D, and their contrast, N: shape of the low band, mean colour, strength of the detail."""
    at = np.linspace(0, patch - 1, _SAMPLES).round().astype(int)
    rows, columns = places[:, 0, None, None] + at[:, None], places[:, 1, None, None] + at[None, :]
    shape = luma(low)[rows, columns].reshape(len(places), -1)
    colour = low[rows[:, ::2, 0][:, :, None], columns[:, 0, ::2][:, None, :]].mean(axis=(1, 2))
    shape = shape - shape.mean(axis=1, keepdims=True)
    contrast = shape.std(axis=1) + np.float32(0.02)
    middle = (places + patch // 2).T
    texture = np.log(detail[middle[0], middle[1]] + np.float32(0.01))
    level = np.log(contrast)
    parts = [shape / contrast[:, None], 1.5 * colour, 1.5 * texture[:, None], 1.0 * level[:, None]]
    return np.concatenate(parts, axis=1).astype(np.float32), contrast.astype(np.float32)


def _nearest(
    wanted: Array, offered: Array, wanted_places: Places, offered_places: Places, exclusion: float, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """For each wanted patch one of its nearest look-alikes at least ``exclusion`` px away (the farthest seen if none is)."""
    centre = offered.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov(offered - centre, rowvar=False))
    project = axes[:, -_DIMENSIONS:]
    tree = cKDTree((offered - centre) @ project, balanced_tree=False)
    count = min(len(offered), _SEEN if exclusion > 0 else _CHOICES)
    _, found = tree.query((wanted - centre) @ project, k=range(1, count + 1), eps=0.8)
    if exclusion > 0:
        apart = np.hypot(*(offered_places[found] - wanted_places[:, None]).transpose(2, 0, 1))
        rank = np.where(apart >= exclusion, 0, 1e6 - apart) + np.arange(count)
        found = np.take_along_axis(found, np.argsort(rank, axis=1, kind="stable"), axis=1)
        usable = np.clip((apart >= exclusion).sum(axis=1), 1, _CHOICES)
    else:
        usable = np.full(len(wanted), min(count, _CHOICES))
    pick = (rng.uniform(size=len(wanted)) * usable).astype(int)
    return found[np.arange(len(wanted)), pick]


def _lay(source: Field, sources: Places, targets: Places, gain: Array, patch: int, ramp: int, shape: tuple[int, ...]) -> Field:
    """Copy patches ``sources`` → ``targets``, multiplied by ``gain``, blended over ``ramp`` px where they overlap."""
    edge = np.minimum(np.arange(patch) + 1, np.arange(patch)[::-1] + 1) / (ramp + 1)
    flank = np.clip(edge, 0, 1).astype(np.float32)
    window = np.broadcast_to(flank[:, None] * flank, (len(targets), patch, patch))
    inside = np.arange(patch)
    pieces = source[sources[:, 0, None, None] + inside[:, None], sources[:, 1, None, None] + inside]
    pixels = ((targets[:, 0, None, None] + inside[:, None]) * shape[1] + targets[:, 1, None, None] + inside).ravel()
    count = shape[0] * shape[1]
    total = np.bincount(pixels, (pieces * window * gain[:, None, None]).ravel(), count)
    return (total / np.bincount(pixels, window.ravel(), count)).reshape(shape).astype(np.float32)
