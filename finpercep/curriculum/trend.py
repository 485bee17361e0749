"""Where a noisy series is heading: its least-squares slope, with an interval. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Trend:
    """Of the reward over some steps.

    Attributes:
        span: how many.
        slope: a step.
        reach: half of the slope's interval.
        deviation: standard deviation of the steps from their line.
    """

    span: int
    slope: float
    reach: float
    deviation: float

    @classmethod
    def of(cls, rewards: Sequence[float], confidence: float) -> Trend:
        """Of at least three ``rewards``; ``confidence`` is the interval's z."""
        count = len(rewards)
        slope, error = slope_of(rewards)
        return cls(count, slope, confidence * error, error * math.sqrt((count**3 - count) / 12))

    @property
    def level(self) -> bool:
        """Whether the interval contains 0."""
        return abs(self.slope) <= self.reach

    def __str__(self) -> str:
        return f"the reward's slope over {self.span} steps is {self.slope:.2g} ± {self.reach:.2g} a step"


def slope_of(values: Sequence[float]) -> tuple[float, float]:
    """Least-squares slope of ``values`` over their index, and its standard error."""
    count = len(values)
    centre = (count - 1) / 2
    mean = statistics.fmean(values)
    spread = sum((x - centre) ** 2 for x in range(count))
    slope = sum((x - centre) * (value - mean) for x, value in enumerate(values)) / spread
    residual = sum((value - mean - slope * (x - centre)) ** 2 for x, value in enumerate(values))
    return slope, math.sqrt(residual / (count - 2) / spread)
