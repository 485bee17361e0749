"""A recipe's pixels: gt, lr, sr, syn, mask and map, the same every time; also step by step, to be looked at.

What lies outside a recipe (the photo, an SR model's output, a donor, segments) comes in as `Ingredients`. Knows nothing about
files, shards or workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_synth.artefacts import apply_artefact
from data_synth.back_projection import back_project
from data_synth.degradations import degrade
from data_synth.ground_truth import GroundTruthConfig, ground_truth_map
from data_synth.images import FloatImage, to_8bit, to_float
from data_synth.recipe import Recipe, RecipeError
from data_synth.regions import render_mask
from data_synth.schema.pixels import RGB8
from data_synth.sr_models.protocol import Crop


@dataclass(frozen=True)
class Ingredients:
    """What a recipe is applied to; images uint8 H×W×3.

    Attributes:
        gt: the recipe's crop of its photo.
        lr: `make_lr` of it.
        sr_output: what ``recipe.model`` made of lr, of gt's size; None when it is None.
        donor: the crop ``recipe.donor``, of gt's size; None when it is None.
        segments: bool K×H×W, the segmentation of gt; None where the mask needs none.
    """

    gt: RGB8
    lr: RGB8
    sr_output: RGB8 | None = None
    donor: RGB8 | None = None
    segments: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Sample:
    """A sample's pixels as they are stored: uint8 H×W×3 images, mask float32 H×W in steps of 1/255, map float32 H×W."""

    gt: RGB8
    lr: RGB8
    sr: RGB8
    syn: RGB8
    mask: npt.NDArray[np.float32]
    map: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Step:
    """One step on the way from gt to sr: what was done, and the image after it, float32 in [0, 1]."""

    label: str
    image: FloatImage


def apply_recipe(recipe: Recipe, ingredients: Ingredients, ground_truth: GroundTruthConfig | None = None) -> Sample:
    """Make the sample.

    Args:
        recipe: what to make.
        ingredients: what from.
        ground_truth: how the map is measured; the default configuration when None.

    Raises:
        RecipeError: an ingredient is missing, superfluous or of the wrong size.
    """
    *_, last = sr_steps(recipe, ingredients)
    gt, sr8 = to_float(ingredients.gt), to_8bit(last.image)
    mask = (np.rint(render_mask(recipe.mask, gt, ingredients.segments) * 255) / 255).astype(np.float32)
    syn8 = swap_region(ingredients.gt, ingredients.gt if recipe.kind == "clean" else sr8, mask)
    degradation_map = ground_truth_map(gt, to_float(syn8), mask, ground_truth or GroundTruthConfig())
    return Sample(ingredients.gt, ingredients.lr, sr8, syn8, mask, degradation_map)


def sr_steps(recipe: Recipe, ingredients: Ingredients) -> Iterator[Step]:
    """I_SR, step by step: the SR model's output or gt, each artefact, back-projection. Raises: see `apply_recipe`."""
    _check(recipe, "gt", ingredients.gt, expected=True)
    _check(recipe, "SR output", ingredients.sr_output, expected=recipe.model is not None)
    _check(recipe, "donor", ingredients.donor, expected=recipe.donor is not None)
    first = ingredients.gt if ingredients.sr_output is None else ingredients.sr_output
    yield (step := Step(recipe.model.name if recipe.model else "gt", to_float(first)))
    donor = None if ingredients.donor is None else to_float(ingredients.donor)
    for artefact in recipe.artefacts:
        image = apply_artefact(artefact, step.image, donor)
        yield (step := Step(f"{artefact.kind} {artefact.severity:.2f}", image))
    if recipe.back_projection:
        image = back_project(step.image, to_float(ingredients.lr), recipe.back_projection)
        yield Step(f"back-projected {recipe.back_projection.iterations}×", image)


def _check(recipe: Recipe, name: str, image: RGB8 | None, *, expected: bool) -> None:
    shape = (recipe.crop.size, recipe.crop.size, 3) if expected else None
    if (image.shape if image is not None else None) != shape:
        found = "none" if image is None else image.shape
        raise RecipeError(f"{recipe.source_id}: {name} must be {shape or 'absent'}, got {found}")


def crop_photo(crop: Crop, photo: RGB8) -> RGB8:
    """Cut a crop from its photo, mirrored where it says so. Returns uint8 size×size×3.

    Raises:
        RecipeError: the crop does not lie inside the photo.
    """
    cut = photo[crop.top : crop.top + crop.size, crop.left : crop.left + crop.size]
    if cut.shape != (crop.size, crop.size, 3):
        raise RecipeError(
            f"{crop.source_id}: crop of {crop.size} px at ({crop.top}, {crop.left}) must lie inside the photo, "
            f"got {photo.shape}; is it another photo?"
        )
    return np.ascontiguousarray(cut[:, ::-1] if crop.flip else cut)


def make_lr(recipe: Recipe, gt: RGB8) -> RGB8:
    """I_LR of the crop ``gt``."""
    return to_8bit(degrade(to_float(gt), recipe.degradation))


def swap_region(gt: RGB8, inside: RGB8, mask: npt.NDArray[np.float32]) -> RGB8:
    """I_syn = m ⊙ I_SR + (1 − m) ⊙ I_GT (method §3), rounded to 8 bits; equal to ``gt`` where m = 0 or both images agree."""
    base = gt.astype(np.float32)
    return np.rint(base + mask[..., None] * (inside.astype(np.float32) - base)).astype(np.uint8)
