"""The curriculum's controller: each rule in a table, the slope in closed form, and a state that survives."""

from __future__ import annotations

import dataclasses
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
)
from finpercep.curriculum.schedule import RungBlend, RungSchedule
from finpercep.curriculum.trend import Trend, slope_of
from finpercep.errors import ConfigError

CONFIG = AdaptiveConfig(window=10, burst=2, blend_steps=3, lr_cut=0.5, worth=3.0)


def noise(step: int) -> float:
    return 0.01 * (-1) ** step


def flat(count: int, **changed: float) -> list[Observation]:
    return [Observation(**{"reward": 0.5 + noise(s), "reward_std": 0.1, "grad_norm": 1.0, **changed}) for s in range(count)]


def rising(count: int) -> list[Observation]:
    return [Observation(0.5 + 0.02 * step + noise(step), 0.1, 1.0) for step in range(count)]


def falling(count: int) -> list[Observation]:
    return [Observation(0.5 - 0.02 * step + noise(step), 0.1, 1.0) for step in range(count)]


def drawn(count: int, seed: int = 0, rise: float = 0.0, spread: tuple[float, ...] = (1.0,)) -> list[Observation]:
    """Rewards of deviation 1 that rise so much in a window of 30 steps; gradients of a size drawn from ``spread``."""
    rng = np.random.default_rng(seed)
    return [
        Observation(rng.normal() + rise * step / 30, 0.1, rng.choice(spread) * rng.lognormal(0, 0.2)) for step in range(count)
    ]


def test_slope_and_its_error_are_those_of_least_squares():
    values = np.random.default_rng(0).normal(size=25) + 0.1 * np.arange(25)
    (slope, _), covariance = np.polyfit(np.arange(25), values, 1, cov=True)
    assert slope_of(values.tolist()) == pytest.approx((slope, covariance[0, 0] ** 0.5))
    trend, residual = Trend.of(values.tolist(), 2.0), values - np.polyval(np.polyfit(np.arange(25), values, 1), np.arange(25))
    assert (trend.span, trend.reach) == (25, pytest.approx(2 * covariance[0, 0] ** 0.5)) and not trend.level
    assert trend.deviation == pytest.approx(residual.std(ddof=2))


@pytest.mark.parametrize(
    ("history", "moves"),
    [
        pytest.param(flat(9), False, id="too short to judge"),
        pytest.param(flat(10), True, id="flat"),
        pytest.param(rising(10), False, id="still rising"),
        pytest.param(falling(20), False, id="falling is no plateau"),
        pytest.param([*falling(20), *flat(10, reward=0.1)], True, id="fell, then flat"),
        pytest.param([*rising(30), *flat(10, reward=1.1)], True, id="rose, then flat"),
        pytest.param([*flat(20), *flat(10, grad_norm=1.6)], False, id="the gradient is not calm"),
        pytest.param([*flat(20), *flat(10, reward_std=0.16)], False, id="the reward's variance is not calm"),
        pytest.param([*flat(20), *flat(9), *flat(1, grad_norm=90.0)], True, id="one large gradient is chance"),
        pytest.param([*flat(12, grad_norm=0.0), *flat(5), *flat(3, grad_norm=0.0)], True, id="most steps without a gradient"),
        pytest.param(flat(20, grad_norm=0.0, reward_std=0.0), True, id="no gradient and no variance at all"),
    ],
)
def test_plateaus(history, moves):
    assert bool(plateau(history, CONFIG)) is moves


def first_up(history: list[Observation]) -> tuple[int, tuple[str, ...]]:
    return next((count, why) for count in range(1, 1000) if (why := plateau(history[:count], AdaptiveConfig())))


@pytest.mark.parametrize("rise", [1.0, -1.0, 3.0])
def test_a_change_that_one_window_cannot_tell_from_noise_is_stayed_for_until_the_rung_has_had_its_time(rise):
    for seed in range(10):
        count, why = first_up(drawn(200, seed, rise))
        assert count == 120 and why[0] == "the rung has had its 4 windows of 30 steps" and "slope over 120 steps" in why[1]


def test_noise_alone_is_a_plateau_within_three_windows():
    for seed in range(10):
        count, why = first_up(drawn(200, seed))
        assert 30 <= count <= 100 and "changes by less than 0.5 times its deviation" in why[1], seed


def test_a_rung_that_has_had_its_time_says_what_is_not_calm():
    history = [*flat(30), *flat(10, grad_norm=1.6)]
    assert plateau(history[:-1], CONFIG) == ()
    assert "the gradient's norm is 1.6 times its median on the rung" in plateau(history, CONFIG)


@pytest.mark.parametrize(
    ("last", "exploded"),
    [
        (flat(2), 0),
        (flat(2, grad_norm=5.0), 1),
        (flat(2, grad_norm=5.0, reward_std=0.5), 2),
        ([*flat(1, grad_norm=50.0), *flat(1)], 0),
        (flat(2, grad_norm=float("inf")), 1),
        ([*flat(1, grad_norm=5.0), *flat(2, grad_norm=0.0), *flat(1, grad_norm=5.0)], 1),
    ],
    ids=["usual", "gradient", "both", "one step alone is chance", "infinite", "steps without a gradient between"],
)
def test_explosions(last, exploded):
    assert len(explosions([*flat(10), *last], CONFIG)) == exploded
    assert explosions([*flat(2), *last], CONFIG) == ()  # nothing usual yet
    assert len(explosions([*flat(2), *last], CONFIG, flat(10))) == exploded  # what was usual on the rung before
    assert explosions([], CONFIG, flat(10)) == ()


def test_gradients_of_two_sizes_are_no_explosion_and_ten_times_as_large_ones_are():
    """As RFSR's at early and late indices."""
    for seed in range(20):
        history = drawn(300, seed, spread=(1.0, 5.0))
        assert all(decision.move == "up" for decision in drive(AdaptiveController(9, AdaptiveConfig()), history).values())
    caught = []
    for seed in range(20):
        history = drawn(300, seed, spread=(1.0, 5.0))
        history[100:] = [dataclasses.replace(one, grad_norm=10 * one.grad_norm) for one in history[100:]]
        decisions = drive(AdaptiveController(9, AdaptiveConfig()), history)
        caught.append(min(step for step, decision in decisions.items() if decision.move == "back") - 100)
    assert np.median(caught) == 4 and max(caught) < 20  # the fifth step of it


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


def test_the_first_steps_on_a_rung_can_explode():
    controller = AdaptiveController(3, CONFIG)
    decisions = drive(controller, [*flat(13), *flat(2, grad_norm=9.0)])
    assert controller.state.rung == 0 and (decisions[14].move, decisions[14].rung) == ("back", 0)


def test_cuts_of_the_rate_have_a_floor():
    controller = AdaptiveController(1, CONFIG)
    decisions = drive(controller, flat(9), alarms=dict.fromkeys(range(9), "the panel fell"))
    assert [decision.lr_scale for decision in decisions.values()] == [0.5, 0.25, 0.125, 0.0625] + [0.05] * 5


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
    [
        *({"window": 2}, {"patience": 0}, {"worth": 0.0}, {"lr_cut": 0.0}, {"lr_floor": 0.0}, {"calm": 5.0}, {"burst": 0}),
        *({"confidence": float(z)} for z in ("nan", "inf", "0")),
    ],
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        AdaptiveConfig(**bad)
