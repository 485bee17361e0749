"""Outputs of the zoo side by side: one row a crop, from the bicubic upsampling over every network to the photo."""

from __future__ import annotations

import io
from collections.abc import Mapping

import torch
from PIL import Image, ImageDraw

from data_synth.zoo.errors import ZooError

_GAP = 4
_CAPTION = 14


def contact_sheet(columns: Mapping[str, torch.Tensor], zoom: int = 2) -> Image.Image:
    """Draw columns of images under their names, every pixel ``zoom`` px wide.

    Args:
        columns: name → N×3×H×W in [0, 1], all of one shape.
        zoom: factor by which pixels are repeated, so that single ones can be seen.

    Raises:
        ZooError: no column, or columns of different shapes.
    """
    shapes = {tuple(images.shape) for images in columns.values()}
    if len(shapes) != 1:
        raise ZooError(f"a contact sheet needs columns of one shape, got {sorted(shapes)}")
    rows, _, height, width = shapes.pop()
    cell_width, cell_height = width * zoom + _GAP, height * zoom + _GAP
    sheet = Image.new("RGB", (len(columns) * cell_width, _CAPTION + rows * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (name, images) in enumerate(columns.items()):
        draw.text((column * cell_width, 0), name, fill="black")
        pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        for row, picture in enumerate(pixels):
            enlarged = Image.fromarray(picture).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (column * cell_width, _CAPTION + row * cell_height))
    return sheet


def encode_sheet(columns: Mapping[str, torch.Tensor], zoom: int = 2) -> bytes:
    """`contact_sheet` as PNG bytes."""
    buffer = io.BytesIO()
    contact_sheet(columns, zoom).save(buffer, "PNG")
    return buffer.getvalue()
