"""Where a degradation map is bad: connected regions over a threshold. Knows nothing about models or images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

DEFAULT_THRESHOLD = 0.2
"""Near where the packaged ladder's map and the ground truth's cover the same pixels best (0.17, weights/ladder/README.md)."""

DEFAULT_MIN_AREA = 16


@dataclass(frozen=True)
class Region:
    """A connected region of degradation.

    Attributes:
        box: x0, y0, x1, y1 in px; x1 and y1 are exclusive.
        area: pixels in the region (not in its box).
        mean: mean degradation inside the region, in [0, 1].
        peak: largest degradation inside the region, in [0, 1].
    """

    box: tuple[int, int, int, int]
    area: int
    mean: float
    peak: float


def find_regions(
    degradation_map: torch.Tensor | npt.NDArray[Any],
    threshold: float = DEFAULT_THRESHOLD,
    min_area: int = DEFAULT_MIN_AREA,
) -> tuple[Region, ...]:
    """Connected regions (8 neighbours) where the map is at least ``threshold``, the largest total degradation first.

    Args:
        degradation_map: (H, W), in [0, 1], 1 = degraded.
        threshold: degradation from which a pixel counts.
        min_area: smaller regions are left out; in px.
    """
    from scipy import ndimage  # slow to import, and clients need `Region` alone

    if isinstance(degradation_map, torch.Tensor):
        degradation_map = degradation_map.detach().cpu().numpy()
    values = np.asarray(degradation_map)
    labels, count = ndimage.label(values >= threshold, structure=np.ones((3, 3), dtype=bool))  # int32: as large as a float32 map
    areas = _areas(labels, count)
    boxes = ndimage.find_objects(labels)
    found = []
    for label in (label for label in range(1, count + 1) if areas[label] >= min_area):
        box = boxes[label - 1]
        inside = labels[box] == label
        total = float(values[box].sum(dtype=np.float64, where=inside))
        peak = float(values[box].max(where=inside, initial=-np.inf))
        mean = min(total / int(areas[label]), peak)  # rounding may put a mean above its peak
        found.append((total, Region(box=_corners(box), area=int(areas[label]), mean=mean, peak=peak)))
    found.sort(key=lambda entry: -entry[0])  # stable: of equals, the one further up comes first
    return tuple(region for _, region in found)


def _areas(labels: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.int64]:
    """Pixels of every label from 0 to ``count``; in bands of rows, because counting makes its input 64 bits wide."""
    areas = np.zeros(count + 1, dtype=np.int64)
    for band in np.array_split(labels, max(1, labels.size // 2**22)):
        found = np.bincount(band.ravel())
        areas[: len(found)] += found
    return areas


def _corners(box: tuple[slice, slice]) -> tuple[int, int, int, int]:
    rows, columns = box
    return int(columns.start), int(rows.start), int(columns.stop), int(rows.stop)
