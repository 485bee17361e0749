"""A picture of every artefact, to be looked at: one row a kind, the photo first, then rising severity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from data_synth.artefacts import ARTEFACT_KINDS, ArtefactKind, apply_artefact, artefact_of_severity, family_of
from data_synth.images import to_8bit, to_float
from data_synth.schema.pixels import RGB8

_GAP = 4
_CAPTION = 14


def artefact_gallery(
    photo: RGB8,
    kinds: Sequence[ArtefactKind] = ARTEFACT_KINDS,
    severities: Sequence[float] = (0.25, 0.6, 1.0),
    seed: int = 0,
    donor: RGB8 | None = None,
) -> Image.Image:
    """Draw a photo under each kind of artefact, at its own size.

    Args:
        photo: H×W×3 uint8, at least 16 px a side.
        kinds: one row each; `FAMILIES` holds those of a family.
        severities: one column each, after the photo itself.
        seed: decides what severity leaves open; the same along a row.
        donor: another photo of the same shape, for the kinds that take detail from one.

    Raises:
        ValueError: no kinds, or no severities.
    """
    if not kinds or not severities:
        raise ValueError(f"a gallery needs at least one kind and one severity, got {list(kinds)} and {list(severities)}")
    height, width = photo.shape[:2]
    pixels = to_float(photo)
    lender = None if donor is None else to_float(donor)
    cell_width, cell_height = width + _GAP, height + _CAPTION + _GAP
    sheet = Image.new("RGB", ((1 + len(severities)) * cell_width, len(kinds) * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    for row, kind in enumerate(kinds):
        top = row * cell_height
        draw.text((0, top), f"{kind} ({family_of(kind)})", fill="black")
        sheet.paste(Image.fromarray(photo), (0, top + _CAPTION))
        for column, severity in enumerate(severities, start=1):
            artefact = artefact_of_severity(np.random.default_rng(seed), kind, severity)
            broken = to_8bit(apply_artefact(artefact, pixels, lender))
            draw.text((column * cell_width, top), f"severity {severity:.2f}", fill="black")
            sheet.paste(Image.fromarray(broken), (column * cell_width, top + _CAPTION))
    return sheet
