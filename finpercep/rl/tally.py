"""Weighted means of what an update computes bit by bit."""

from __future__ import annotations

from collections import defaultdict


class Tally:
    """Adds up values by name with weights, and tells their means."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._weights: defaultdict[str, float] = defaultdict(float)

    def add(self, weight: float, **values: float) -> None:
        """Count ``values`` with ``weight``."""
        for name, value in values.items():
            self._sums[name] += weight * value
            self._weights[name] += weight

    def mean(self, name: str) -> float:
        """The weighted mean of what was added under ``name``; 0 when nothing was."""
        return self._sums[name] / self._weights[name] if self._weights[name] else 0.0
