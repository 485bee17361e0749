"""Masks m: where I_SR replaces I_GT. A drawn `MaskRecipe` (plain data) is rendered to pixels, the same every time.

Drawn shapes are cut at the level that gives the wanted area; superpixels, graph segments and a segmentation model's segments are
taken whole where they come near it. No mask is empty. Knows nothing about artefacts or maps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from data_synth.draws import DrawError, between, check_probability, check_range, choose, integer_between
from data_synth.images import Field, FloatImage
from data_synth.schema.errors import FinpercepError
from data_synth.segments import Labels, Segments, graph_segments, superpixels
from data_synth.shapes import DRAWN_SHAPES, Inside, largest, mixed_potential, shape_potential

Shape = Literal["blob", "polygon", "ellipse", "box", "stroke", "mixed", "superpixels", "graph_segments", "segments"]
SHAPES: tuple[Shape, ...] = get_args(Shape)

LEAST_WHOLE, MOST_WHOLE = 0.75, 1.33
"""Whole segments are taken as they are when their area is between these times the wanted one."""
_NEAR = 0.9
_REDUCED_FROM = 64


class RegionError(FinpercepError):
    """A mask that cannot be drawn."""


def _default_weights() -> dict[Shape, float]:
    return {
        "blob": 2.0,
        "polygon": 1.0,
        "ellipse": 1.0,
        "box": 1.0,
        "stroke": 1.0,
        "mixed": 1.0,
        "superpixels": 1.5,
        "graph_segments": 1.5,
        "segments": 4.0,
    }


@dataclass(frozen=True)
class MaskConfig:
    """What `sample_mask` draws from.

    Attributes:
        shapes: relative weight of each kind of shape; kinds left out are not drawn. ``segments`` (whole objects of a segmentation
            model) counts only where there is such a model.
        area: share of the image at full strength, log-uniform.
        feather: width of the soft border around it, in px, uniform.
        hard: share of masks without a soft border.
        pieces: largest number of shapes in one mask (blobs and segments come in pieces by themselves).
    """

    shapes: Mapping[Shape, float] = field(default_factory=_default_weights)
    area: tuple[float, float] = (0.005, 0.6)
    feather: tuple[float, float] = (0.0, 6.0)
    hard: float = 0.5
    pieces: int = 3

    def __post_init__(self) -> None:
        unknown = [shape for shape in self.shapes if shape not in SHAPES]
        if unknown:
            raise DrawError(f"shapes must be among {', '.join(SHAPES)}, got {unknown[0]!r}")
        weights = self.shapes.values()
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
            raise DrawError(f"shapes needs weights of at least 0, one above, got {dict(self.shapes)}")
        check_range("area", self.area, math.ulp(0.0), 1)
        check_range("feather", self.feather, 0)
        check_probability("hard", self.hard)
        if not 1 <= self.pieces <= len(DRAWN_SHAPES):
            raise DrawError(f"pieces must lie in 1…{len(DRAWN_SHAPES)}, got {self.pieces}")


@dataclass(frozen=True)
class MaskRecipe:
    """A drawn mask: plain data, replayed exactly by `render_mask`. Units as in `MaskConfig`."""

    shape: Shape
    area: float
    feather: float
    pieces: int
    seed: int


def sample_mask(rng: np.random.Generator, config: MaskConfig, *, has_segments: bool = False) -> MaskRecipe:
    """Draw a mask. ``has_segments``: a segmentation model's segments will be there to render it.

    Raises:
        RegionError: ``segments`` is the only kind of shape, and there are none.
    """
    weights = {shape: float(config.shapes.get(shape, 0.0)) for shape in SHAPES if has_segments or shape != "segments"}
    total = sum(weights.values())
    if not total:
        raise RegionError("masks are to be segments alone, but there is no segmentation model; name one, or other shapes")
    u = rng.uniform(size=5)
    low, high = config.area
    shape = choose(u[0], tuple(weights), [weight / total for weight in weights.values()])
    return MaskRecipe(
        shape=shape,
        area=min(max(math.exp(between(u[1], (math.log(low), math.log(high)))), low), high),
        feather=0.0 if u[2] < config.hard else between(u[3], config.feather),
        pieces=integer_between(
            u[4], (2 if shape == "mixed" else 1, max(2, config.pieces) if shape == "mixed" else config.pieces)
        ),
        seed=int(rng.integers(2**31)),
    )


def render_mask(recipe: MaskRecipe, photo: FloatImage, segments: Segments | None = None) -> Field:
    """Draw the mask for ``photo``.

    Args:
        recipe: what to draw.
        photo: H×W×3 float32 in [0, 1]; superpixels and graph segments look at its content, nothing else does.
        segments: bool K×H×W of a segmentation model, for the shape ``segments``. Where none comes near the area (or K = 0),
            superpixels take their place.

    Returns:
        H×W float32 in [0, 1]: 1 on the share ``area`` of the pixels (of whole segments: 0.75 to 1.33 times that), falling
        linearly to exactly 0 over ``feather`` px outside.

    Raises:
        RegionError: the area is outside (0, 1], or less than a pixel; or the shape needs segments of this size.
    """
    size = (photo.shape[0], photo.shape[1])
    count = round(recipe.area * size[0] * size[1])
    if not 1 <= count <= size[0] * size[1]:
        raise RegionError(
            f"a mask must cover 1 to {size[0] * size[1]} px of {size[1]}x{size[0]}, got area {recipe.area}; change the area"
        )
    return _feather(_inside(recipe, photo, segments, size, count), recipe.feather)


def _inside(recipe: MaskRecipe, photo: FloatImage, segments: Segments | None, size: tuple[int, int], count: int) -> Inside:
    rng = np.random.default_rng(recipe.seed)
    if recipe.shape == "segments":
        if segments is None or segments.shape[1:] != size:
            got = "none" if segments is None else f"K×{segments.shape[1]}×{segments.shape[2]}"
            raise RegionError(
                f"mask of segments: expected K×{size[0]}×{size[1]}, got {got}; run the segmentation model on the crop"
            )
        found = _whole_objects(rng, segments, count)
        if found is not None:
            return found
        rng = np.random.default_rng(recipe.seed)
    if recipe.shape == "superpixels" or recipe.shape == "graph_segments" or recipe.shape == "segments":
        return _of_content(recipe, rng, photo, count)
    if recipe.shape == "mixed":
        return largest(mixed_potential(rng, size, recipe.area, recipe.pieces), count)
    return largest(shape_potential(recipe.shape, rng, size, recipe.area, recipe.pieces), count)


def _feather(inside: Inside, width: float) -> Field:
    """The border lies outside the region, so that a small region still reaches full strength.

    Euclidean distance, exact as far as the border reaches: the two passes of Felzenszwalb and Huttenlocher (2012), cut short.
    """
    if width <= 0:
        return inside.astype(np.float32)
    reach = math.ceil(width)
    squared = np.where(inside, 0, 4 * (reach + 1) ** 2).astype(np.int32)
    for lines in (squared, squared.T):
        before = lines.copy()
        for step in range(1, min(reach, len(lines) - 1) + 1):
            np.minimum(lines[step:], before[:-step] + step * step, out=lines[step:])
            np.minimum(lines[:-step], before[step:] + step * step, out=lines[:-step])
    return np.clip(1 - np.sqrt(squared) / (width + 1), 0, 1).astype(np.float32)


# -- whole segments -----------------------------------------------------------------------------------------------------


def _of_content(recipe: MaskRecipe, rng: np.random.Generator, photo: FloatImage, count: int) -> Inside:
    """Superpixels or graph segments. Segmented at half the size, four times as fast; outlines are rounded back to full size."""
    step = 2 if min(photo.shape[:2]) >= _REDUCED_FROM else 1
    reduced = _halved(photo) if step == 2 else photo
    share, wanted = count / photo[..., 0].size, max(1, round(count / step**2))
    if recipe.shape == "graph_segments":
        scale, least = math.exp(rng.uniform(math.log(50), math.log(400))), rng.uniform(0.05, 0.3)
        labels = graph_segments(reduced, scale, max(8, round(least * wanted)))
    else:
        labels = superpixels(reduced, int(np.clip(rng.uniform(2, 6) / share, 12, 200)))
    chosen, is_whole = _neighbours(rng, labels, wanted)
    if step == 1:
        return chosen
    full = chosen.astype(np.float32).repeat(2, axis=0).repeat(2, axis=1)
    padding = [(0, side - covered) for side, covered in zip(photo.shape[:2], full.shape, strict=True)]
    smooth = ndimage.gaussian_filter(np.pad(full, padding, mode="edge"), 1.2, truncate=2.5)
    covered = np.count_nonzero(chosen) * photo[..., 0].size / chosen.size if is_whole else count
    return largest(smooth, min(max(1, round(covered)), smooth.size))


def _halved(photo: FloatImage) -> FloatImage:
    """Means of 2×2 px; an odd last line or column is left out."""
    height, width = (side // 2 for side in photo.shape[:2])
    return photo[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3).mean(axis=(1, 3), dtype=np.float32)


def _neighbours(rng: np.random.Generator, labels: Labels, count: int) -> tuple[Inside, bool]:
    """Segments around one drawn at random, whole, of about ``count`` px; and whether they are whole.

    Where whole segments miss the area (SLIC merges noise into huge ones), nearest first, the last is cut to fit.
    """
    flat = labels.ravel()
    sizes = np.bincount(flat)
    y, x = np.mgrid[: labels.shape[0], : labels.shape[1]].astype(np.float32)
    cy, cx = (np.bincount(flat, weights=axis.ravel()) / np.maximum(sizes, 1) for axis in (y, x))
    start = _start(rng, sizes, count)
    order = np.argsort(np.hypot(cy - cy[start], cx - cx[start]), kind="stable")
    taken = np.zeros(len(sizes), dtype=bool)
    covered = 0
    for segment in order.tolist():
        if abs(covered + sizes[segment] - count) < abs(covered - count):
            taken[segment] = True
            covered += int(sizes[segment])
        if covered >= _NEAR * count:
            break
    if LEAST_WHOLE <= covered / count <= MOST_WHOLE:
        return taken[labels], True
    rank = np.empty(len(order), dtype=np.float32)
    rank[order] = np.arange(len(order))
    potential = -(rank[labels] * 10 * max(labels.shape) + np.hypot(y - np.float32(cy[start]), x - np.float32(cx[start])))
    return largest(potential, count), False


def _whole_objects(rng: np.random.Generator, segments: Segments, count: int) -> Inside | None:
    """A segment drawn at random and its neighbours, until their union is nearest to ``count`` px; None when it is not near.

    Larger ones that still fit are likelier to start, so that most masks are one thing.
    """
    sizes = np.count_nonzero(segments, axis=(1, 2))
    if not np.any((sizes > 0) & (sizes <= MOST_WHOLE * count)):
        return None
    centres = np.stack([_middle(np.any(segments, axis=2)), _middle(np.any(segments, axis=1))], axis=-1)
    start = _start(rng, sizes, count)
    inside = np.zeros(segments.shape[1:], dtype=bool)
    covered = 0
    for segment in np.argsort(np.hypot(*(centres - centres[start]).T), kind="stable").tolist():
        union = inside | segments[segment]
        grown = int(np.count_nonzero(union))
        if abs(grown - count) < abs(covered - count):
            inside, covered = union, grown
        if covered >= _NEAR * count:
            break
    return inside if LEAST_WHOLE <= covered / count <= MOST_WHOLE else None


def _middle(occupied: Any) -> npt.NDArray[np.float64]:
    """Middle of the occupied positions of each row, K×N bool → K."""
    return (occupied * np.arange(occupied.shape[1])).sum(axis=1) / np.maximum(occupied.sum(axis=1), 1)


def _start(rng: np.random.Generator, sizes: npt.NDArray[np.integer], count: int) -> int:
    """A segment that fits into ``count`` px, by size; any when none does."""
    weights = np.where(sizes <= MOST_WHOLE * count, sizes, 0).astype(np.float64)
    if not weights.any():
        weights = (sizes > 0).astype(np.float64)
    return int(rng.choice(len(sizes), p=weights / weights.sum()))
