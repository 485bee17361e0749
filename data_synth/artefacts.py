"""Procedural SR artefacts: what no SR model at hand makes on demand, as plain parameters first, then their pure effect.

`sample_artefact` draws an `Artefact` (numbers only); `apply_artefact` gives the same pixels every time. A ``severity`` in
[0, 1] drives the range of each kind's parameters, so how bad a sample is meant to be is on record. The effects themselves
are in `artefact_effects`. Knows nothing about masks, SR models or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from data_synth import artefact_effects as effects
from data_synth.degradations import FloatImage, jpeg_round_trip

ArtefactKind = Literal[
    "painterly",
    "halo",
    "checkerboard",
    "texture",
    "displaced_detail",
    "grain",
    "blocking",
    "blur",
    "ringing",
    "colour_drift",
    "grid",
    "aliasing",
]
ARTEFACT_KINDS: tuple[ArtefactKind, ...] = get_args(ArtefactKind)


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
    severity: tuple[float, float] = (0.15, 1.0),
) -> Artefact:
    """Draw an artefact: kind uniform over ``kinds``, severity uniform in its range."""
    kind = kinds[int(rng.integers(len(kinds)))]
    return artefact_of_severity(rng, kind, float(rng.uniform(*severity)))


def artefact_of_severity(rng: np.random.Generator, kind: ArtefactKind, severity: float) -> Artefact:
    """Draw what severity leaves open (angle, period, seed). Consumes the same draws at any severity.

    Raises:
        ValueError: severity outside [0, 1].
    """
    if not 0 <= severity <= 1:
        raise ValueError(f"severity must lie in [0, 1], got {severity}")
    nuisance = rng.uniform(size=3)
    params = _params(kind, severity, nuisance)
    return Artefact(kind, severity, {name: float(value) for name, value in params.items()}, int(rng.integers(2**31)))


def apply_artefact(artefact: Artefact, image: FloatImage) -> FloatImage:
    """Apply a drawn artefact to an H×W×3 float32 image in [0, 1]; returns the same shape, dtype and range."""
    return np.clip(_effect(artefact, image), 0, 1).astype(np.float32, copy=False)


def _linear(at: float, low: float, high: float) -> float:
    return low + at * (high - low)


def _geometric(at: float, low: float, high: float) -> float:
    return float(low * (high / low) ** at)


def _params(kind: ArtefactKind, s: float, u: npt.NDArray[np.float64]) -> dict[str, float]:
    """Parameters for severity ``s``, with three uniform draws ``u`` for what severity leaves open. Lengths in px."""
    match kind:
        case "painterly":
            return {"radius": 2 + int(2 * u[0]), "amount": _linear(s, 0.3, 1.0)}
        case "halo":
            return {"sigma": _linear(u[0], 0.8, 2.0), "amount": _geometric(s, 0.4, 4.0)}
        case "checkerboard":
            return {"period": (2, 4)[int(2 * u[0])], "amplitude": _geometric(s, 0.05, 0.5)}
        case "texture":
            shape = {"period": _linear(u[0], 3, 9), "angle": u[1] * np.pi, "bandwidth": _linear(u[2], 0.15, 0.5)}
            return {**shape, "amplitude": _geometric(s, 0.03, 0.25)}
        case "displaced_detail":
            field = {"cutoff": _linear(u[0], 1.5, 3.0), "correlation": _geometric(u[1], 1.5, 8.0)}
            return {**field, "distance": _geometric(s, 0.5, 4.0)}
        case "grain":
            return {"size": _linear(u[0], 0.0, 1.2), "chroma": u[1], "amplitude": _geometric(s, 0.015, 0.14)}
        case "blocking":
            return {"quality": round(_geometric(s, 45, 4))}
        case "blur":
            return {"sigma": _geometric(s, 0.6, 4.0)}
        case "ringing":
            return {"cutoff": _linear(u[0], 0.16, 0.3), "boost": _geometric(s, 0.3, 4.0)}
        case "colour_drift":
            return {"hue": u[0] * 2 * np.pi, "size": _geometric(u[1], 12, 60), "amplitude": _geometric(s, 0.02, 0.16)}
        case "grid":
            axes = {"both_axes": int(u[1] < 0.6), "vertical": int(u[2] < 0.5)}
            return {**axes, "period": (4, 8, 16)[int(3 * u[0])], "amplitude": _geometric(s, 0.015, 0.15)}
        case "aliasing":
            return {"factor": _linear(u[0], 1.5, 2.5) * _geometric(s, 1.0, 2.0), "amount": _linear(s, 0.3, 1.0)}


def _effect(artefact: Artefact, image: FloatImage) -> FloatImage:
    p, seed = artefact.params, artefact.seed
    match artefact.kind:
        case "painterly":
            return effects.painterly(image, radius=int(p["radius"]), amount=p["amount"])
        case "halo":
            return effects.halo(image, **p)
        case "checkerboard":
            return effects.checkerboard(image, seed=seed, period=int(p["period"]), amplitude=p["amplitude"])
        case "texture":
            return effects.oriented_texture(image, seed=seed, **p)
        case "displaced_detail":
            return effects.displaced_detail(image, seed=seed, **p)
        case "grain":
            return effects.grain(image, seed=seed, **p)
        case "blocking":
            return jpeg_round_trip(image, int(p["quality"]))
        case "blur":
            return effects.blur(image, **p)
        case "ringing":
            return effects.ringing(image, **p)
        case "colour_drift":
            return effects.colour_drift(image, seed=seed, **p)
        case "grid":
            flags = {"both_axes": bool(p["both_axes"]), "vertical": bool(p["vertical"])}
            return effects.grid(image, period=int(p["period"]), amplitude=p["amplitude"], **flags)
        case "aliasing":
            return effects.aliasing(image, **p)
