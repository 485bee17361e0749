"""Masks m: where I_SR replaces I_GT. A drawn `MaskRecipe` (plain data) is rendered to pixels, the same every time.

Every shape is drawn as a potential, high inside, and cut at the level that gives the wanted area, so a mask's area is what its
recipe says, and no mask is empty. Knows nothing about artefacts or maps. SAM masks come with a later issue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from data_synth.degradations import FloatImage
from data_synth.schema.errors import FinpercepError

Field = npt.NDArray[np.float32]
"""H×W float32."""

_Axis = npt.NDArray[np.float64]

Shape = Literal["blob", "polygon", "ellipse", "box", "stroke", "superpixels"]
SHAPES: tuple[Shape, ...] = get_args(Shape)


class RegionError(FinpercepError):
    """A mask that cannot be drawn."""


@dataclass(frozen=True)
class MaskConfig:
    """What `sample_mask` draws from.

    Attributes:
        shapes: kinds of shape, equally likely.
        area: share of the image at full strength, log-uniform.
        feather: width of the soft border around it, in px, uniform; half of the masks have none.
        pieces: largest number of shapes in one mask (blobs and superpixels come in pieces by themselves).
    """

    shapes: tuple[Shape, ...] = SHAPES
    area: tuple[float, float] = (0.005, 0.6)
    feather: tuple[float, float] = (0.0, 6.0)
    pieces: int = 3


@dataclass(frozen=True)
class MaskRecipe:
    """A drawn mask: plain data, replayed exactly by `render_mask`. Units as in `MaskConfig`."""

    shape: Shape
    area: float
    feather: float
    pieces: int
    seed: int


def sample_mask(rng: np.random.Generator, config: MaskConfig) -> MaskRecipe:
    """Draw a mask."""
    shape = config.shapes[rng.integers(len(config.shapes))]
    area = float(np.exp(rng.uniform(*np.log(config.area))))
    feather = float(rng.uniform(*config.feather)) * int(rng.integers(2))
    pieces = int(rng.integers(1, config.pieces + 1))
    return MaskRecipe(shape, area, feather, pieces, int(rng.integers(2**31)))


def render_mask(recipe: MaskRecipe, photo: FloatImage) -> Field:
    """Draw the mask for ``photo`` (H×W×3 float32 in [0, 1]; only superpixels look at its content).

    Returns:
        H×W float32 in [0, 1]: 1 on the share ``area`` of the pixels, falling linearly to exactly 0 over ``feather`` px outside.

    Raises:
        RegionError: the area is outside (0, 1], or less than a pixel.
    """
    height, width = photo.shape[:2]
    count = round(recipe.area * height * width)
    if not 1 <= count <= height * width:
        raise RegionError(
            f"a mask must cover 1 to {height * width} px of {width}x{height}, got area {recipe.area}; change the area"
        )
    rng = np.random.default_rng(recipe.seed)
    if recipe.shape == "superpixels":
        inside = _superpixels(rng, photo, count)
    else:
        inside = _largest(_potential(recipe, rng, (height, width)), count)
    return _feather(inside, recipe.feather)


def _largest(potential: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.bool_]:
    """The ``count`` pixels of highest potential, ties in reading order: exact, whatever the shape."""
    order = np.argsort(-potential, axis=None, kind="stable")
    inside = np.zeros(potential.size, dtype=bool)
    inside[order[:count]] = True
    return inside.reshape(potential.shape)


def _feather(inside: npt.NDArray[np.bool_], width: float) -> Field:
    """The border lies outside the region, so that a small region still reaches full strength."""
    if width <= 0 or inside.all():
        return inside.astype(np.float32)
    distance = ndimage.distance_transform_edt(~inside)
    return np.clip(1 - distance / (width + 1), 0, 1).astype(np.float32)


def _potential(recipe: MaskRecipe, rng: np.random.Generator, size: tuple[int, int]) -> npt.NDArray[np.floating]:
    if recipe.shape == "blob":
        smoothness = min(size) * float(rng.uniform(0.04, 0.15))
        return ndimage.gaussian_filter(rng.standard_normal(size, dtype=np.float32), smoothness, mode="reflect", truncate=3.0)
    draw = {"polygon": _polygon, "ellipse": _ellipse, "box": _box, "stroke": _stroke}[recipe.shape]
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    reach = math.sqrt(recipe.area * size[0] * size[1] / recipe.pieces)
    parts = []
    for _ in range(recipe.pieces):
        cy, cx = rng.uniform(0.1, 0.9) * size[0], rng.uniform(0.1, 0.9) * size[1]
        parts.append(draw(rng, y - cy, x - cx, reach) * float(rng.uniform(0.7, 1.4)))
    return np.maximum.reduce(parts)


# Potentials of single shapes: coordinates relative to the shape's centre in px, `reach` about its side in px; 0 at the centre,
# −1 near the border a shape of that area would have, falling outwards.


def _turned(rng: np.random.Generator, y: _Axis, x: _Axis) -> tuple[_Axis, _Axis]:
    """Coordinates along the axes of a shape turned and stretched at random, area kept."""
    angle, stretch = rng.uniform(0, math.pi), math.exp(rng.uniform(-0.8, 0.8))
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    return along / stretch, across * stretch


def _ellipse(rng: np.random.Generator, y: _Axis, x: _Axis, reach: float) -> _Axis:
    u, v = _turned(rng, y, x)
    return -np.hypot(u, v) / reach


def _box(rng: np.random.Generator, y: _Axis, x: _Axis, reach: float) -> _Axis:
    if rng.uniform() < 0.5:  # upright, as cropped tiles and windows are
        stretch = math.exp(rng.uniform(-0.8, 0.8))
        u, v = x / stretch, y * stretch
    else:
        u, v = _turned(rng, y, x)
    return -np.maximum(np.abs(u), np.abs(v)) / reach


def _polygon(rng: np.random.Generator, y: _Axis, x: _Axis, reach: float) -> _Axis:
    """A star-shaped polygon with 3 to 9 corners at random radii."""
    corners = int(rng.integers(3, 10))
    angles = np.sort(rng.uniform(-math.pi, math.pi, corners))
    radii = rng.uniform(0.4, 1.0, corners)
    border = np.interp(np.arctan2(y, x), angles, radii, period=2 * math.pi)
    return -np.hypot(y, x) / border / reach


def _stroke(rng: np.random.Generator, y: _Axis, x: _Axis, reach: float) -> _Axis:
    """A bent brush stroke: minus the distance to a polyline that wanders from the centre."""
    distance = np.full(y.shape, np.inf)
    py, px, heading = 0.0, 0.0, rng.uniform(0, 2 * math.pi)
    for _ in range(int(rng.integers(2, 6))):
        heading += rng.uniform(-1.2, 1.2)
        length = reach * rng.uniform(0.3, 1.0)
        dy, dx = length * math.sin(heading), length * math.cos(heading)
        along = np.clip(((y - py) * dy + (x - px) * dx) / (length * length), 0, 1)
        distance = np.minimum(distance, np.hypot(y - py - along * dy, x - px - along * dx))
        py, px = py + dy, px + dx
    return -distance / reach


def _superpixels(rng: np.random.Generator, photo: FloatImage, count: int) -> npt.NDArray[np.bool_]:
    """Whole SLIC segments (Achanta et al., 2012), neighbours first, until the area is reached.

    Where whole segments miss the area by more than a third (SLIC merges noise into huge ones), the last is cut to fit.
    """
    from skimage.segmentation import slic

    segments = int(np.clip(float(rng.uniform(2, 6)) * photo[..., 0].size / count, 12, 200))
    labels = slic(photo, n_segments=segments, compactness=8.0, start_label=0, channel_axis=-1, max_num_iter=5)
    sizes = np.bincount(labels.ravel())
    y, x = np.mgrid[: photo.shape[0], : photo.shape[1]]
    cy, cx = (np.bincount(labels.ravel(), weights=axis.ravel()) / np.maximum(sizes, 1) for axis in (y, x))
    start = rng.integers(len(sizes))
    order = np.argsort(np.hypot(cy - cy[start], cx - cx[start]), kind="stable")
    covered = np.cumsum(sizes[order])
    last = int(np.argmin(np.abs(covered - count)))
    if 0.75 <= covered[last] / count <= 1.33:
        return np.isin(labels, order[: last + 1])
    rank = np.empty(len(order))
    rank[order] = np.arange(len(order))
    return _largest(-(rank[labels] * 10.0 * max(labels.shape) + np.hypot(y - cy[start], x - cx[start])), count)
