"""A report as plain data, and its rendering to one HTML file with every picture and every script inside."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from data_synth.schema.pixels import RGB8, write_atomically
from finpercep.report.charts import Chart

LOSSLESS = 160 * 160
"""Pixels up to which a compared picture is kept as it is; larger ones lose what eyes hardly see."""

LARGEST = 512
"""Side in px above which a compared picture is reduced."""


@dataclass(frozen=True)
class Table:
    """Rows of text under column heads; ``note`` says how to read it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG and what it shows."""

    png: bytes
    caption: str

    @property
    def data_uri(self) -> str:
        """The PNG as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Layer:
    """One picture of a comparison: its name, uint8 H×W×3, and the same with its degradation map laid over it."""

    name: str
    pixels: RGB8
    heat: RGB8 | None = None

    @property
    def data_uri(self) -> str:
        """The picture as a data URI."""
        return webp_uri(self.pixels)

    @property
    def heat_uri(self) -> str:
        """The picture with its map, as a data URI; empty where there is no map."""
        return "" if self.heat is None else webp_uri(self.heat)


@dataclass(frozen=True)
class Comparison:
    """Pictures of the same place, to be laid over each other; ``shown`` are the names of the two that are at first.

    ``figures`` are rows of (measure, before, after, change); a change that is one for the worse has ``worse`` set.
    """

    title: str
    layers: Sequence[Layer]
    shown: tuple[str, str]
    figures: Sequence[tuple[str, str, str, str]] = ()
    worse: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Section:
    """A part of the report, in the order text, commands, tables, charts, comparisons, pictures, folded text."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    charts: Sequence[Chart] = ()
    comparisons: Sequence[Comparison] = ()
    commands: Sequence[str] = ()
    folded: Sequence[tuple[str, str]] = ()

    @property
    def has_heat(self) -> bool:
        """Whether any of its comparisons has a degradation map."""
        return any(layer.heat is not None for comparison in self.comparisons for layer in comparison.layers)


@dataclass(frozen=True)
class Report:
    """A report: title, what was run, key figures, sections."""

    title: str
    summary: str
    figures: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = field(default_factory=tuple)


def write_report(report: Report, path: Path) -> None:
    """Render to one self-contained HTML file: its policy allows its script and no request; it reads without the script."""
    here = files("finpercep.report")
    script, style = (here.joinpath(name).read_text() for name in ("report.js", "report.css"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(here.joinpath("page.html").read_text())
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = template.render(report=report, script=Markup(script), style=Markup(style), script_digest=digest)
    write_atomically(path, html.encode())


def webp_uri(pixels: RGB8) -> str:
    """A picture as a data URI: without loss where it is small, reduced where it is huge."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    lossless = picture.width * picture.height <= LOSSLESS
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=lossless, quality=90, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
