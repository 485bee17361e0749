"""Where a degradation map is bad: connected regions over a threshold. Knows nothing about models or images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

DEFAULT_THRESHOLD = 0.5
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
    values = np.asarray(degradation_map, dtype=np.float64)
    labels, count = ndimage.label(values >= threshold, structure=np.ones((3, 3), dtype=bool))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    totals = np.bincount(labels.ravel(), weights=values.ravel(), minlength=count + 1)
    boxes = ndimage.find_objects(labels)
    kept = [label for label in range(1, count + 1) if areas[label] >= min_area]
    kept.sort(key=lambda label: (-totals[label], label))
    peaks = ndimage.maximum(values, labels, kept) if kept else []
    return tuple(
        Region(
            box=_corners(boxes[label - 1]),
            area=int(areas[label]),
            mean=min(float(totals[label] / areas[label]), float(peak)),  # rounding may put a mean above its peak
            peak=float(peak),
        )
        for label, peak in zip(kept, peaks, strict=True)
    )


def _corners(box: tuple[slice, slice]) -> tuple[int, int, int, int]:
    rows, columns = box
    return int(columns.start), int(rows.start), int(columns.stop), int(rows.stop)
