"""Drawn shapes of masks, as potentials: fields that are high inside a shape and fall outwards, to be cut at some level.

The level decides the area, so a shape's area is chosen afterwards and exactly (`largest`). Knows nothing about photos.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import fft

from data_synth.images import Field

Inside = npt.NDArray[np.bool_]
"""H×W bool."""
Potential = npt.NDArray[np.floating[Any]]
"""H×W, high inside a shape, falling outwards."""

DrawnShape = Literal["blob", "polygon", "ellipse", "box", "stroke"]
DRAWN_SHAPES: tuple[DrawnShape, ...] = get_args(DrawnShape)


def largest(potential: Potential, count: int) -> Inside:
    """The ``count`` pixels of highest potential, ties in reading order: exact, whatever the shape."""
    values = potential.ravel()
    level = np.partition(values, values.size - count)[values.size - count]
    inside = values > level
    ties = np.flatnonzero(values == level)
    inside[ties[: count - np.count_nonzero(inside)]] = True
    return inside.reshape(potential.shape)


def shape_potential(shape: DrawnShape, rng: np.random.Generator, size: tuple[int, int], area: float, pieces: int) -> Potential:
    """Potential H×W of ``pieces`` shapes that cover about ``area`` of the image together (blobs come in pieces by themselves)."""
    if shape == "blob":
        return _blob(rng, size)
    draw = {"polygon": _polygon, "ellipse": _ellipse, "box": _box, "stroke": _stroke}[shape]
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    reach = math.sqrt(area * size[0] * size[1] / pieces)
    parts = []
    for _ in range(pieces):
        cy, cx = (np.float32(rng.uniform(0.1, 0.9) * side) for side in size)
        parts.append(draw(rng, y - cy, x - cx, reach) * np.float32(rng.uniform(0.7, 1.4)))
    return np.maximum.reduce(parts)


def mixed_potential(rng: np.random.Generator, size: tuple[int, int], area: float, pieces: int) -> Potential:
    """Potential H×W of ``pieces`` different shapes at once, sharing ``area`` evenly before they overlap."""
    count = max(1, round(area * size[0] * size[1] / pieces))
    parts = []
    for shape in rng.choice(len(DRAWN_SHAPES), size=pieces, replace=False):
        potential = shape_potential(DRAWN_SHAPES[shape], rng, size, area / pieces, 1)
        level = np.partition(potential, potential.size - count, axis=None)[potential.size - count]
        # Zero where the shape ends, and one scale for all: growing to make up for overlaps, they grow alike.
        parts.append((potential - level) / max(float(potential.std()), 1e-12))
    return np.maximum.reduce(parts)


def _blob(rng: np.random.Generator, size: tuple[int, int]) -> Field:
    """Smooth noise; its edges wrap around, which nobody sees and a Fourier transform does fast."""
    smoothness = min(size) * float(rng.uniform(0.04, 0.15))
    fy, fx = fft.fftfreq(size[0])[:, None], fft.rfftfreq(size[1])[None, :]
    transfer = np.exp(-2 * (math.pi * smoothness) ** 2 * (fy**2 + fx**2)).astype(np.float32)
    noise = fft.rfft2(rng.standard_normal(size, dtype=np.float32))
    blob: Field = fft.irfft2(noise * transfer, s=size)
    return blob


# Single shapes: coordinates relative to the shape's centre in px, `reach` about its side in px; 0 at the centre,
# −1 near the border a shape of that area would have, falling outwards.


def _turned(rng: np.random.Generator, y: Potential, x: Potential) -> tuple[Potential, Potential]:
    """Coordinates along the axes of a shape turned and stretched at random, area kept."""
    angle, stretch = rng.uniform(0, math.pi), math.exp(rng.uniform(-0.8, 0.8))
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return (x * cos + y * sin) / np.float32(stretch), (y * cos - x * sin) * np.float32(stretch)


def _ellipse(rng: np.random.Generator, y: Potential, x: Potential, reach: float) -> Potential:
    u, v = _turned(rng, y, x)
    return -np.hypot(u, v) / np.float32(reach)


def _box(rng: np.random.Generator, y: Potential, x: Potential, reach: float) -> Potential:
    if rng.uniform() < 0.5:  # upright, as cropped tiles and windows are
        stretch = np.float32(math.exp(rng.uniform(-0.8, 0.8)))
        u, v = x / stretch, y * stretch
    else:
        u, v = _turned(rng, y, x)
    return -np.maximum(np.abs(u), np.abs(v)) / np.float32(reach)


def _polygon(rng: np.random.Generator, y: Potential, x: Potential, reach: float) -> Potential:
    """A star-shaped polygon with 3 to 9 corners at random radii: in the sector of each side a plane, so sides are straight."""
    corners = int(rng.integers(3, 10))
    # Far enough from evenly spaced to look random, near enough that no sector reaches half a turn.
    angles = np.sort(
        (np.arange(corners) + rng.uniform(-0.2, 0.2, corners) + rng.uniform()) * (2 * math.pi / corners) % (2 * math.pi)
    )
    corner = rng.uniform(0.4, 1.0, (corners, 1)) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    sides = np.stack([corner, np.roll(corner, -1, axis=0)], axis=1)
    planes = np.linalg.solve(sides, np.ones((corners, 2, 1)))[..., 0].astype(np.float32)
    # Index −1, before the first corner, is the side from the last corner to the first.
    sector = np.searchsorted(angles, np.arctan2(y, x) % np.float32(2 * math.pi), side="right") - 1
    return -(planes[sector, 0] * x + planes[sector, 1] * y) / np.float32(reach)


def _stroke(rng: np.random.Generator, y: Potential, x: Potential, reach: float) -> Potential:
    """A bent brush stroke: minus the distance to a polyline that wanders from the centre."""
    squared = np.full(y.shape, np.inf, dtype=np.float32)
    py, px, heading = 0.0, 0.0, rng.uniform(0, 2 * math.pi)
    for _ in range(int(rng.integers(2, 6))):
        heading += rng.uniform(-1.2, 1.2)
        length = reach * rng.uniform(0.3, 1.0)
        dy, dx = length * math.sin(heading), length * math.cos(heading)
        ry, rx = y - np.float32(py), x - np.float32(px)
        along = np.clip((ry * np.float32(dy) + rx * np.float32(dx)) / np.float32(length * length), 0, 1)
        ry -= along * np.float32(dy)
        rx -= along * np.float32(dx)
        np.minimum(squared, ry * ry + rx * rx, out=squared)
        py, px = py + dy, px + dx
    return -np.sqrt(squared) / np.float32(reach)
