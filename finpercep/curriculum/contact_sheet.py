"""One picture of several crops of a run: LR, before, now and ground truth side by side, what the reward sees below."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from data_synth.schema.pixels import RGB8
from finpercep.heatmap import overlay

SIDE = 192
"""Side of a crop on the picture, in px, at least: smaller ones are enlarged by a whole number."""

LARGEST = 384
"""Side at most; larger crops are reduced."""

_TITLES = ("LR", "before", "now", "ground truth")
_GAP, _LINE = 8, 20
_PAPER, _INK, _SOFT = (250, 249, 247), (40, 38, 44), (110, 105, 115)


@dataclass(frozen=True)
class Shown:
    """A crop: uint8 H×W×3 pictures, the maps (H×W in [0, 1]) of before and now where there are some, a caption for each."""

    lr: RGB8
    before: RGB8
    now: RGB8
    ground_truth: RGB8
    map_before: npt.NDArray[np.float32] | None
    map_now: npt.NDArray[np.float32] | None
    captions: tuple[str, str]


def contact_sheet(heading: str, crops: Sequence[Shown]) -> bytes:
    """The picture, as a JPEG of high quality."""
    own = max(crops[0].ground_truth.shape[:2])
    side = min(own * math.ceil(SIDE / own), LARGEST)
    mapped = any(crop.map_now is not None for crop in crops)
    block = side + _LINE + (side + _GAP if mapped else 0)
    size = (len(_TITLES) * (side + _GAP) + _GAP, 2 * _LINE + len(crops) * (block + _GAP) + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    draw.text((_GAP, 4), heading.replace("→", "to"), _INK, font)  # the font that comes with Pillow has no arrow
    for column, title in enumerate(_TITLES):
        draw.text((_left(column, side), _LINE + 3), title, _INK, font)
    for row, crop in enumerate(crops):
        top = 2 * _LINE + _GAP // 2 + row * (block + _GAP)
        for column, pixels in enumerate((crop.lr, crop.before, crop.now, crop.ground_truth)):
            sheet.paste(_fitted(pixels, side), (_left(column, side), top))
        for column, caption in enumerate(crop.captions, start=1):
            draw.text((_left(column, side), top + side + 2), caption, _INK, font)
        if mapped:
            draw.text((_GAP, top + side + _LINE + _GAP), "what the reward\nthinks is broken", _SOFT, font)
        for column, pixels, degradation in ((1, crop.before, crop.map_before), (2, crop.now, crop.map_now)):
            if degradation is not None:
                laid_over = overlay(pixels, np.nan_to_num(degradation))
                sheet.paste(_fitted(laid_over, side), (_left(column, side), top + side + _LINE + _GAP // 2))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def _left(column: int, side: int) -> int:
    return _GAP + column * (side + _GAP)


def _fitted(pixels: RGB8, side: int) -> Image.Image:
    """Enlarged without smoothing, so that pixels stay pixels; reduced by averaging."""
    larger = max(pixels.shape[:2]) <= side
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST if larger else Image.Resampling.BOX)
