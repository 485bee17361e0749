"""A sample as plain data: `sample_recipe` draws a `Recipe`, `apply_recipe` turns it into pixels, the same every time.

The recipe holds every number that went into a sample, so a row of the data set can be remade from its photo (and, where an SR
model made I_SR, from that model's output). Knows nothing about files, shards or workers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data_synth.artefacts import ARTEFACT_KINDS, Artefact, ArtefactKind, apply_artefact, sample_artefact
from data_synth.degradations import Degradation, DegradationConfig, degrade, sample_degradation
from data_synth.ground_truth import GroundTruthConfig, ground_truth_map
from data_synth.regions import MaskConfig, MaskRecipe, render_mask, sample_mask
from data_synth.schema.errors import FinpercepError, SchemaError
from data_synth.schema.pixels import RGB8

SampleKind = Literal["swap", "clean"]
SIDE_MULTIPLE = 16


class RecipeError(FinpercepError):
    """A recipe that cannot be drawn or applied."""


@dataclass(frozen=True)
class RecipeConfig:
    """What `sample_recipe` draws from. Shares are probabilities in [0, 1].

    Attributes:
        crop: side of a sample in px, a multiple of 16.
        clean_share: samples whose region is swapped with the same clean content, so that a seam predicts nothing.
        model_share: samples whose I_SR comes from an SR model, when there are models; the rest are artefacts on gt.
        artefact_on_model_share: of those, the share that gets procedural artefacts on top.
        max_artefacts: longest chain of artefacts.
        kinds: artefacts to draw from.
        severity: range their severity is drawn from, in [0, 1].
        light_share: samples whose LR image is degraded mildly (`light`), the rest blindly and twice (`degradation`).
        degradation, light: ranges of either degradation.
        mask: ranges of the mask.
    """

    crop: int = 160
    clean_share: float = 0.05
    model_share: float = 0.5
    artefact_on_model_share: float = 0.3
    max_artefacts: int = 2
    kinds: tuple[ArtefactKind, ...] = ARTEFACT_KINDS
    severity: tuple[float, float] = (0.15, 1.0)
    light_share: float = 0.7
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    light: DegradationConfig = field(default_factory=DegradationConfig.light)
    mask: MaskConfig = field(default_factory=MaskConfig)

    def __post_init__(self) -> None:
        if self.crop < SIDE_MULTIPLE or self.crop % SIDE_MULTIPLE:
            raise RecipeError(f"crop must be a positive multiple of {SIDE_MULTIPLE}, got {self.crop}")
        for name in ("clean_share", "model_share", "artefact_on_model_share", "light_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.max_artefacts < 1 or not self.kinds:
            raise RecipeError(f"max_artefacts and the number of kinds must be at least 1, got {self.max_artefacts}, {self.kinds}")
        if self.degradation.scale != self.light.scale:
            raise RecipeError(f"both degradations need one scale, got {self.degradation.scale} and {self.light.scale}")


@dataclass(frozen=True)
class ModelCall:
    """Which SR model made I_SR, and the seed of its noise."""

    name: str
    version: str
    seed: int


@dataclass(frozen=True)
class Recipe:
    """One sample, as plain data.

    Attributes:
        source_id: the photo.
        kind: "clean" swaps gt's own content in, so syn = gt.
        top, left, size: the crop, in px of the photo.
        flip: mirrored left to right.
        degradation: gt → lr.
        model: the SR model run on lr; None where artefacts act on gt.
        artefacts: applied in order to the model's output, or to gt.
        mask: where sr replaces gt.
    """

    source_id: str
    kind: SampleKind
    top: int
    left: int
    size: int
    flip: bool
    degradation: Degradation
    model: ModelCall | None
    artefacts: tuple[Artefact, ...]
    mask: MaskRecipe

    def to_json(self) -> str:
        """One line of JSON; `from_json` gives an equal recipe back, bit for bit."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Parse `to_json`'s output. Raises `SchemaError` when it is not a recipe of this version."""
        try:
            recipe: Recipe = _recipe_adapter().validate_json(text)
        except ValueError as error:
            raise SchemaError("recipe", "(json)", "a recipe as `Recipe.to_json` writes it", str(error)) from error
        return recipe

    @property
    def origin(self) -> str:
        """Where the defects come from, in one word: ``model``, ``model+artefact``, ``artefact`` or ``clean``."""
        if self.kind == "clean":
            return "clean"
        return "+".join([*(["model"] if self.model else []), *(["artefact"] if self.artefacts else [])])


@cache
def _recipe_adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Recipe)


@dataclass(frozen=True)
class Sample:
    """A sample's pixels as they are stored: uint8 H×W×3 images, mask float32 H×W in steps of 1/255, map float32 H×W."""

    gt: RGB8
    lr: RGB8
    sr: RGB8
    syn: RGB8
    mask: npt.NDArray[np.float32]
    map: npt.NDArray[np.float32]


