"""Contact sheet of a data set: one row a sample, gt | sr | mask | syn | map, to be looked at."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from data_synth.recipe import Recipe
from data_synth.schema.dataset import Row
from data_synth.schema.pixels import RGB8, write_atomically

PANELS = ("gt", "sr", "mask", "syn", "map")
_GAP = 4
_CAPTION = 14


def heat(degradation: npt.NDArray[np.float32]) -> RGB8:
    """A map (H×W in [0, 1]) in colours: dark = intact, bright yellow = fully degraded."""
    from matplotlib import colormaps

    coloured: RGB8 = np.rint(colormaps["inferno"](degradation)[..., :3] * 255).astype(np.uint8)
    return coloured


def row_panels(row: Row) -> list[RGB8]:
    """The five pictures of a sample, in the order of `PANELS`, uint8 H×W×3."""
    mask = np.repeat(np.rint(row.mask * 255).astype(np.uint8)[..., None], 3, axis=2)
    return [row.gt, row.sr, mask, row.syn, heat(row.map)]


def caption(row: Row) -> str:
    """One line: index, what broke the image, its qualities."""
    recipe = Recipe.from_json(row.recipe)
    faults = [*([recipe.model.name] if recipe.model else []), *(f"{a.kind} {a.severity:.2f}" for a in recipe.artefacts)]
    faults += ["back-projected"] if recipe.back_projection else []
    prefix = "clean swap; " if recipe.kind == "clean" else ""
    return f"#{row.index} {prefix}{' + '.join(faults)}; quality sr {row.quality_sr:.2f} syn {row.quality_syn:.2f}"


def contact_sheet(rows: Iterable[Row], columns: int = 2) -> Image.Image:
    """Draw samples of one size, ``columns`` beside each other.

    Raises:
        ValueError: there is no sample.
    """
    samples = list(rows)
    if not samples:
        raise ValueError("a contact sheet needs at least one sample, got none")
    height, width = samples[0].gt.shape[:2]
    cell_width, cell_height = len(PANELS) * (width + _GAP) + 2 * _GAP, height + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * cell_width, -(-len(samples) // columns) * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(samples):
        x, y = number % columns * cell_width, number // columns * cell_height
        draw.text((x, y), caption(row), fill="black")
        for position, panel in enumerate(row_panels(row)):
            sheet.paste(Image.fromarray(panel), (x + position * (width + _GAP), y + _CAPTION))
    return sheet


def write_contact_sheet(path: Path, rows: Iterable[Row], columns: int = 2) -> None:
    """`contact_sheet` as a PNG file."""
    buffer = io.BytesIO()
    contact_sheet(rows, columns).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())
