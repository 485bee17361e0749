"""Charts as plain data, and as SVG that needs no script: lines, an interval, shaded rungs, marked events.

The page's script (`report.js`) reads the same numbers from beside the SVG to show them under the pointer. Colours are the page's
custom properties, so that a chart follows it into the dark.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np
from markupsafe import Markup

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 10, 22, 34
"""Size of the drawing and the margins around the plot, in SVG units."""

COLOURS = 8
"""Line colours of the page, ``--c0`` … ``--c7``."""

POINTS = 1500
"""Of a line that is drawn; of longer ones each stretch shows its lowest and highest."""


@dataclass(frozen=True)
class Line:
    """A line: its name (empty: not in the legend), x and y; ``faint`` draws it thin, ``points`` marks every value."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False
    points: bool = False


@dataclass(frozen=True)
class Band:
    """An interval around a line, such as its confidence interval."""

    name: str
    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Mark:
    """Something that happened at ``x``: ``kind`` is ``up``, ``back``, ``refresh`` or ``alarm``; ``label`` says it in short."""

    x: float
    kind: str
    label: str


@dataclass(frozen=True)
class Stretch:
    """A part of the x axis with a name, such as a rung: from ``start`` to ``end``."""

    start: float
    end: float
    name: str


@dataclass(frozen=True)
class Chart:
    """One plot.

    Attributes:
        title: what the y axis is.
        lines: drawn in this order; faint ones take the colour of the next that is not.
        bands: drawn under the lines, in the colour of the first.
        marks: events.
        stretches: shaded in turn.
        level: a horizontal line to compare with, such as where the run began.
        note: how to read it.
        x_label: what the x axis is.
    """

    title: str
    lines: Sequence[Line]
    bands: Sequence[Band] = ()
    marks: Sequence[Mark] = ()
    stretches: Sequence[Stretch] = ()
    level: float | None = None
    note: str = ""
    x_label: str = "step"

    @property
    def colours(self) -> list[int]:
        """The colour of every line."""
        found, colour = [], 0
        for line in self.lines:
            found.append(colour % COLOURS)
            colour += not line.faint
        return found

    @property
    def legend(self) -> list[tuple[int, str]]:
        """(colour, name) of the lines and intervals that can be switched off, if there are several."""
        named = [(colour, line.name) for colour, line in zip(self.colours, self.lines, strict=True) if line.name]
        return named if len({colour for colour, _ in named}) > 1 or len(named) > 1 else []

    @property
    def svg(self) -> Markup:
        """The drawing."""
        return draw(self)

    @property
    def data(self) -> Markup:
        """What the page's script needs, as JSON that can stand in a script element."""
        x_axis, y_axis = axes_of(self)
        plain = {
            "plot": [LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM],
            "x": [x_axis.low, x_axis.high],
            "y": [y_axis.low, y_axis.high],
            "xLabel": self.x_label,
            "lines": [
                {"name": line.name, "colour": colour, "faint": line.faint, "x": _numbers(line.x), "y": _numbers(line.y)}
                for colour, line in zip(self.colours, self.lines, strict=True)
            ],
            "bands": [
                {"name": band.name, "x": _numbers(band.x), "low": _numbers(band.low), "high": _numbers(band.high)}
                for band in self.bands
            ],
            "marks": [{"x": mark.x, "kind": mark.kind, "label": mark.label} for mark in self.marks],
            "stretches": [[one.start, one.end, one.name] for one in self.stretches],
        }
        return Markup(json.dumps(plain, separators=(",", ":")).replace("<", "\\u003c"))


@dataclass(frozen=True)
class Axis:
    """A linear axis: its ends in values and in SVG units, and its ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]

    def at(self, value: float) -> float:
        """Where a value is."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def axes_of(chart: Chart) -> tuple[Axis, Axis]:
    """The axes around everything a chart shows."""
    xs = [*_finite(x for line in chart.lines for x in line.x), *(end for s in chart.stretches for end in (s.start, s.end))]
    ys = list(_finite(y for line in chart.lines for y in line.y))
    ys += _finite(y for band in chart.bands for side in (band.low, band.high) for y in side)
    if chart.level is not None:
        ys.append(chart.level)
    x_low, x_high = (min(xs), max(xs)) if xs else (0.0, 1.0)
    y_low, y_high = (min(ys), max(ys)) if ys else (0.0, 1.0)
    room = 0.06 * (y_high - y_low) or 0.05 * abs(y_high) or 0.5
    x_high = x_high if x_high > x_low else x_low + 1
    y_low, y_high = y_low - room, y_high + room
    x_axis = Axis(x_low, x_high, LEFT, WIDTH - RIGHT, ticks(x_low, x_high, whole=True))
    return x_axis, Axis(y_low, y_high, HEIGHT - BOTTOM, TOP, ticks(y_low, y_high))


