"""When the reward moves from rung to rung: on a plan, or by what the run's own figures say. Pure: metrics in, decision out.

The paper sets rung lengths by hand (method §5); `AdaptiveController` decides instead. It moves up when the reward has stopped
rising and training is calm, and goes back a rung, with a smaller learning rate, when training explodes or the hacking monitor
alarms. Each decision comes with its reasons.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

from finpercep.curriculum.schedule import RungBlend, RungSchedule
from finpercep.errors import ConfigError

Move = Literal["up", "back"]


@dataclass(frozen=True)
class Observation:
    """What one step showed: mean reward, its standard deviation over the images, the gradient's norm before clipping."""

    reward: float
    reward_std: float
    grad_norm: float


@dataclass(frozen=True)
class Decision:
    """What the controller does after a step, and why; ``lr_scale`` multiplies the run's learning rate from now on."""

    move: Move
    rung: int
    lr_scale: float
    reasons: tuple[str, ...]


class Controller(Protocol):
    """Decides the rung of every step."""

    def blend(self, step: int) -> RungBlend:
        """The rungs in force at a 0-based step."""
        ...

    def observe(self, step: int, seen: Observation, *, alarm: str | None = None) -> Decision | None:
        """Take in a step's figures, and the monitor's alarm if it raised one; a decision, where one was taken."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain data that `load_state_dict` goes on from."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        ...


class FixedController:
    """Rung lengths set by hand; answers to nothing."""

    def __init__(self, schedule: RungSchedule) -> None:
        self.schedule = schedule

    def blend(self, step: int) -> RungBlend:
        """See `Controller`."""
        return self.schedule.at(step)

    def observe(self, step: int, seen: Observation, *, alarm: str | None = None) -> Decision | None:  # noqa: ARG002
        """None: the plan is the plan."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


@dataclass(frozen=True)
class AdaptiveConfig:
    """Settings of `AdaptiveController`.

    Attributes:
        window: steps that a judgement looks back over; also the least time on a rung. 20 to 100.
        confidence: z of the interval of the reward's slope; 1.64 is a two-sided 90 %. The reward has stopped rising when the
            interval's lower end is not above 0.
        calm: the window's mean reward deviation and gradient norm must be at most this many times their median on the rung.
        explosion: the same figures of the last `burst` steps, as multiples of the median on the rung, at which to go back.
        burst: steps that an explosion must last.
        lr_cut: the learning rate is multiplied by this whenever the controller goes back, in (0, 1].
        blend_steps: steps over which the next rung is blended in.
    """

    window: int = 30
    confidence: float = 1.64
    calm: float = 1.5
    explosion: float = 4.0
    burst: int = 3
    lr_cut: float = 0.5
    blend_steps: int = 10

    def __post_init__(self) -> None:
        if self.window < 5 or self.burst < 1 or self.blend_steps < 0:
            raise ConfigError(
                f"window must be >= 5, burst >= 1 and blend_steps >= 0, got {self.window}, {self.burst}, {self.blend_steps}"
            )
        if not 0 <= self.confidence < math.inf:
            raise ConfigError(f"confidence must be finite and >= 0, got {self.confidence}")
        if not 0 < self.lr_cut <= 1:
            raise ConfigError(f"lr_cut must lie in (0, 1], got {self.lr_cut}")
        if not 1 <= self.calm < self.explosion:
            raise ConfigError(f"calm must be >= 1 and below explosion, got {self.calm} and {self.explosion}")


@dataclass(frozen=True)
class AdaptiveState:
    """Where an adaptive run stands: the rung, the step at which its blend began, the rate's factor, what the rung has shown."""

    rung: int = 0
    blending_since: int | None = None
    lr_scale: float = 1.0
    seen: tuple[Observation, ...] = field(default=())


