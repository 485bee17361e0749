"""Procedural SR artefacts: what no SR model at hand makes on demand, as plain parameters first, then their pure effect.

`sample_artefact` draws an `Artefact` (numbers only); `apply_artefact` gives the same pixels every time. A ``severity`` in
[0, 1] drives the range of each kind's parameters, so how bad a sample is meant to be is on record. What kinds there are stands in
`artefact_kinds`, the effects in `effects`. Knows nothing about masks, SR models or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_synth.artefact_kinds import (
    ARTEFACT_KINDS,
    DONOR_KINDS,
    DRAWS,
    FAMILIES,
    KINDS,
    ArtefactKind,
    Family,
    family_of,
    parameters_of,
)
from data_synth.images import FloatImage

__all__ = [
    "ARTEFACT_KINDS",
    "DONOR_KINDS",
    "FAMILIES",
    "Artefact",
    "ArtefactKind",
    "Family",
    "apply_artefact",
    "artefact_of_severity",
    "family_of",
    "sample_artefact",
]


@dataclass(frozen=True)
class Artefact:
    """A drawn artefact: plain data, stored in the sample's recipe and replayed exactly by `apply_artefact`.

    Attributes:
        kind: which effect.
        severity: how bad it was meant to be, in [0, 1]; recorded only, `params` alone decide the pixels.
        params: the effect's keyword arguments.
        seed: seeds the effect's own noise.
    """

    kind: ArtefactKind
    severity: float
    params: dict[str, float]
    seed: int


def sample_artefact(
    rng: np.random.Generator,
    *,
    kinds: Sequence[ArtefactKind] = ARTEFACT_KINDS,
    severity: tuple[float, float] = (0.1, 1.0),
) -> Artefact:
    """Draw an artefact: kind uniform over ``kinds``, severity uniform in its range."""
    kind = kinds[int(rng.integers(len(kinds)))]
    return artefact_of_severity(rng, kind, float(rng.uniform(*severity)))


def artefact_of_severity(rng: np.random.Generator, kind: ArtefactKind, severity: float) -> Artefact:
    """Draw what severity leaves open (angle, period, seed). Consumes the same draws at any severity and for any kind.

    Raises:
        ValueError: severity outside [0, 1].
    """
    if not 0 <= severity <= 1:
        raise ValueError(f"severity must lie in [0, 1], got {severity}")
    params = parameters_of(kind, severity, rng.uniform(size=DRAWS))
    return Artefact(kind, severity, params, int(rng.integers(2**31)))


def apply_artefact(artefact: Artefact, image: FloatImage, donor: FloatImage | None = None) -> FloatImage:
    """Apply a drawn artefact.

    Args:
        artefact: what to do.
        image: H×W×3 float32 in [0, 1], at least 16 px a side; not modified.
        donor: another photo of the same shape that `DONOR_KINDS` take detail from (the image itself when None).
            Other kinds ignore it.

    Returns:
        The same shape, dtype and range.

    Raises:
        ValueError: the donor has another shape.
    """
    kind = KINDS[artefact.kind]
    arguments: dict[str, object] = {
        name: int(value) if kind.parameters[name].whole else value for name, value in artefact.params.items()
    }
    if kind.seeded:
        arguments["seed"] = artefact.seed
    if kind.uses_donor:
        if donor is not None and donor.shape != image.shape:
            raise ValueError(f"the donor must have the image's shape {image.shape}, got {donor.shape}; crop it to that size")
        arguments["donor"] = donor
    return np.clip(kind.effect(image, **arguments), 0, 1).astype(np.float32, copy=False)
