"""What a page of figures is made of: tables, plots, and any record as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

Record = Mapping[str, Any]
Cell = str | int | float | bool | None

INK, SOFT, FAINT = "#4a2a82", "#8e6cc4", "#b9b9c4"
"""The finest or the best; the one before; what it is compared with."""


@dataclass(frozen=True)
class Table:
    """Rows under columns, with a line of words before it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    about: str = ""


@dataclass(frozen=True)
class Picture:
    """A plot: ``alt`` is what it shows, ``draw`` draws it, ``size`` is in inches."""

    alt: str
    draw: Callable[[Axes], None]
    size: tuple[float, float] = (6.4, 3.0)


def cell(value: Cell) -> str:
    """Three significant digits or so; a dash for what was not measured."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    size = abs(value)
    if isinstance(value, int) or size == 0:
        return f"{value:,.0f}"
    if size < 0.001:
        return f"{value:.1e}"
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 2 else f"{value:.3f}"


def plus_minus(mean: float, reach: float) -> str:
    """A mean with its interval or deviation."""
    return f"{mean:.3f} ± {reach:.3f}"


def rows_of(lines: Sequence[Record]) -> Table:
    """A list of records as a table with all their keys."""
    columns = list(dict.fromkeys(key for line in lines for key in line))
    return Table([column.replace("_", " ") for column in columns], [[line.get(column) for column in columns] for line in lines])


def as_it_is(record: Record) -> Iterator[Table | Picture]:
    """Any record: single figures in one table, each list of lines in a table of its own; lists of numbers are left out."""
    single = {key: value for key, value in _flat(record) if value is None or isinstance(value, str | int | float)}
    if single:
        yield Table(("figure", "value"), [[key, value] for key, value in single.items()])
    for key, value in _flat(record):
        if isinstance(value, list) and value and all(isinstance(line, Mapping) for line in value):
            table = rows_of(value)
            yield Table(table.columns, table.rows, f"{key}:")


def _flat(record: Record, before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}, ")
        else:
            yield f"{before}{key}".replace("_", " "), value


def bars(names: Sequence[str], values: Sequence[float], *, label: str, log: bool = False) -> Picture:
    """Horizontal bars, the first on top; our own rungs in colour."""

    def draw(axes: Axes) -> None:
        places = range(len(names) - 1, -1, -1)
        axes.barh(places, values, color=[INK if name.startswith(("RM_", "finpercep")) else FAINT for name in names])
        axes.set_yticks(list(places), names)
        for place, value in zip(places, values, strict=True):
            axes.annotate(f" {cell(value)}", (value, place), va="center", fontsize=8)
        axes.set(xlabel=label, xscale="log" if log else "linear")
        axes.margins(x=0.15)

    return Picture(label, draw, (6.4, 0.9 + 0.26 * len(names)))
