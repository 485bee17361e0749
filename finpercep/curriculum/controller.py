"""When the reward moves from rung to rung: on a plan, or by what the run's own figures say. Pure: metrics in, decision out.

The paper sets rung lengths by hand (method §5); `AdaptiveController` decides instead. It moves up when the reward has levelled
off and training is calm, or the rung has had its time, and goes back a rung, with a smaller learning rate, when training explodes
or the hacking monitor alarms. Each decision comes with its reasons.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

from finpercep.curriculum.schedule import RungBlend, RungSchedule
from finpercep.curriculum.trend import Trend
from finpercep.errors import ConfigError

Move = Literal["up", "back"]


@dataclass(frozen=True)
class Observation:
    """What one step showed: mean reward, its standard deviation over the images, the gradient's norm before clipping."""

    reward: float
    reward_std: float
    grad_norm: float


FIGURES = {"reward_std": "the reward's deviation", "grad_norm": "the gradient's norm"}
"""Figures of an `Observation` that say whether training is calm, and their names."""


@dataclass(frozen=True)
class Decision:
    """What the controller does after a step, and why.

    Attributes:
        move: ``up`` or ``back``.
        rung: index of the rung it leads to, among those in use.
        lr_scale: factor of the run's learning rate from now on.
        reasons: in words.
        name: the rung's, once someone says it who knows; a controller counts rungs.
    """

    move: Move
    rung: int
    lr_scale: float
    reasons: tuple[str, ...]
    name: str = ""


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
        patience: windows that a rung may take; after them it goes up whatever the figures say.
        confidence: z of the interval of the reward's slope; 1.64 is a two-sided 90 %.
        worth: change a window that is worth staying for, in units of the reward's deviation from step to step. The reward has
            levelled off when the interval of its slope over the last window contains 0, and that over the last one, two, …
            windows does and reaches no such change either way. One window of 30 steps can exclude changes of 1, two of 0.4.
        calm: median reward deviation and gradient norm of the window must be at most this many times their median on the rung.
            Here and below, a step without a deviation (one image) or gradient (all groups dropped) is left out.
        explosion: the same figures' geometric mean over the last `burst` steps, as a multiple of that before them, at which to go
            back.
        burst: steps that an explosion must last. All must be above the ninth decile of those before, so that figures which
            differ by nature, as those at RFSR's early and late indices, are no explosion.
        lr_cut: the learning rate is multiplied by this whenever the controller goes back, in (0, 1].
        lr_floor: least factor of the run's learning rate that cuts can lead to, in (0, 1].
        blend_steps: steps over which the next rung is blended in.
    """

    window: int = 30
    patience: int = 4
    confidence: float = 1.64
    worth: float = 0.5
    calm: float = 1.5
    explosion: float = 4.0
    burst: int = 5
    lr_cut: float = 0.5
    lr_floor: float = 0.05
    blend_steps: int = 10

    def __post_init__(self) -> None:
        for name, least in (("window", 5), ("patience", 1), ("burst", 1), ("blend_steps", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("confidence", "worth"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be finite and > 0, got {getattr(self, name)}")
        for name in ("lr_cut", "lr_floor"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in (0, 1], got {getattr(self, name)}")
        if not 1 <= self.calm < self.explosion:
            raise ConfigError(f"calm must be >= 1 and below explosion, got {self.calm} and {self.explosion}")


@dataclass(frozen=True)
class AdaptiveState:
    """Where an adaptive run stands.

    Attributes:
        rung: in force.
        blending_since: step at which the blend of the next one began.
        lr_scale: factor of the learning rate.
        seen: what the rung has shown.
        earlier: what the rung before it showed last, where it came up from it.
    """

    rung: int = 0
    blending_since: int | None = None
    lr_scale: float = 1.0
    seen: tuple[Observation, ...] = field(default=())
    earlier: tuple[Observation, ...] = field(default=())


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
        shown = {name: tuple(Observation(**one) for one in state.get(name, ())) for name in ("seen", "earlier")}
        self.state = AdaptiveState(**{**state, **shown})


def decide(
    state: AdaptiveState, step: int, seen: Observation, alarm: str | None, rungs: int, config: AdaptiveConfig
) -> tuple[AdaptiveState, Decision | None]:
    """The state after a step, and the decision, if any. Alarms come first, then explosions, then plateaus."""
    state = replace(state, seen=(*state.seen, seen))
    if alarm is not None:
        return _back(state, config, (alarm,))
    if reasons := explosions(state.seen, config, state.earlier):
        return _back(state, config, reasons)
    if state.blending_since is not None:
        if step + 1 - state.blending_since < config.blend_steps:
            return state, None
        return _up(state, config), None
    if state.rung + 1 < rungs and (reasons := plateau(state.seen, config)):
        decision = Decision("up", state.rung + 1, state.lr_scale, reasons)
        if config.blend_steps:
            return replace(state, blending_since=step + 1), decision
        return _up(state, config), decision
    return state, None


def _up(state: AdaptiveState, config: AdaptiveConfig) -> AdaptiveState:
    """On the next rung, which is measured by the last one's figures until it has enough of its own."""
    return AdaptiveState(state.rung + 1, None, state.lr_scale, earlier=state.seen[-config.window :])


