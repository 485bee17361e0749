"""Numbers from uniform draws, and the checks on the ranges they come from.

A sampler takes all its uniform draws at once, as many whatever the configuration, and shapes them with these functions:
under one seed, two configurations then differ only where their ranges do. Knows nothing about images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from data_synth.schema.errors import FinpercepError

T = TypeVar("T")
Range = tuple[float, float]
"""(low, high), both included."""

SUM_TOLERANCE = 1e-6


class DrawError(FinpercepError, ValueError):
    """Ranges or probabilities nothing can be drawn from.

    A `ValueError` too, so that pydantic reports it with the place in the document it came from.
    """


def between(u: float, bounds: Range) -> float:
    """Uniform in ``bounds`` for ``u`` uniform in [0, 1)."""
    return float(bounds[0] + u * (bounds[1] - bounds[0]))


def integer_between(u: float, bounds: tuple[int, int]) -> int:
    """Uniform integer in ``bounds``, both ends included, for ``u`` uniform in [0, 1)."""
    return bounds[0] + int(u * (bounds[1] - bounds[0] + 1))


def choose(u: float, options: Sequence[T], probabilities: Sequence[float] | None = None) -> T:
    """One of ``options``, by ``probabilities`` (equal ones when None), for ``u`` uniform in [0, 1)."""
    if probabilities is None:
        return options[int(u * len(options))]
    total = 0.0
    for option, probability in zip(options, probabilities, strict=True):
        total += probability
        if u < total:
            return option
    # Rounding may leave the sum a hair below 1: the last option that can occur at all.
    return next(option for option, probability in zip(reversed(options), reversed(probabilities), strict=True) if probability > 0)


def check_probability(name: str, value: float) -> None:
    """Raise `DrawError` unless ``value`` lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise DrawError(f"{name} must lie in [0, 1], got {value}")


def check_probabilities(name: str, values: Sequence[float], count: int) -> None:
    """Raise `DrawError` unless ``values`` are ``count`` probabilities that sum to 1."""
    if len(values) != count:
        raise DrawError(f"{name} must be {count} probabilities, got {len(values)}")
    for value in values:
        check_probability(name, value)
    if abs(sum(values) - 1) > SUM_TOLERANCE:
        raise DrawError(f"{name} must sum to 1, got {tuple(values)}, which sum to {sum(values):g}")


def check_range(name: str, bounds: Range, least: float = -math.inf, most: float = math.inf) -> None:
    """Raise `DrawError` unless ``bounds`` = (low, high) are finite, low <= high, and both lie in [least, most]."""
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise DrawError(f"{name} must be finite (low, high) with low <= high, got {bounds}")
    if not (least <= low and high <= most):
        raise DrawError(f"{name} must lie in [{least:g}, {most:g}], got {bounds}")
