"""Encoded pictures → works for the engine, and its results → JSON items. Knows nothing about HTTP or threads."""

from __future__ import annotations

import base64
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import save
from torch.nn import functional as F

from data_synth.schema.pixels import RGB8, decode_rgb, encode_png, stored_size
from finpercep.errors import ImageError
from finpercep.heatmap import heat_colours, map_samples, overlay
from finpercep.local_reward import side_fault
from finpercep.regions import find_regions
from finpercep.wire import ItemReply, RegionReply
from rm_server.engine import ImageResult, ImageWork
from rm_server.options import ScoreOptions
from rm_server.problems import Problem
from rm_server.registry import ServedRung


@dataclass(frozen=True)
class Upload:
    """What was sent of one image: the picture, and perhaps the low-resolution one it was made from."""

    image: bytes
    lr: bytes | None = None


def admitted_pixels(uploads: Sequence[Upload], options: ScoreOptions, max_pixels: int) -> int:
    """Pixels of all pictures, from their headers, and of maps that are to be larger than their images.

    One that is no picture, or too large, will be refused and counts as none.
    """
    images = sum(_pixels(upload.image, max_pixels, options.map_side) for upload in uploads)
    return images + sum(_pixels(upload.lr, max_pixels) for upload in uploads if upload.lr is not None)


def _pixels(body: bytes, max_pixels: int, map_side: int = 0) -> int:
    """Of one picture, and of a map of it with ``map_side`` px on its longer side, if that is larger."""
    try:
        height, width = stored_size(body, max_pixels=max_pixels)
    except ImageError:
        return 0
    shorter, longer = sorted((height, width))
    return height * width + (map_side * map_side * shorter // longer if map_side > longer else 0)


def prepared(upload: Upload, rung: ServedRung, options: ScoreOptions, max_pixels: int) -> ImageWork | Problem:
    """The work of one upload, or why there is none."""
    try:
        image = _decoded("image", upload.image, max_pixels)
        if fault := side_fault(image.shape[-2], image.shape[-1], rung.min_side):
            return Problem("unprocessable", fault, field="image")
        lr = None if upload.lr is None else _lr_picture(upload.lr, image, rung, max_pixels)
    except Problem as problem:
        return problem
    return ImageWork(rung, image, options.weights, map=options.needs_map, lr=lr)


def _decoded(field: str, body: bytes, max_pixels: int) -> torch.Tensor:
    """uint8 (3, H, W). Raises `Problem`."""
    whose = "LR picture: " if field == "lr" else ""
    try:
        height, width = stored_size(body, max_pixels=sys.maxsize)
        if height * width > max_pixels:
            expected = f"at most {max_pixels} pixels"
            sentence = f"{whose}image must have {expected}, got {width}x{height}"
            raise Problem("too-large", sentence, field=field, expected=expected, received=height * width)
        return torch.from_numpy(decode_rgb(body, max_pixels=max_pixels)).permute(2, 0, 1)
    except ImageError as error:
        sentence = f"{whose}{error}"
        raise Problem("unprocessable", sentence, field=field, expected="a picture", received=f"{len(body)} bytes") from None


def _lr_picture(body: bytes, image: torch.Tensor, rung: ServedRung, max_pixels: int) -> torch.Tensor:
    lr = _decoded("lr", body, max_pixels)
    if fault := lr_fault(lr.shape, image.shape, rung):
        raise Problem("unprocessable", fault, field="lr")
    return lr


def lr_fault(lr: Sequence[int], image: Sequence[int], rung: ServedRung) -> str | None:
    """What is wrong with an LR picture for an image and a rung, given their shapes, or None."""
    if not rung.takes_lr:
        return f"{rung.rung} takes no LR picture; leave it away, or ask for a rung that does"
    if lr[-2] > image[-2] or lr[-1] > image[-1]:
        return f"the LR picture must not be larger than its image, {image[-1]}x{image[-2]}, got {lr[-1]}x{lr[-2]}"
    return None


def as_item(work: ImageWork | Problem, result: ImageResult | Problem, options: ScoreOptions) -> ItemReply:
    """An image's place in the reply: numbers, or a sentence and nulls."""
    if isinstance(result, Problem):
        return ItemReply(error=str(result))
    assert isinstance(work, ImageWork)
    score, reward, worst, mean = result.numbers.tolist()
    if not work.rung.has_map:
        return ItemReply(score=score, reward=reward)
    regions = None
    if options.regions:
        assert result.map is not None
        found = find_regions(result.map, options.region_threshold, options.region_min_area)
        regions = tuple(RegionReply(**dataclasses.asdict(region)) for region in found)
    picture = None if options.map == "none" else _encoded_map(work, result, options)
    return ItemReply(score=score, reward=reward, max_degradation=worst, mean_degradation=mean, regions=regions, map=picture)


def _encoded_map(work: ImageWork, result: ImageResult, options: ScoreOptions) -> str:
    """The map in base64, at the size that was asked for."""
    assert result.map is not None
    resized = _resized(result.map, options.map_size)
    degradation: npt.NDArray[np.float32] = resized.numpy()
    match options.map:
        case "png":
            body = encode_png(map_samples(degradation))
        case "heatmap":
            body = encode_png(heat_colours(degradation))
        case "overlay":
            body = encode_png(overlay(_picture(work.image, degradation.shape), degradation))
        case "raw":
            body = save({"map": resized.contiguous()})
        case "none":
            raise AssertionError("no map was asked for")
        case _:
            assert_never(options.map)
    return base64.b64encode(body).decode("ascii")


def _resized(degradation: torch.Tensor, side: int | None) -> torch.Tensor:
    """The map with ``side`` px on its longer side: means of what becomes one pixel, so that no defect is skipped."""
    if side is None or side == max(degradation.shape):
        return degradation
    height, width = (max(1, round(length * side / max(degradation.shape))) for length in degradation.shape)
    if side > max(degradation.shape):
        return F.interpolate(degradation[None, None], (height, width), mode="bilinear", align_corners=False)[0, 0]
    return F.interpolate(degradation[None, None], (height, width), mode="area")[0, 0]


def _picture(image: torch.Tensor, shape: tuple[int, ...]) -> RGB8:
    pixels: RGB8 = image.permute(1, 2, 0).contiguous().numpy()
    if pixels.shape[:2] == shape:
        return pixels
    resized = Image.fromarray(pixels).resize((shape[1], shape[0]), Image.Resampling.BOX)
    return np.asarray(resized, dtype=np.uint8)
