"""Weighted means of what an update computes bit by bit, in one process or several."""

from __future__ import annotations

from collections import defaultdict

from finpercep.rl.world import World


class Tally:
    """Adds up values by name with weights, and tells their means over all processes of ``world``."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._weights: defaultdict[str, float] = defaultdict(float)

    def add(self, weight: float, **values: float) -> None:
        """Count ``values`` with ``weight``."""
        for name, value in values.items():
            self._sums[name] += weight * value
            self._weights[name] += weight

    def mean(self, name: str) -> float:
        """The weighted mean of what any process added under ``name``; 0 when none did. Every process asks."""
        total, weight = self._world.total(self._sums[name]), self._world.total(self._weights[name])
        return total / weight if weight else 0.0
