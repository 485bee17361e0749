"""I_SR from SR models, behind one small protocol. Models are handed in: this package knows none, nor how they are loaded.

Variants of one network (1, 2 or 4 sampling steps; an early snapshot) are simply several models of different names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from data_synth.schema.errors import FinpercepError


class SRModelError(FinpercepError):
    """An SR model that is missing or returns something that is not an SR image."""


class SRModel(Protocol):
    """Low-resolution batch in, high-resolution batch out, the same for the same seeds."""

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

    def __call__(self, lr: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """SR images N×3×h·scale×w·scale of ``lr`` (N×3×h×w float32 RGB in [0, 1]); one seed an image."""
        ...


SRFactory = Callable[[], Mapping[str, SRModel]]
"""Makes the models by name, in each worker; picklable (a module-level function, or a partial of one)."""


def no_models() -> Mapping[str, SRModel]:
    """The factory of a build with procedural artefacts alone."""
    return {}


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