def sample_recipe(
    rng: np.random.Generator,
    source_id: str,
    photo_size: tuple[int, int],
    config: RecipeConfig,
    models: Mapping[str, str] | None = None,
) -> Recipe:
    """Draw a recipe for a photo of ``photo_size`` (height, width).

    Args:
        rng: decides everything.
        source_id: the photo's name.
        photo_size: its height and width in px.
        config: ranges and shares.
        models: version by name of the SR models that may be called; none: artefacts alone.

    Raises:
        RecipeError: the photo is smaller than the crop.
    """
    if min(photo_size) < config.crop:
        raise RecipeError(
            f"{source_id}: photo must be at least {config.crop} px on each side, got {photo_size[1]}x{photo_size[0]}"
        )
    top, left = (int(rng.integers(side - config.crop + 1)) for side in photo_size)
    is_clean, is_model, is_both, is_light, flip = rng.uniform(size=5) < (
        config.clean_share,
        config.model_share,
        config.artefact_on_model_share,
        config.light_share,
        0.5,
    )
    model = _sample_model(rng, models) if models and is_model else None
    length = int(rng.integers(1, config.max_artefacts + 1)) if model is None or is_both else 0
    artefacts = tuple(sample_artefact(rng, kinds=config.kinds, severity=config.severity) for _ in range(length))
    return Recipe(
        source_id=source_id,
        kind="clean" if is_clean else "swap",
        top=top,
        left=left,
        size=config.crop,
        flip=bool(flip),
        degradation=sample_degradation(rng, config.light if is_light else config.degradation),
        model=model,
        artefacts=artefacts,
        mask=sample_mask(rng, config.mask),
    )


def _sample_model(rng: np.random.Generator, models: Mapping[str, str]) -> ModelCall:
    name = sorted(models)[rng.integers(len(models))]
    return ModelCall(name, models[name], int(rng.integers(2**31)))


def crop_gt(recipe: Recipe, photo: RGB8) -> RGB8:
    """I_GT: the recipe's crop of its photo.

    Raises:
        RecipeError: the crop does not lie inside the photo.
    """
    crop = photo[recipe.top : recipe.top + recipe.size, recipe.left : recipe.left + recipe.size]
    if crop.shape != (recipe.size, recipe.size, 3):
        raise RecipeError(
            f"{recipe.source_id}: crop of {recipe.size} px at ({recipe.top}, {recipe.left}) must lie inside the photo, "
            f"got {photo.shape}; is it another photo?"
        )
    return np.ascontiguousarray(crop[:, ::-1] if recipe.flip else crop)


def make_lr(recipe: Recipe, gt: RGB8) -> RGB8:
    """I_LR of the crop ``gt``."""
    return _to_8bit(degrade(_to_float(gt), recipe.degradation))


def apply_recipe(
    recipe: Recipe, photo: RGB8, sr_output: npt.NDArray[np.float32] | None = None, ground_truth: GroundTruthConfig | None = None
) -> Sample:
    """Make the sample.

    Args:
        recipe: what to make.
        photo: the whole photo, uint8 H×W×3.
        sr_output: what ``recipe.model`` returned for `make_lr`, size×size×3 float32 in [0, 1]; None when it is None.
        ground_truth: how the map is measured; the default configuration when None.

    Raises:
        RecipeError: an SR output is missing, superfluous or of the wrong size, or the crop leaves the photo.
    """
    gt8 = crop_gt(recipe, photo)
    gt = _to_float(gt8)
    if (sr_output is None) != (recipe.model is None):
        raise RecipeError(
            f"{recipe.source_id}: SR output expected from {recipe.model}, got {'none' if sr_output is None else 'one'}"
        )
    if sr_output is not None and sr_output.shape != gt.shape:
        raise RecipeError(f"{recipe.source_id}: SR output must be {gt.shape}, got {sr_output.shape}")
    sr = gt if sr_output is None else sr_output
    for artefact in recipe.artefacts:
        sr = apply_artefact(artefact, sr)
    sr8 = _to_8bit(sr)
    mask = (np.rint(render_mask(recipe.mask, gt) * 255) / 255).astype(np.float32)
    inside = gt8 if recipe.kind == "clean" else sr8
    syn8 = swap_region(gt8, inside, mask)
    degradation_map = ground_truth_map(gt, _to_float(syn8), mask, ground_truth or GroundTruthConfig())
    return Sample(gt8, make_lr(recipe, gt8), sr8, syn8, mask, degradation_map)


def swap_region(gt: RGB8, inside: RGB8, mask: npt.NDArray[np.float32]) -> RGB8:
    """I_syn = m ⊙ I_SR + (1 − m) ⊙ I_GT (method §3), rounded to 8 bits; equal to ``gt`` where m = 0 or both images agree."""
    m = mask[..., None].astype(np.float64)
    return np.rint(gt + m * (inside.astype(np.float64) - gt)).astype(np.uint8)


def _to_float(image: RGB8) -> npt.NDArray[np.float32]:
    return image.astype(np.float32) / np.float32(255)


def _to_8bit(image: npt.NDArray[np.float32]) -> RGB8:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
