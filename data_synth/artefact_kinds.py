"""The one table of procedural artefacts: each kind's family, effect and the ranges its parameters are drawn from.

A parameter either rises with severity (how bad) or is drawn at random (what severity leaves open: angle, period, size). Adding a
kind means one effect in `data_synth.effects` and one entry here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from data_synth.effects import (
    colour,
    compression,
    geometry,
    glyphs,
    hallucination,
    look_alike,
    noise,
    periodic,
    sharpening,
    smoothing,
)
from data_synth.images import FloatImage

ArtefactKind = Literal[
    "painterly",
    "painterly_anisotropic",
    "blur",
    "halo",
    "ringing",
    "checkerboard",
    "grid",
    "stripes",
    "moire",
    "texture",
    "grain",
    "blocking",
    "colour_drift",
    "colour_bleeding",
    "aliasing",
    "ghosting",
    "warp",
    "broken_lines",
    "displaced_detail",
    "fine_displacement",
    "phase_scramble",
    "look_alike",
    "mirrored",
    "strokes",
    "redrawn",
    "lattice",
    "glyphs",
]
ARTEFACT_KINDS: tuple[ArtefactKind, ...] = get_args(ArtefactKind)

Family = Literal[
    "smoothing",
    "sharpening",
    "periodic",
    "texture",
    "noise",
    "compression",
    "colour",
    "sampling",
    "geometry",
    "hallucination",
]


@dataclass(frozen=True)
class Parameter:
    """How one parameter of an effect comes about.

    Attributes:
        value: (severity, uniform draw), both in [0, 1] → the number.
        whole: the effect takes it as an integer.
    """

    value: Callable[[float, float], float]
    whole: bool = False


@dataclass(frozen=True)
class Kind:
    """One kind of artefact.

    Attributes:
        family: kinds that fail alike; held-out studies leave out whole families.
        effect: takes the image, the parameters by name, and ``seed`` and ``donor`` where the kind uses them.
        parameters: by name of the effect's argument.
        seeded: the effect draws noise of its own.
        uses_donor: the effect can take detail from another photo.
    """

    family: Family
    effect: Callable[..., FloatImage]
    parameters: Mapping[str, Parameter]
    seeded: bool = field(default=False, kw_only=True)
    uses_donor: bool = field(default=False, kw_only=True)


DRAWS = 8
"""Uniform draws an artefact consumes, whatever its kind: one for each parameter in its order, the rest unused."""


def _drawn(low: float, high: float) -> Parameter:
    return Parameter(lambda _, u: low + u * (high - low))


def _drawn_log(low: float, high: float) -> Parameter:
    return Parameter(lambda _, u: low * (high / low) ** u)


def _one_of(*values: int) -> Parameter:
    return Parameter(lambda _, u: values[min(int(len(values) * u), len(values) - 1)], whole=True)


def _chance(probability: float) -> Parameter:
    return Parameter(lambda _, u: int(u < probability), whole=True)


def _worse(mild: float, gross: float) -> Parameter:
    """Geometric from ``mild`` at severity 0 to ``gross`` at severity 1; either may be the larger."""
    return Parameter(lambda s, _: mild * (gross / mild) ** s)


def _worse_evenly(mild: float, gross: float) -> Parameter:
    return Parameter(lambda s, _: mild + s * (gross - mild))


def _rounded(parameter: Parameter) -> Parameter:
    return Parameter(lambda s, u: round(parameter.value(s, u)), whole=True)


def _times(first: Parameter, second: Parameter) -> Parameter:
    return Parameter(lambda s, u: first.value(s, u) * second.value(s, u))


_ANGLE = _drawn(0, math.pi)

_TABLE: dict[ArtefactKind, Kind] = {
    "painterly": Kind("smoothing", smoothing.painterly, {"radius": _one_of(2, 3), "amount": _worse_evenly(0.3, 1.0)}),
    "painterly_anisotropic": Kind(
        "smoothing",
        smoothing.painterly_anisotropic,
        {"size": _drawn(1.5, 4.0), "length": _worse(1.5, 6.0), "amount": _worse_evenly(0.4, 1.0)},
    ),
    "blur": Kind("smoothing", smoothing.blur, {"sigma": _worse(0.6, 4.0)}),
    "halo": Kind("sharpening", sharpening.halo, {"sigma": _drawn(0.8, 2.0), "amount": _worse(0.4, 4.0)}),
    "ringing": Kind("sharpening", sharpening.ringing, {"cutoff": _drawn(0.16, 0.3), "boost": _worse(0.3, 4.0)}),
    "checkerboard": Kind(
        "periodic", periodic.checkerboard, {"period": _one_of(2, 4), "amplitude": _worse(0.05, 0.5)}, seeded=True
    ),
    "grid": Kind(
        "periodic",
        periodic.grid,
        {"period": _one_of(4, 8, 16), "both_axes": _chance(0.6), "vertical": _chance(0.5), "amplitude": _worse(0.015, 0.15)},
    ),
    "stripes": Kind(
        "periodic",
        periodic.stripes,
        {
            "period": _drawn_log(2.5, 14),
            "angle": _ANGLE,
            "wander": _drawn(0.0, 1.5),
            "colour": _drawn(0.0, 1.0),
            "amplitude": _worse(0.015, 0.15),
        },
        seeded=True,
    ),
    "moire": Kind(
        "periodic",
        periodic.moire,
        {
            "period": _drawn_log(5, 20),
            "angle": _ANGLE,
            "bend": _drawn(1.0, 3.0),
            "colour": _drawn(0.0, 1.0),
            "amplitude": _worse(0.015, 0.13),
        },
        seeded=True,
    ),
    "texture": Kind(
        "texture",
        noise.oriented_texture,
        {"period": _drawn(3, 9), "angle": _ANGLE, "bandwidth": _drawn(0.15, 0.5), "amplitude": _worse(0.03, 0.25)},
        seeded=True,
    ),
    "grain": Kind(
        "noise",
        noise.grain,
        {"size": _drawn(0.0, 1.2), "chroma": _drawn(0.0, 1.0), "amplitude": _worse(0.015, 0.14)},
        seeded=True,
    ),
    "blocking": Kind("compression", compression.blocking, {"quality": _rounded(_worse(45, 4))}),
    "colour_drift": Kind(
        "colour",
        colour.colour_drift,
        {"hue": _drawn(0, 2 * math.pi), "size": _drawn_log(12, 60), "amplitude": _worse(0.02, 0.16)},
        seeded=True,
    ),
    "colour_bleeding": Kind(
        "colour",
        colour.colour_bleeding,
        {"correlation": _drawn_log(6, 24), "gain": _worse_evenly(1.0, 1.3), "sigma": _worse(1.5, 12)},
        seeded=True,
    ),
    "aliasing": Kind(
        "sampling",
        geometry.aliasing,
        {"factor": _times(_drawn(1.5, 2.5), _worse(1.0, 2.0)), "amount": _worse_evenly(0.3, 1.0)},
    ),
    "ghosting": Kind(
        "geometry",
        geometry.ghosting,
        {
            "angle": _drawn(0, 2 * math.pi),
            "distance": _drawn_log(2.0, 8.0),
            "spread": _drawn(0.0, 0.4),
            "amount": _worse(0.08, 0.5),
        },
        seeded=True,
    ),
    "warp": Kind("geometry", geometry.warp, {"correlation": _drawn_log(8, 24), "distance": _worse(0.5, 5.0)}, seeded=True),
    "broken_lines": Kind(
        "geometry",
        geometry.broken_lines,
        {
            "width": _one_of(2, 3, 4),
            "correlation": _drawn(2.5, 5.0),
            "share": _worse_evenly(0.1, 0.6),
            "distance": _worse(0.4, 3.0),
        },
        seeded=True,
    ),
    "displaced_detail": Kind(
        "hallucination",
        hallucination.displaced_detail,
        {"cutoff": _drawn(1.5, 3.0), "correlation": _drawn_log(1.5, 8.0), "distance": _worse(0.5, 4.0)},
        seeded=True,
    ),
    "fine_displacement": Kind(
        "hallucination",
        hallucination.fine_displacement,
        {"cutoff": _drawn(3.0, 5.0), "correlation": _drawn_log(1.5, 6.0), "distance": _worse(0.4, 2.5)},
        seeded=True,
    ),
    "phase_scramble": Kind(
        "hallucination",
        hallucination.phase_scramble,
        {"window": _one_of(8, 12, 16), "cutoff": _worse(1.0, 2.5), "spread": _worse(0.5, 3.0)},
        seeded=True,
    ),
    "look_alike": Kind("hallucination", look_alike.look_alike, {"cutoff": _worse(0.6, 2.4)}, seeded=True, uses_donor=True),
    "mirrored": Kind(
        "hallucination",
        hallucination.mirrored,
        {"cell": _one_of(5, 7, 9, 12), "cutoff": _worse(0.7, 2.2), "share": _worse_evenly(0.3, 1.0)},
        seeded=True,
    ),
    "strokes": Kind(
        "hallucination",
        hallucination.strokes,
        {
            "length": _drawn_log(2.0, 4.5),
            "thickness": _drawn(0.6, 1.0),
            "cutoff": _worse(0.9, 2.2),
            "amount": _worse_evenly(0.3, 1.0),
        },
        seeded=True,
    ),
    "redrawn": Kind(
        "hallucination", hallucination.redrawn, {"fibre": _drawn(0.2, 1.0), "cutoff": _worse(0.35, 1.8)}, seeded=True
    ),
    "lattice": Kind(
        "hallucination",
        hallucination.lattice,
        {"window": _one_of(12, 16, 24), "peaks": _one_of(1, 2, 3), "amount": _worse_evenly(0.2, 1.0)},
        seeded=True,
    ),
    "glyphs": Kind(
        "hallucination",
        glyphs.glyphs,
        {
            "height": _one_of(7, 9, 11, 14),
            "weight": _drawn(1.1, 1.9),
            "slant": _drawn(-0.3, 0.3),
            "share": _worse(0.04, 0.4),
        },
        seeded=True,
    ),
}
KINDS: Mapping[ArtefactKind, Kind] = MappingProxyType(_TABLE)
"""Every kind's entry."""

FAMILIES: Mapping[Family, tuple[ArtefactKind, ...]] = MappingProxyType(
    {family: tuple(kind for kind in ARTEFACT_KINDS if _TABLE[kind].family == family) for family in get_args(Family)}
)
"""The kinds of each family; every kind is in exactly one."""

DONOR_KINDS: frozenset[ArtefactKind] = frozenset(kind for kind, entry in _TABLE.items() if entry.uses_donor)
"""Kinds that can take detail from another photo."""


def family_of(kind: ArtefactKind) -> Family:
    """The family ``kind`` belongs to."""
    return KINDS[kind].family


def parameters_of(kind: ArtefactKind, severity: float, draws: npt.NDArray[np.float64]) -> dict[str, float]:
    """The effect's parameters at ``severity``; ``draws`` holds `DRAWS` uniform numbers for what severity leaves open."""
    named = KINDS[kind].parameters.items()
    return {name: float(parameter.value(severity, float(u))) for (name, parameter), u in zip(named, draws, strict=False)}
