"""Figures of a degradation map against marked pixels, tallied image by image in memory that does not grow.

Every map is counted into `BINS` bins, even steps of log-odds, so that a map that lives near 0 is resolved as finely as one near
1. AUROC, average precision and IoU follow from the counts. They are exact for maps rounded to those bins: two values count as
equal when their odds differ by less than 0.14 %. Knows nothing about models, data sets or files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]
Marks = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]

BINS = 1 << 14
FIXED_THRESHOLD = 0.5
_SPAN = 16.0
"""The bins cover odds from 2^-16 to 2^16; what lies beyond falls into the outermost two."""


def bins_of(values: Array) -> npt.NDArray[np.intp]:
    """The bin of every value.

    Args:
        values: any shape, in [0, 1].

    Raises:
        ValueError: a value is not finite or outside [0, 1].
    """
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(f"a degradation map must lie in [0, 1], got {low} to {high}")
    clipped = np.clip(values.astype(np.float64), 2.0**-_SPAN, 1 - 2.0**-_SPAN)
    steps = (np.log2(clipped / (1 - clipped)) + _SPAN) * (BINS / (2 * _SPAN))
    return np.minimum(steps.astype(np.intp), BINS - 1)


def lower_edge(index: int) -> float:
    """The smallest map value that falls into bin ``index``."""
    return 0.0 if index == 0 else float(1 / (1 + 2.0 ** (_SPAN - index * (2 * _SPAN) / BINS)))


_FIXED_BIN = int(bins_of(np.array([FIXED_THRESHOLD]))[0])


def counted_auroc(positive: Counts, negative: Counts) -> float | None:
    """Chance that a positive value lies in a higher bin than a negative one, ties counting half. None without either."""
    total = float(positive.sum()) * float(negative.sum())
    if not total:
        return None
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / total)


def counted_average_precision(positive: Counts, negative: Counts) -> float | None:
    """Average precision Σ (R_n − R_{n−1}) P_n over all thresholds, as scikit-learn defines it. None without a positive."""
    if not positive.sum():
        return None
    hits, all_above = _at_least(positive), _at_least(positive + negative)
    precision = hits / np.maximum(all_above, 1)
    return float((positive * precision).sum() / positive.sum())


def iou_curve(positive: Counts, negative: Counts) -> npt.NDArray[np.float64]:
    """IoU of {map ≥ lower edge of a bin} with the marked pixels, for every bin. Needs a marked pixel."""
    curve: npt.NDArray[np.float64] = _at_least(positive) / (positive.sum() + _at_least(negative))
    return curve


def _last_best(curve: npt.NDArray[np.float64]) -> int:
    """The highest of the thresholds that do equally well."""
    return BINS - 1 - int(curve[::-1].argmax())


def _at_least(counts: Counts) -> Counts:
    return np.cumsum(counts[::-1])[::-1]


@dataclass(frozen=True)
class PixelFigures:
    """How well a map finds the marked pixels; None where a figure is undefined. To be reported in this order.

    Attributes:
        paired_auroc: map at the marked pixels against the map at the same pixels of the clean original; 0.5 = blind.
        auroc: marked against all other pixels of the same images. Texture can flatter it.
        auprc: average precision of the same.
        prevalence: share of marked pixels: the average precision of chance.
        auprc_over_chance: ``auprc / prevalence``; 1 = chance.
        iou_fixed: IoU of {map ≥ 0.5} with the marked pixels.
        iou_best: IoU at the one threshold that suits best.
        best_threshold: that threshold.
    """

    paired_auroc: float | None = None
    auroc: float | None = None
    auprc: float | None = None
    prevalence: float | None = None
    auprc_over_chance: float | None = None
    iou_fixed: float | None = None
    iou_best: float | None = None
    best_threshold: float | None = None


@dataclass(frozen=True)
class ImageCounts:
    """What is counted of one image.

    Attributes:
        marked, rest: map values at the marked and at all other pixels.
        original: map values of the clean original at the marked pixels; None without an original.
        pointing: chance that the map's maximum, drawn among equals, is marked; None without a marked pixel.
        clean_mean: mean map of the clean original; None without one.
        l1: mean |M − M_gt|; None without M_gt.
    """

    marked: Counts
    rest: Counts
    original: Counts | None
    pointing: float | None
    clean_mean: float | None
    l1: float | None

    @property
    def paired_auroc(self) -> float | None:
        """Of this image alone."""
        return None if self.original is None else counted_auroc(self.marked, self.original)


def count_image(
    degradation_map: Array, marks: Marks, *, original_map: Array | None = None, target: Array | None = None
) -> ImageCounts:
    """Count one image.

    Args:
        degradation_map: H×W in [0, 1], 1 = degraded.
        marks: H×W, the pixels that are degraded.
        original_map: H×W, the map of the clean original.
        target: H×W in [0, 1], M_gt.
    """
    bins = bins_of(degradation_map)
    return ImageCounts(
        marked=_counts(bins[marks]),
        rest=_counts(bins[~marks]),
        original=None if original_map is None else _counts(bins_of(original_map[marks])),
        pointing=_pointing(degradation_map, marks),
        clean_mean=None if original_map is None else float(original_map.mean()),
        l1=None if target is None else float(np.abs(degradation_map - target).mean()),
    )


def _counts(bins: npt.NDArray[np.intp]) -> Counts:
    return np.bincount(bins, minlength=BINS).astype(np.int64)


def _pointing(degradation_map: Array, marks: Marks) -> float | None:
    """The pointing game (Zhang et al., 2018) without tolerance. A constant map points anywhere."""
    return float(marks[degradation_map == degradation_map.max()].mean()) if marks.any() else None


def pixel_figures(counts: ImageCounts) -> PixelFigures:
    """The figures of one image's counts, or of the sum of many. Undefined without a marked pixel, except prevalence."""
    marked, rest = counts.marked, counts.rest
    size = float(marked.sum() + rest.sum())
    if not marked.sum():
        return PixelFigures(prevalence=0.0 if size else None)
    precision, prevalence, curve = counted_average_precision(marked, rest), float(marked.sum()) / size, iou_curve(marked, rest)
    best = _last_best(curve)
    return PixelFigures(
        paired_auroc=counts.paired_auroc,
        auroc=counted_auroc(marked, rest),
        auprc=precision,
        prevalence=prevalence,
        auprc_over_chance=None if precision is None else precision / prevalence,
        iou_fixed=float(curve[_FIXED_BIN]),
        iou_best=float(curve[best]),
        best_threshold=lower_edge(best),
    )


