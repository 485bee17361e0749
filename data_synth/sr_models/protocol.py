"""I_SR from SR models, behind one small protocol. Knows no model, nor how any is loaded.

A build hands a model batches of LR images, each with an `SRCall`: the seed of its noise, the settings drawn for it (steps,
guidance, …) and where it was cropped. The same LR images and calls give the same output, so outputs can be cached by content.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from data_synth.schema.errors import FinpercepError


class SRModelError(FinpercepError):
    """An SR model that is missing, cannot be loaded, or returns something that is not an SR image."""


@dataclass(frozen=True)
class Span:
    """Range a setting is drawn from, both ends included; ``spacing`` says how: uniform, log-uniform or uniform integers."""

    low: float
    high: float
    spacing: Literal["linear", "log", "integer"] = "linear"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise SRModelError(f"a range needs finite low <= high, got {self.low} … {self.high}")
        if self.spacing == "log" and self.low <= 0:
            raise SRModelError(f"a log-uniform range must be positive, got {self.low} … {self.high}")

    def sample(self, rng: np.random.Generator) -> float:
        """One draw."""
        if self.spacing == "integer":
            return float(rng.integers(round(self.low), round(self.high) + 1))
        if self.spacing == "log":
            return float(np.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return float(rng.uniform(self.low, self.high))


@dataclass(frozen=True)
class Crop:
    """A square of a photo: ``top``, ``left``, ``size`` in px of the photo; ``flip``: mirrored left to right after cutting.

    ``photo_size``: height and width of the whole photo in px, where known, so that ready outputs of another size are noticed.
    """

    source_id: str
    top: int
    left: int
    size: int
    flip: bool = False
    photo_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class SRCall:
    """What, beside the LR image, decides an SR output.

    Attributes:
        seed: of the model's noise.
        settings: one number for each of the model's `SRModel.settings`, drawn from its range.
        crop: where the HR crop lies in its photo; only ready outputs look at it.
    """

    seed: int
    settings: Mapping[str, float]
    crop: Crop


class SRModel(Protocol):
    """Low-resolution batch in, high-resolution batch out, the same for the same calls."""

    @property
    def name(self) -> str:
        """What recipes call it; unique among the models of a build."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever its output would, for instance a digest of its weights."""
        ...

    @property
    def scale(self) -> int:
        """Upscaling factor."""
        ...

    @property
    def family(self) -> str:
        """What kind of faults it makes, in a word, so that families can be held out: ``diffusion``, ``gan``, ``perturbed``, …"""
        ...

    @property
    def settings(self) -> Mapping[str, Span]:
        """Ranges of what varies from call to call; empty for most networks."""
        ...

    def covers(self, source_id: str) -> bool:
        """Whether it can serve crops of this photo. True for networks; ready outputs exist for some photos only."""
        ...

    def __call__(self, lr: torch.Tensor, calls: Sequence[SRCall]) -> torch.Tensor:
        """SR images N×3×h·scale×w·scale of ``lr`` (N×3×h×w float32 RGB in [0, 1], on the CPU); one call an image."""
        ...


def check_output(model: SRModel, lr: torch.Tensor, sr: torch.Tensor) -> torch.Tensor:
    """Check what ``model`` made of ``lr``; returns it clamped to [0, 1].

    Raises:
        SRModelError: wrong size, or non-finite values.
    """
    height, width = lr.shape[-2:]
    expected = (lr.shape[0], 3, height * model.scale, width * model.scale)
    if tuple(sr.shape) != expected:
        raise SRModelError(
            f"SR model {model.name}: expected output {expected} for x{model.scale}, got {tuple(sr.shape)}; check its scale"
        )
    finite = torch.isfinite(sr)
    if not finite.all():
        bad = float((~finite).float().mean())
        raise SRModelError(
            f"SR model {model.name}: output must be finite, got {bad:.1%} NaN or infinite values; check its weights"
        )
    return sr.float().clamp(0, 1)