def ticks(low: float, high: float, about: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers between ``low`` and ``high``, about as many as asked for; ``whole`` ones only, if so wished."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    if whole:
        step = max(1.0, math.ceil(step))
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def draw(chart: Chart) -> Markup:
    """The SVG of a chart."""
    x_axis, y_axis = axes_of(chart)
    parts = [*_stretches(chart, x_axis), *_grid(x_axis, y_axis, chart.x_label)]
    if chart.level is not None:
        at = y_axis.at(chart.level)
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
    for band in chart.bands:
        high = [(x_axis.at(x), y_axis.at(y)) for x, y in zip(band.x, band.high, strict=True)]
        low = [(x_axis.at(x), y_axis.at(y)) for x, y in zip(band.x, band.low, strict=True)]
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*high, *reversed(low)])
        parts.append(f'<polygon class="band k0" points="{corners}"/>')
    for colour, line in zip(chart.colours, chart.lines, strict=True):
        parts += _line(line, colour, x_axis, y_axis)
    parts += _marks(chart, x_axis)
    label = escape(f"{chart.title}: {', '.join(line.name for line in chart.lines if line.name)}".rstrip(": "))
    body = "".join(parts)
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{body}</svg>')


def _marks(chart: Chart, x_axis: Axis) -> Iterator[str]:
    """A line and a sign for every event; the signs of one place stand above each other."""
    bottom, here = HEIGHT - BOTTOM, Counter[float]()
    places = [(mark, f"{x_axis.at(mark.x):.1f}", escape(mark.kind)) for mark in chart.marks]
    for _, at, kind in places:
        yield f'<line class="mark {kind}" x1="{at}" x2="{at}" y1="{TOP}" y2="{bottom}"/>'
    for mark, at, kind in places:
        sign = {"up": "▲", "back": "▼", "refresh": "●"}.get(mark.kind, "✖\ufe0e")
        yield f'<text class="mark {kind}" x="{at}" y="{bottom - 5 - 14 * here[mark.x]}">{sign}'
        yield f"<title>{escape(mark.label)}</title></text>"
        here[mark.x] += 1


def _line(line: Line, colour: int, x_axis: Axis, y_axis: Axis) -> Iterator[str]:
    look = f"k{colour} c{colour}{' faint' if line.faint else ''}"
    for stretch in _whole(line):
        corners = [(x_axis.at(x), y_axis.at(y)) for x, y in thinned(stretch)]
        yield f'<polyline class="{look}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in corners)}"/>'
        if line.points:
            yield from (f'<circle class="{look}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in corners)


def _whole(line: Line) -> Iterator[list[tuple[float, float]]]:
    """The line's stretches between values that are not finite."""
    stretch: list[tuple[float, float]] = []
    for point in zip(line.x, line.y, strict=True):
        if math.isfinite(point[1]):
            stretch.append(point)
        elif stretch:
            yield stretch
            stretch = []
    if stretch:
        yield stretch


def thinned(points: Sequence[tuple[float, float]], limit: int = POINTS) -> Sequence[tuple[float, float]]:
    """No more points than ``limit``: of each stretch of a longer line its lowest and its highest, so that no spike is lost."""
    if len(points) <= limit:
        return points
    bounds = np.linspace(0, len(points), limit // 2 + 1).astype(int)
    kept: list[int] = []
    for start, end in pairwise(bounds):
        part = [y for _, y in points[start:end]]
        kept += sorted({int(start + np.argmin(part)), int(start + np.argmax(part))})
    return [points[index] for index in kept]


def _stretches(chart: Chart, x_axis: Axis) -> Iterator[str]:
    for index, one in enumerate(chart.stretches):
        left, right = x_axis.at(one.start), x_axis.at(one.end)
        if index % 2:
            size = f'width="{max(0, right - left):.1f}" height="{HEIGHT - TOP - BOTTOM}"'
            yield f'<rect class="stretch" x="{left:.1f}" y="{TOP}" {size}/>'
        if right - left > 7 * len(one.name):
            yield f'<text class="stretch" x="{(left + right) / 2:.1f}" y="{TOP - 6}">{escape(one.name)}</text>'


def _grid(x_axis: Axis, y_axis: Axis, x_label: str) -> Iterator[str]:
    bottom = HEIGHT - BOTTOM
    digits = max((_digits(tick) for tick in y_axis.ticks), default=0)
    for tick in y_axis.ticks:
        at = y_axis.at(tick)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield f'<text class="tick y" x="{LEFT - 6}" y="{at + 4:.1f}">{_tick(tick, digits)}</text>'
    for tick in x_axis.ticks:
        yield f'<text class="tick x" x="{x_axis.at(tick):.1f}" y="{bottom + 15}">{_tick(tick, 0)}</text>'
    yield f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    yield f'<text class="tick x" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{bottom + 30}">{escape(x_label)}</text>'


def _digits(tick: float) -> int:
    text = f"{tick:.10f}".rstrip("0")
    return len(text) - text.index(".") - 1


def _tick(tick: float, digits: int) -> str:
    if tick and (abs(tick) >= 1e5 or digits > 4):
        return f"{tick:.2g}"
    return f"{tick:.{digits}f}".replace("-", "−")


def _finite(values: Iterator[float]) -> Iterator[float]:
    return (value for value in values if math.isfinite(value))


def _numbers(values: Sequence[float]) -> list[float | None]:
    """Six digits are plenty for eyes; JSON has no NaN."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]