def _back(state: AdaptiveState, config: AdaptiveConfig, reasons: tuple[str, ...]) -> tuple[AdaptiveState, Decision]:
    """A blend is given up, otherwise a rung; on the lowest only the learning rate is cut."""
    rung = state.rung if state.blending_since is not None else max(0, state.rung - 1)
    after = AdaptiveState(rung, None, max(state.lr_scale * config.lr_cut, config.lr_floor))
    return after, Decision("back", rung, after.lr_scale, reasons)


def plateau(seen: Sequence[Observation], config: AdaptiveConfig) -> tuple[str, ...]:
    """Why to leave the rung, or nothing: the reward has levelled off and training is calm, or the rung has had its time."""
    trends = trends_of([one.reward for one in seen], config)
    if not trends:
        return ()
    found, unrest = levelled_off(trends, config), unrest_of(seen, config)
    if found is not None and not unrest:
        least = f"{config.worth:g} times its deviation from step to step, {found.deviation:.2g}"
        return str(found), f"so it changes by less than {least}, a window", "variance and gradient are calm"
    if len(seen) >= config.patience * config.window:
        return f"the rung has had its {config.patience} windows of {config.window} steps", str(trends[-1]), *unrest
    return ()


def trends_of(rewards: Sequence[float], config: AdaptiveConfig) -> list[Trend]:
    """Over the last window, the last two, … as far as there are rewards and ``patience``."""
    windows = min(len(rewards) // config.window, config.patience)
    return [Trend.of(rewards[-k * config.window :], config.confidence) for k in range(1, windows + 1)]


def levelled_off(trends: Sequence[Trend], config: AdaptiveConfig) -> Trend | None:
    """The shortest trend that shows no change and excludes one worth staying for, if the last window shows none either."""
    if not trends[0].level:
        return None
    most = ((one, (abs(one.slope) + one.reach) * config.window) for one in trends if one.level)
    return next((one for one, change in most if change <= config.worth * one.deviation), None)


def figures_of(seen: Sequence[Observation], name: str) -> list[float]:
    """A figure of every step that has it: it is 0 where there is no gradient, or one image."""
    return [value for one in seen if (value := getattr(one, name))]


def unrest_of(seen: Sequence[Observation], config: AdaptiveConfig) -> tuple[str, ...]:
    """Which figures of the last window are above what is usual on the rung, in words."""
    found = []
    for name, label in FIGURES.items():
        window, rung = figures_of(seen[-config.window :], name), figures_of(seen, name)
        if window and (ratio := statistics.median(window) / statistics.median(rung)) > config.calm:
            found.append(f"{label} is {ratio:.1f} times its median on the rung")
    return tuple(found)


def explosions(seen: Sequence[Observation], config: AdaptiveConfig, earlier: Sequence[Observation] = ()) -> tuple[str, ...]:
    """Which figures have exploded, in words: all of the last steps are above nearly all before them, and far above on average.

    Before them are the steps on this rung or, while these are fewer than half a window, those of ``earlier``.
    """
    found = []
    for name, label in FIGURES.items():
        figures = figures_of(seen, name)
        before, last = figures[: -config.burst], figures[-config.burst :]
        if len(before) < config.window // 2:
            before = figures_of(earlier, name)
        if len(last) < config.burst or len(before) < config.window // 2:
            continue
        ratio = statistics.geometric_mean(last) / statistics.geometric_mean(before)
        if min(last) > statistics.quantiles(before, n=10, method="inclusive")[-1] and ratio > config.explosion:
            found.append(f"{label} has been {ratio:.1f} times what it was for {config.burst} steps")
    return tuple(found)
