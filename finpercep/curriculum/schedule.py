"""When the reward moves from rung to rung (method §5). Pure: a step in, the blend of rungs out."""

from __future__ import annotations

from dataclasses import dataclass

from finpercep.errors import ConfigError


@dataclass(frozen=True)
class RungBlend:
    """The reward of a step: (1 − weight)·R_rung + weight·R_next.

    Attributes:
        rung: index of the rung in force.
        next: index of the rung being blended in; None outside a blending window.
        weight: share of the next rung, in [0, 1); 0 when ``next`` is None.
    """

    rung: int
    next: int | None = None
    weight: float = 0.0


@dataclass(frozen=True)
class RungSchedule:
    """Rung lengths set by hand, as in the paper, with a linear blend before each change.

    Attributes:
        lengths: steps on each rung, first to last; the last rung goes on after its steps are over.
        blend_steps: steps over which the next rung is blended in, taken from the end of each rung but the last.
    """

    lengths: tuple[int, ...]
    blend_steps: int

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ConfigError(f"rung lengths must be positive, one for each rung, got {self.lengths}")
        if self.blend_steps < 0 or any(self.blend_steps >= length for length in self.lengths[:-1]):
            raise ConfigError(
                f"blend_steps must be >= 0 and shorter than every rung it shortens {self.lengths}, got {self.blend_steps}"
            )

    @classmethod
    def even(cls, steps: int, rungs: int, blend_share: float = 0.25) -> RungSchedule:
        """``steps`` divided evenly, the remainder going to the last rungs; each change blended over ``blend_share`` of a rung."""
        if steps < rungs:
            raise ConfigError(f"{rungs} rungs need at least {rungs} steps, got {steps}")
        lengths = tuple((steps * (k + 1)) // rungs - (steps * k) // rungs for k in range(rungs))
        return cls(lengths, min(int(min(lengths) * blend_share), min(lengths) - 1))

    def at(self, step: int) -> RungBlend:
        """The blend at a 0-based step."""
        start = 0
        for rung, length in enumerate(self.lengths[:-1]):
            end = start + length
            if step < end:
                into_window = step - (end - self.blend_steps)
                if into_window < 0:
                    return RungBlend(rung)
                return RungBlend(rung, rung + 1, (into_window + 1) / (self.blend_steps + 1))
            start = end
        return RungBlend(len(self.lengths) - 1)
