"""Pictures of a run as PNG bytes: image grids and curves."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finpercep.heatmap import heat_colours

Picture = npt.NDArray[Any]
"""uint8 H×W×3 or H×W; or float H×W in [0, 1], drawn as a heatmap (1 = degraded)."""

_COLOURS = ("#3b6fb6", "#d1603d", "#4a9c6d", "#8a5fb0", "#b08d2e", "#5b6770")


@dataclass(frozen=True)
class Cell:
    """One picture of a grid, with a line of text below it."""

    picture: Picture
    caption: str = ""


def image_grid(titles: Sequence[str], rows: Sequence[Sequence[Cell]], *, cell_inches: float = 1.9) -> bytes:
    """A grid of pictures under column titles. Returns PNG bytes."""
    figure = Figure(figsize=(cell_inches * len(titles), (cell_inches + 0.22) * len(rows) + 0.25), layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for row, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            axis: Axes = axes[row][column]
            axis.imshow(_drawable(cell.picture), interpolation="nearest", cmap="gray", vmin=0, vmax=255)
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if row == 0:
                axis.set_title(titles[column], fontsize=9)
            axis.set_xlabel(cell.caption, fontsize=7.5)
    return _png(figure, dpi=110)


def _drawable(picture: Picture) -> Picture:
    return heat_colours(picture.astype(np.float32)) if picture.dtype.kind == "f" else picture


@dataclass(frozen=True)
class Curve:
    """A line of a plot: its name, x and y; ``faint`` draws it in the background."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False


def curves(
    panels: Mapping[str, Sequence[Curve]], *, x_label: str = "step", marks: Mapping[float, str] | None = None, height: float = 2.4
) -> bytes:
    """Plots side by side, one a panel; ``marks`` are vertical lines with a label (rung changes). Returns PNG bytes."""
    figure = Figure(figsize=(4.2 * len(panels), height), layout="constrained")
    for axis, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for index, curve in enumerate(lines):
            colour = _COLOURS[index % len(_COLOURS)]
            axis.plot(
                curve.x,
                curve.y,
                label=curve.name,
                color=colour,
                alpha=0.3 if curve.faint else 1,
                linewidth=1 if curve.faint else 1.6,
            )
        for x, label in (marks or {}).items():
            axis.axvline(x, color="#888", linewidth=0.8, linestyle=":")
            axis.text(x, 1.0, f" {label}", transform=axis.get_xaxis_transform(), fontsize=7, va="top", color="#555")
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_xlabel(x_label, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if any(curve.name for curve in lines):
            axis.legend(fontsize=7, frameon=False)
    return _png(figure, dpi=120)


def smoothed(values: Sequence[float], share: float = 0.08) -> list[float]:
    """Centred moving average over ``share`` of the series, for reading a trend; the ends average over what is there."""
    radius = int(len(values) * share / 2)
    return [float(np.mean(values[max(0, i - radius) : i + radius + 1])) for i in range(len(values))]


def _png(figure: Figure, dpi: int) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
