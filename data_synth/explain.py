"""One recipe replayed as pictures: what happened to the photo, step by step, until the map. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from data_synth.degradations.blind import apply_stage
from data_synth.ground_truth import GroundTruthConfig, feature_difference, pixel_difference
from data_synth.images import to_8bit, to_float
from data_synth.preview import heat
from data_synth.recipe import Recipe
from data_synth.sample import Ingredients, apply_recipe, sr_steps
from data_synth.schema.pixels import RGB8

_GAP, _CAPTION, _COLUMNS = 6, 16, 4


def explained_panels(recipe: Recipe, ingredients: Ingredients, ground_truth: GroundTruthConfig) -> Iterator[tuple[str, RGB8]]:
    """Caption and picture (uint8 H×W×3) of every step, in order."""
    sample = apply_recipe(recipe, ingredients, ground_truth)
    size = (recipe.crop.size, recipe.crop.size)
    yield f"gt: {recipe.source_id}", sample.gt
    current = to_float(sample.gt)
    for number, stage in enumerate(recipe.degradation.stages, start=1):
        current = apply_stage(current, stage, size)
        yield f"degradation {number}: {current.shape[1]}x{current.shape[0]} px", _enlarge(to_8bit(current), size)
    yield f"lr: {sample.lr.shape[1]}x{sample.lr.shape[0]} px", _enlarge(sample.lr, size)
    if ingredients.donor is not None and recipe.donor:
        yield f"donor: {recipe.donor.source_id}", ingredients.donor
    for step in sr_steps(recipe, ingredients):
        yield f"sr: {step.label}", to_8bit(step.image)
    yield f"mask: {recipe.mask.shape}, area {recipe.mask.area:.1%}", heat(sample.mask)
    yield f"syn{' (clean swap)' if recipe.kind == 'clean' else ''}", sample.syn
    pair = torch.from_numpy(np.stack([to_float(sample.gt), to_float(sample.syn)])).permute(0, 3, 1, 2).contiguous()
    yield "pixel difference, to its maximum", heat(_to_unit(pixel_difference(pair, ground_truth).numpy()))
    yield "feature difference, to its maximum", heat(_to_unit(feature_difference(pair, ground_truth).numpy()))
    yield f"map: mean {sample.map.mean():.3f}, max {sample.map.max():.3f}", heat(sample.map)


def explain_sheet(recipe: Recipe, ingredients: Ingredients, ground_truth: GroundTruthConfig) -> Image.Image:
    """All steps on one sheet, read left to right, top to bottom."""
    panels = list(explained_panels(recipe, ingredients, ground_truth))
    height, width = panels[0][1].shape[:2]
    rows = -(-len(panels) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * (width + _GAP), rows * (height + _CAPTION + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (caption, picture) in enumerate(panels):
        x, y = number % _COLUMNS * (width + _GAP), number // _COLUMNS * (height + _CAPTION + _GAP)
        draw.text((x, y), f"{number + 1}. {caption}"[: width // 6], fill="black")
        sheet.paste(Image.fromarray(picture), (x, y + _CAPTION))
    return sheet


def _enlarge(image: RGB8, size: tuple[int, int]) -> RGB8:
    """To ``size`` (height, width), pixels left visible."""
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _to_unit(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return values / max(float(values.max()), 1e-9)