class AdaptiveController:
    """Moves up on a plateau, back on an explosion or an alarm.

    Args:
        rungs: of the ladder.
        config: settings.
    """

    def __init__(self, rungs: int, config: AdaptiveConfig) -> None:
        self.rungs, self.config, self.state = rungs, config, AdaptiveState()

    def blend(self, step: int) -> RungBlend:
        """See `Controller`."""
        since = self.state.blending_since
        if since is None:
            return RungBlend(self.state.rung)
        return RungBlend(self.state.rung, self.state.rung + 1, (step - since + 1) / (self.config.blend_steps + 1))

    def observe(self, step: int, seen: Observation, *, alarm: str | None = None) -> Decision | None:
        """See `Controller`."""
        self.state, decision = decide(self.state, step, seen, alarm, self.rungs, self.config)
        return decision

    def state_dict(self) -> dict[str, Any]:
        """See `Controller`."""
        return asdict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Controller`."""
        self.state = AdaptiveState(**{**state, "seen": tuple(Observation(**one) for one in state["seen"])})


def decide(
    state: AdaptiveState, step: int, seen: Observation, alarm: str | None, rungs: int, config: AdaptiveConfig
) -> tuple[AdaptiveState, Decision | None]:
    """The state after a step, and the decision, if any. Alarms come first, then explosions, then plateaus."""
    state = replace(state, seen=(*state.seen, seen))
    if alarm is not None:
        return _back(state, config, (alarm,))
    if reasons := explosions(state.seen, config):
        return _back(state, config, reasons)
    if state.blending_since is not None:
        if step + 1 - state.blending_since < config.blend_steps:
            return state, None
        return AdaptiveState(state.rung + 1, None, state.lr_scale), None
    if state.rung + 1 < rungs and (reasons := plateau(state.seen, config)):
        decision = Decision("up", state.rung + 1, state.lr_scale, reasons)
        if config.blend_steps:
            return replace(state, blending_since=step + 1), decision
        return AdaptiveState(state.rung + 1, None, state.lr_scale), decision
    return state, None


def _back(state: AdaptiveState, config: AdaptiveConfig, reasons: tuple[str, ...]) -> tuple[AdaptiveState, Decision]:
    """A blend is given up, otherwise a rung; on the lowest only the learning rate is cut."""
    rung = state.rung if state.blending_since is not None else max(0, state.rung - 1)
    after = AdaptiveState(rung, None, state.lr_scale * config.lr_cut)
    return after, Decision("back", rung, after.lr_scale, reasons)


def plateau(seen: Sequence[Observation], config: AdaptiveConfig) -> tuple[str, ...]:
    """Why the rung has given what it has, or nothing: the reward's slope is not above 0, and training is calm."""
    if len(seen) < config.window:
        return ()
    window = seen[-config.window :]
    slope, error = slope_of([one.reward for one in window])
    if slope - config.confidence * error > 0:
        return ()
    for name in ("reward_std", "grad_norm"):
        usual = statistics.median(getattr(one, name) for one in seen)
        if statistics.fmean(getattr(one, name) for one in window) > config.calm * usual:
            return ()
    reach = config.confidence * error
    return (
        f"the reward's slope over {config.window} steps is {slope:.2g} ± {reach:.2g} a step",
        "variance and gradient are calm",
    )


def explosions(seen: Sequence[Observation], config: AdaptiveConfig) -> tuple[str, ...]:
    """Which figures have exploded, in words: all of the last steps are far above what was usual on this rung before them."""
    before, last = seen[: -config.burst], seen[-config.burst :]
    if len(before) < config.window // 2:
        return ()
    found = []
    for name, label in (("reward_std", "the reward's deviation"), ("grad_norm", "the gradient's norm")):
        usual = statistics.median(getattr(one, name) for one in before)
        least = min(getattr(one, name) for one in last)
        if usual > 0 and (least > config.explosion * usual or not math.isfinite(least)):
            found.append(f"{label} is {least / usual:.1f} times its median")
    return tuple(found)


def slope_of(values: Sequence[float]) -> tuple[float, float]:
    """Least-squares slope of ``values`` over their index, and its standard error."""
    count = len(values)
    centre = (count - 1) / 2
    mean = statistics.fmean(values)
    spread = sum((x - centre) ** 2 for x in range(count))
    slope = sum((x - centre) * (value - mean) for x, value in enumerate(values)) / spread
    residual = sum((value - mean - slope * (x - centre)) ** 2 for x, value in enumerate(values))
    return slope, math.sqrt(residual / (count - 2) / spread)
