"""A sample as plain data: `sample_recipe` draws a `Recipe`, which `data_synth.sample` turns into pixels, the same every time.

The recipe holds every number that went into a sample. Each part is drawn from its own random stream, so another range of masks,
say, leaves photo, LR image and SR output as they were. Knows nothing about pixels, files, shards or workers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any, Literal

import numpy as np

from data_synth.artefacts import ARTEFACT_KINDS, DONOR_KINDS, FAMILIES, Artefact, ArtefactKind, family_of, sample_artefact
from data_synth.back_projection import BackProjection
from data_synth.degradations import Degradation, DegradationConfig, sample_degradation
from data_synth.regions import MaskConfig, MaskRecipe, sample_mask
from data_synth.schema.errors import FinpercepError, SchemaError
from data_synth.sr_models.protocol import Crop, SRCall, SRModel

SampleKind = Literal["swap", "clean"]
SIDE_MULTIPLE = 16
PERTURBED_FAMILIES = frozenset({"perturbed", "random"})
"""Families of networks that are broken on purpose, or never learnt."""


class RecipeError(FinpercepError):
    """A recipe that cannot be drawn or applied."""


@dataclass(frozen=True)
class OriginMix:
    """Where defects come from: relative weights. Where there is no model of a kind, the others share its weight.

    Attributes:
        model: an SR model as it is; first its family is drawn, then the model.
        perturbed: a network broken on purpose, or one that never learnt: endless faults unlike any other.
        hallucination: a procedural artefact that keeps an image's statistics and falsifies its structure.
        artefact: any other procedural artefact.
    """

    model: float = 0.35
    perturbed: float = 0.2
    hallucination: float = 0.2
    artefact: float = 0.25

    def __post_init__(self) -> None:
        weights = asdict(self)
        if min(weights.values()) < 0 or not any(weights.values()):
            raise RecipeError(f"weights must not be negative, nor all 0, got {weights}")


@dataclass(frozen=True)
class RecipeConfig:
    """What `sample_recipe` draws from. Shares are probabilities in [0, 1].

    Attributes:
        crop: side of a sample in px, a multiple of 16.
        clean_share: samples whose region is swapped with the same clean content, so that a seam predicts nothing.
        mix: where the defects of the others come from.
        artefact_on_model_share: of the samples from SR models, the share that gets procedural artefacts on top.
        max_artefacts: longest chain of artefacts.
        kinds: artefacts to draw from.
        severity: range their severity is drawn from, in [0, 1].
        other_donor_share: of the artefacts that take detail from a donor, the share whose donor is another photo.
        back_projection_share: samples made to agree with their LR image in the end.
        back_projection_iterations: range of how often.
        light_share: samples whose LR image is degraded mildly (`light`), the rest blindly and twice (`degradation`).
        degradation, light: ranges of either degradation.
        mask: ranges of the mask.
    """

    crop: int = 256
    clean_share: float = 0.06
    mix: OriginMix = field(default_factory=OriginMix)
    artefact_on_model_share: float = 0.25
    max_artefacts: int = 2
    kinds: tuple[ArtefactKind, ...] = ARTEFACT_KINDS
    severity: tuple[float, float] = (0.1, 1.0)
    other_donor_share: float = 0.5
    back_projection_share: float = 0.25
    back_projection_iterations: tuple[int, int] = (2, 8)
    light_share: float = 0.6
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    light: DegradationConfig = field(default_factory=DegradationConfig.light)
    mask: MaskConfig = field(default_factory=MaskConfig)

    def __post_init__(self) -> None:
        if self.crop < SIDE_MULTIPLE or self.crop % SIDE_MULTIPLE:
            raise RecipeError(f"crop must be a positive multiple of {SIDE_MULTIPLE}, got {self.crop}")
        for name in (entry.name for entry in fields(self) if entry.name.endswith("_share")):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.max_artefacts < 1 or not self.kinds:
            raise RecipeError(f"max_artefacts and the number of kinds must be at least 1, got {self.max_artefacts}, {self.kinds}")
        if not 0 <= self.severity[0] <= self.severity[1] <= 1:
            raise RecipeError(f"severity must be a range within [0, 1], got {self.severity}")
        if not 1 <= self.back_projection_iterations[0] <= self.back_projection_iterations[1]:
            raise RecipeError(f"back_projection_iterations must be a range from 1 up, got {self.back_projection_iterations}")
        if self.degradation.scale != self.light.scale:
            raise RecipeError(f"both degradations need one scale, got {self.degradation.scale} and {self.light.scale}")
        if self.mask.area[0] * self.crop**2 < 1:
            raise RecipeError(f"the smallest mask must cover a pixel of {self.crop}x{self.crop}, got area {self.mask.area[0]}")
        if self.crop % self.scale:
            raise RecipeError(f"crop must be a multiple of the scale x{self.scale}, got {self.crop}")

    @property
    def scale(self) -> int:
        """How much larger gt is than lr."""
        return self.degradation.scale


@dataclass(frozen=True)
class ModelCall:
    """Which SR model made I_SR, and what was drawn for the call (see `SRCall`)."""

    name: str
    version: str
    family: str
    seed: int
    settings: dict[str, float]


@dataclass(frozen=True)
class Recipe:
    """One sample, as plain data.

    Attributes:
        kind: "clean" swaps gt's own content in, so syn = gt.
        crop: where gt lies in its photo.
        degradation: gt → lr.
        model: the SR model run on lr; None where artefacts act on gt.
        artefacts: applied in order to the model's output, or to gt.
        donor: what artefacts that need foreign detail take it from; None for the image itself.
        back_projection: makes the result agree with lr; None leaves it.
        mask: where sr replaces gt.
    """

    kind: SampleKind
    crop: Crop
    degradation: Degradation
    model: ModelCall | None
    artefacts: tuple[Artefact, ...]
    donor: Crop | None
    back_projection: BackProjection | None
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
    def source_id(self) -> str:
        """The photo."""
        return self.crop.source_id

    @property
    def origin(self) -> str:
        """Where the defects come from, in one word: ``clean``, ``model``, ``perturbed``, ``hallucination`` or ``artefact``."""
        if self.kind == "clean":
            return "clean"
        if self.model:
            return "perturbed" if self.model.family in PERTURBED_FAMILIES else "model"
        return "hallucination" if self.artefacts and family_of(self.artefacts[0].kind) == "hallucination" else "artefact"

    @property
    def families(self) -> frozenset[str]:
        """All families of faults in I_SR, of models and artefacts, for evaluation on families held out of training."""
        return frozenset({*([self.model.family] if self.model else []), *(family_of(a.kind) for a in self.artefacts)})

    def sr_call(self) -> SRCall:
        """The call to make of ``model``. Raises `RecipeError` when there is none."""
        if self.model is None:
            raise RecipeError(f"{self.source_id}: the recipe calls no SR model")
        return SRCall(self.model.seed, self.model.settings, self.crop)


@cache
def _recipe_adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Recipe)


@dataclass(frozen=True)
class PhotoSize:
    """A photo that crops are drawn from: its name, height and width in px."""

    source_id: str
    height: int
    width: int


FindDonor = Callable[[], PhotoSize]
"""Opens another photo to take detail from; called only when a recipe needs one."""


def sample_recipe(
    rng: np.random.Generator,
    photo: PhotoSize,
    config: RecipeConfig,
    models: Mapping[str, SRModel] | None = None,
    *,
    find_donor: FindDonor | None = None,
    has_segments: bool = False,
) -> Recipe:
    """Draw a recipe for a photo.

    Args:
        rng: decides everything.
        photo: the photo.
        config: ranges and shares.
        models: the SR models that may be called; none: artefacts alone.
        find_donor: the other photo, for artefacts that take detail from one; None when there is no other.
        has_segments: whether masks of a segmentation model are to be had.

    Raises:
        RecipeError: the photo is smaller than the crop.
    """
    streams = rng.spawn(7)
    crop = _sample_crop(streams[0], photo, config.crop)
    is_light = streams[1].uniform() < config.light_share
    degradation = sample_degradation(streams[1], config.light if is_light else config.degradation)
    is_clean = streams[2].uniform() < config.clean_share
    origin = _sample_origin(streams[2], photo, config, models or {})
    model = origin if isinstance(origin, ModelCall) else None
    artefacts = _sample_artefacts(streams[3], config, origin)
    return Recipe(
        kind="clean" if is_clean else "swap",
        crop=crop,
        degradation=degradation,
        model=model,
        artefacts=artefacts,
        donor=_sample_donor(streams[4], config, artefacts, find_donor),
        back_projection=_sample_back_projection(streams[6], config),
        mask=sample_mask(streams[5], config.mask, has_segments=has_segments),
    )


def _sample_crop(rng: np.random.Generator, photo: PhotoSize, side: int) -> Crop:
    if min(photo.height, photo.width) < side:
        raise RecipeError(f"{photo.source_id}: photo must be at least {side} px on each side, got {photo.width}x{photo.height}")
    top, left = int(rng.integers(photo.height - side + 1)), int(rng.integers(photo.width - side + 1))
    return Crop(photo.source_id, top, left, side, bool(rng.uniform() < 0.5), (photo.height, photo.width))


def _sample_origin(
    rng: np.random.Generator, photo: PhotoSize, config: RecipeConfig, models: Mapping[str, SRModel]
) -> ModelCall | Literal["hallucination", "artefact"]:
    """What breaks the image: a call of an SR model, or which kind of artefacts."""
    usable = [model for _, model in sorted(models.items()) if model.covers(photo.source_id)]
    perturbed = [model for model in usable if model.family in PERTURBED_FAMILIES]
    plain = [model for model in usable if model.family not in PERTURBED_FAMILIES]
    mix = config.mix
    hallucinations, others = (bool(kinds) for kinds in _kinds_by_origin(config))
    weights = np.array(
        [mix.model * bool(plain), mix.perturbed * bool(perturbed), mix.hallucination * hallucinations, mix.artefact * others]
    )
    if not weights.any():
        raise RecipeError(f"{photo.source_id}: the mix allows {mix}, but no such model or artefact is at hand; widen the mix")
    choice = int(np.searchsorted(np.cumsum(weights), rng.uniform(0, weights.sum()), side="right"))
    if choice < 2:
        return _sample_call(rng, plain if choice == 0 else perturbed)
    return "hallucination" if choice == 2 else "artefact"


def _sample_call(rng: np.random.Generator, models: list[SRModel]) -> ModelCall:
    families = sorted({model.family for model in models})
    family = families[rng.integers(len(families))]
    members = [model for model in models if model.family == family]
    model = members[rng.integers(len(members))]
    settings = {name: span.sample(rng) for name, span in sorted(model.settings.items())}
    return ModelCall(model.name, model.version, family, int(rng.integers(2**31)), settings)


def _kinds_by_origin(config: RecipeConfig) -> tuple[tuple[ArtefactKind, ...], tuple[ArtefactKind, ...]]:
    """The configured kinds: those that hallucinate, and the others."""
    hallucinations = frozenset(FAMILIES["hallucination"])
    return tuple(k for k in config.kinds if k in hallucinations), tuple(k for k in config.kinds if k not in hallucinations)


def _sample_artefacts(
    rng: np.random.Generator, config: RecipeConfig, origin: ModelCall | Literal["hallucination", "artefact"]
) -> tuple[Artefact, ...]:
    is_on_model = rng.uniform() < config.artefact_on_model_share
    length = int(rng.integers(1, config.max_artefacts + 1))
    if isinstance(origin, ModelCall):
        pools = [config.kinds] * (length * is_on_model)
    else:
        first = _kinds_by_origin(config)[0 if origin == "hallucination" else 1]
        pools = [first, *[config.kinds] * (length - 1)]
    return tuple(sample_artefact(rng, kinds=pool, severity=config.severity) for pool in pools)


def _sample_donor(
    rng: np.random.Generator, config: RecipeConfig, artefacts: tuple[Artefact, ...], find_donor: FindDonor | None
) -> Crop | None:
    is_other = rng.uniform() < config.other_donor_share
    if find_donor is None or not is_other or not any(artefact.kind in DONOR_KINDS for artefact in artefacts):
        return None
    return _sample_crop(rng, find_donor(), config.crop)


def _sample_back_projection(rng: np.random.Generator, config: RecipeConfig) -> BackProjection | None:
    low, high = config.back_projection_iterations
    iterations = int(rng.integers(low, high + 1))
    return BackProjection(iterations) if rng.uniform() < config.back_projection_share else None