@dataclass(frozen=True)
class MapFigures:
    """A map's figures over many images.

    Attributes:
        pooled: over all pixels of all images together.
        per_image: the mean of the images' own figures, over those with a marked pixel; its best threshold is one for all images,
            and its ``auprc_over_chance`` is the ratio of the means.
        pointing: share of images whose map is highest at a marked pixel (a draw among equal maxima counts in part).
        pointing_chance: the same for a map that points anywhere: the mean marked share.
        clean_mean: mean map of the clean originals (false alarm); None without originals.
        l1: mean |M − M_gt|; None without M_gt.
        images: how many were counted.
        marked_images: how many of them have a marked pixel.
    """

    pooled: PixelFigures
    per_image: PixelFigures
    pointing: float | None
    pointing_chance: float | None
    clean_mean: float | None
    l1: float | None
    images: int
    marked_images: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the pooled figures lie at the top, in the order they are to be reported."""
        figures = asdict(self)
        return figures.pop("pooled") | figures


class _Mean:
    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, value: float | None) -> None:
        if value is not None:
            self.total += value
            self.count += 1

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


class MapTally:
    """Adds up images; its size does not depend on how many."""

    _MEANS = ("paired_auroc", "auroc", "auprc", "prevalence", "iou_fixed", "pointing", "clean_mean", "l1")

    def __init__(self) -> None:
        self._marked, self._rest, self._paired, self._original = (np.zeros(BINS, dtype=np.int64) for _ in range(4))
        self._means = {name: _Mean() for name in self._MEANS}
        self._iou_sum = np.zeros(BINS)
        self._images = self._marked_images = 0

    def add(self, counts: ImageCounts) -> None:
        """Add one image."""
        self._images += 1
        self._marked += counts.marked
        self._rest += counts.rest
        if counts.original is not None:
            self._paired += counts.marked
            self._original += counts.original
        for name in ("pointing", "clean_mean", "l1"):
            self._means[name].add(getattr(counts, name))
        if counts.pointing is None:
            return
        self._marked_images += 1
        self._iou_sum += iou_curve(counts.marked, counts.rest)
        own = pixel_figures(counts)
        for name in ("paired_auroc", "auroc", "auprc", "prevalence", "iou_fixed"):
            self._means[name].add(getattr(own, name))

    def figures(self) -> MapFigures:
        """The figures so far."""
        means = {name: mean.value for name, mean in self._means.items()}
        pooled = asdict(pixel_figures(ImageCounts(self._marked, self._rest, None, None, None, None)))
        pooled["paired_auroc"] = counted_auroc(self._paired, self._original)
        return MapFigures(
            pooled=PixelFigures(**pooled),
            per_image=self._per_image(means),
            pointing=means["pointing"],
            pointing_chance=means["prevalence"],
            clean_mean=means["clean_mean"],
            l1=means["l1"],
            images=self._images,
            marked_images=self._marked_images,
        )

    def _per_image(self, means: dict[str, float | None]) -> PixelFigures:
        if not self._marked_images:
            return PixelFigures()
        curve, precision, prevalence = self._iou_sum / self._marked_images, means["auprc"], means["prevalence"]
        best = _last_best(curve)
        return PixelFigures(
            paired_auroc=means["paired_auroc"],
            auroc=means["auroc"],
            auprc=precision,
            prevalence=prevalence,
            auprc_over_chance=precision / prevalence if precision is not None and prevalence else None,
            iou_fixed=means["iou_fixed"],
            iou_best=float(curve[best]),
            best_threshold=lower_edge(best),
        )
