"""Pictures too large for one pass: perceive them tile by tile, score them whole, draw their map band by band.

Memory above the model is one tile's activations, then f_N of the whole picture, then the map itself; never two of them. An LR
picture costs the picture in float32 twice more, while it is brought down.

A tiled result is the untiled one as long as the margin covers what a position of f_N or of the map can see. That holds for the
shallow convolutional encoder and the U-Net decoder of the packaged ladder. A deep
one (ResNet-34, say) sees a little further than the default margin. A part that looks at the whole image (attention as in a ViT,
squeeze-and-excitation, a decoder that pools globally) sees a tile and its margin only: seams are then small but not zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from finpercep.reward_model.lr_evidence import lr_evidence_in
from finpercep.reward_model.model import FinPercepRM, Perception

BAND = 64
"""Rows of the coarse map that are brought to full size at a time."""

Span = tuple[int, int, int, int]


def to_batch(image: torch.Tensor) -> torch.Tensor:
    """(3, H, W), uint8 or floats in [0, 1] → float32 (1, 3, H, W) in [0, 1]."""
    return image[None].float() / 255 if image.dtype == torch.uint8 else image[None].float()


def perceive_in_tiles(
    model: FinPercepRM, image: torch.Tensor, tile: int, margin: int, difference: torch.Tensor | None = None
) -> Perception:
    """What `model.perceive` says of the whole picture, stitched from tiles.

    Tiles start on f_N's grid, and only positions at least a margin away from a cut are kept.

    Args:
        model: in eval mode.
        image: (3, H, W), uint8 or floats in [0, 1].
        tile: side of what is kept of a tile, in px; a multiple of f_N's stride.
        margin: px around it that are looked at too; a multiple of f_N's stride.
        difference: `lr_difference` of the whole picture, where its LR picture is known.
    """
    height, width = image.shape[-2:]
    stride = model.config.deep_stride
    map_stride = model.config.map_stride or stride
    device = model.mean.device
    deep: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    for (top, bottom, left, right), context in tiles(height, width, tile, margin):
        c_top, c_bottom, c_left, c_right = context
        evidence = None if difference is None else lr_evidence_in(difference, (height, width), context)
        seen = model.perceive(to_batch(image[:, c_top:c_bottom, c_left:c_right]).to(device), evidence)
        if deep is None:
            deep = seen.deep.new_empty((1, seen.deep.shape[1], -(-height // stride), -(-width // stride)))
        if logits is None and seen.coarse_logits is not None:
            logits = seen.coarse_logits.new_empty((1, *(side * (stride // map_stride) for side in deep.shape[-2:])))
        for target, source, step in ((deep, seen.deep, stride), (logits, seen.coarse_logits, map_stride)):
            if target is not None and source is not None:
                per_deep = stride // step  # the last tile's padding is kept: the map's edge is interpolated with it
                rows = slice(top // step, -(-bottom // stride) * per_deep)
                columns = slice(left // step, -(-right // stride) * per_deep)
                row, column = (top - c_top) // step, (left - c_left) // step
                part = target[..., rows, columns]
                part.copy_(source[..., row : row + part.shape[-2], column : column + part.shape[-1]])
    assert deep is not None
    return Perception(deep, logits)


def map_in_bands(model: FinPercepRM, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """M (1, H, W) in [0, 1] of an image of ``size`` (height, width), from its coarse logits. Nothing else that large is made."""
    height, width = size
    stride = model.config.map_stride or 1
    full = logits.new_empty((1, height, width), dtype=torch.float32)
    for first in range(0, -(-height // stride), BAND):
        before = max(0, first - 1)  # one row more on both sides: interpolation looks at neighbours
        part = logits[:, before : first + BAND + 1]
        band = full[:, first * stride : (first + BAND) * stride]
        upsampled = model.upsample_logits(part, (part.shape[1] * stride, width))
        assert upsampled is not None
        start = (first - before) * stride
        torch.sigmoid(upsampled[:, start : start + band.shape[1]], out=band)
    return full


def tiles(height: int, width: int, tile: int, margin: int) -> Iterator[tuple[Span, Span]]:
    """(kept area, area with context) of every tile, as (top, bottom, left, right); tile and margin are multiples of every stride.

    A last tile thinner than half a tile is joined to the one before, so that no context is smaller than the model accepts.
    """
    for top, bottom in _spans(height, tile):
        for left, right in _spans(width, tile):
            context = (max(0, top - margin), min(height, bottom + margin), max(0, left - margin), min(width, right + margin))
            yield (top, bottom, left, right), context


def _spans(length: int, tile: int) -> list[tuple[int, int]]:
    starts = list(range(0, length, tile))
    if len(starts) > 1 and length - starts[-1] < tile // 2:
        starts.pop()
    return list(zip(starts, [*starts[1:], length], strict=True))
