"""The curriculum's controller: each rule in a table, the slope in closed form, and a state that survives."""

from __future__ import annotations

import json

import numpy as np
import pytest

from finpercep.curriculum.controller import (
    AdaptiveConfig,
    AdaptiveController,
    Decision,
    FixedController,
    Observation,
    explosions,
    plateau,
    slope_of,
)
from finpercep.curriculum.schedule import RungBlend, RungSchedule
from finpercep.errors import ConfigError

CONFIG = AdaptiveConfig(window=10, burst=2, blend_steps=3, lr_cut=0.5)


def noise(step: int) -> float:
    return 0.01 * (-1) ** step


def flat(count: int, **changed: float) -> list[Observation]:
    return [Observation(**{"reward": 0.5 + noise(s), "reward_std": 0.1, "grad_norm": 1.0, **changed}) for s in range(count)]


def rising(count: int) -> list[Observation]:
    return [Observation(0.5 + 0.02 * step + noise(step), 0.1, 1.0) for step in range(count)]


def falling(count: int) -> list[Observation]:
    return [Observation(0.5 - 0.02 * step, 0.1, 1.0) for step in range(count)]


def test_slope_and_its_error_are_those_of_least_squares():
    values = np.random.default_rng(0).normal(size=25) + 0.1 * np.arange(25)
    (slope, _), covariance = np.polyfit(np.arange(25), values, 1, cov=True)
    assert slope_of(values.tolist()) == pytest.approx((slope, covariance[0, 0] ** 0.5))


@pytest.mark.parametrize(
    ("history", "moves"),
    [
        pytest.param(flat(9), False, id="too short to judge"),
        pytest.param(flat(10), True, id="flat"),
        pytest.param(rising(10), False, id="still rising"),
        pytest.param(falling(10), True, id="falling is no gain either"),
        pytest.param([*rising(30), *flat(10, reward=1.1)], True, id="rose, then flat"),
        pytest.param([*flat(20), *flat(10, grad_norm=1.6)], False, id="the gradient is not calm"),
        pytest.param([*flat(20), *flat(10, reward_std=0.16)], False, id="the reward's variance is not calm"),
    ],
)
def test_plateaus(history, moves):
    assert bool(plateau(history, CONFIG)) is moves


@pytest.mark.parametrize(
    ("last", "exploded"),
    [
        (flat(2), 0),
        (flat(2, grad_norm=5.0), 1),
        (flat(2, grad_norm=5.0, reward_std=0.5), 2),
        ([*flat(1, grad_norm=50.0), *flat(1)], 0),
        (flat(2, grad_norm=float("inf")), 1),
    ],
    ids=["usual", "gradient", "both", "one step alone is chance", "infinite"],
)
def test_explosions(last, exploded):
    assert len(explosions([*flat(10), *last], CONFIG)) == exploded
    assert explosions([*flat(2), *last], CONFIG) == ()  # nothing usual yet


def drive(controller, observations, first=0, alarms=()):
    decisions = {}
    for step, seen in enumerate(observations, start=first):
        if decision := controller.observe(step, seen, alarm=dict(alarms).get(step)):
            decisions[step] = decision
    return decisions


def test_a_plateau_blends_the_next_rung_in():
    controller = AdaptiveController(3, CONFIG)
    decisions = drive(controller, flat(10))
    assert list(decisions) == [9] and decisions[9].move == "up" and decisions[9].rung == 1 and decisions[9].reasons
    blends = []
    for step in range(10, 14):
        blends.append(controller.blend(step))
        controller.observe(step, flat(1)[0])
    assert blends == [RungBlend(0, 1, 0.25), RungBlend(0, 1, 0.5), RungBlend(0, 1, 0.75), RungBlend(1)]


def test_the_last_rung_is_kept():
    controller = AdaptiveController(1, CONFIG)
    assert drive(controller, flat(50)) == {} and controller.blend(50) == RungBlend(0)


def test_an_explosion_goes_back_and_cuts_the_rate():
    controller = AdaptiveController(3, CONFIG)
    drive(controller, flat(20))
    assert controller.state.rung == 1
    decisions = drive(controller, [*rising(6), *flat(2, grad_norm=9.0)], first=20)
    (decision,) = decisions.values()
    assert (decision.move, decision.rung, decision.lr_scale) == ("back", 0, 0.5) and "gradient" in decision.reasons[0]


@pytest.mark.parametrize(("steps", "rung"), [(5, 0), (11, 0), (20, 0)], ids=["lowest rung", "in a blend", "second rung"])
def test_an_alarm_goes_back_at_once(steps, rung):
    controller = AdaptiveController(3, CONFIG)
    drive(controller, flat(steps))
    decision = controller.observe(steps, flat(1)[0], alarm="the panel fell")
    assert decision == Decision("back", rung, 0.5, ("the panel fell",))
    assert controller.blend(steps + 1) == RungBlend(rung)


@pytest.mark.parametrize("stop", [3, 10, 12, 20])
def test_a_controller_goes_on_from_its_state(stop):
    history = [*flat(14), *rising(6), *flat(2, grad_norm=9.0), *flat(20)]
    straight, first, second = (AdaptiveController(3, CONFIG) for _ in range(3))
    expected = drive(straight, history)
    before = drive(first, history[:stop])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert {**before, **drive(second, history[stop:], first=stop)} == expected
    assert second.state == straight.state


def test_a_plan_is_kept_whatever_happens():
    controller = FixedController(RungSchedule((2, 3), 0))
    assert drive(controller, flat(5, grad_norm=float("nan")), alarms={3: "alarm"}) == {}
    assert [controller.blend(step).rung for step in range(5)] == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    "bad",
    [{"window": 2}, {"lr_cut": 0.0}, {"calm": 5.0}, {"burst": 0}, *({"confidence": float(z)} for z in ("nan", "inf", "-1"))],
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        AdaptiveConfig(**bad)
