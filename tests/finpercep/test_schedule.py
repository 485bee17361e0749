"""The rung schedule: every rung gets its steps, blends rise, nothing jumps."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finpercep.curriculum.schedule import RungBlend, RungSchedule
from finpercep.errors import ConfigError


def test_a_schedule_by_hand():
    schedule = RungSchedule((3, 4), blend_steps=2)
    assert [schedule.at(step) for step in range(5)] == [
        RungBlend(0),
        RungBlend(0, 1, pytest.approx(1 / 3)),
        RungBlend(0, 1, pytest.approx(2 / 3)),
        RungBlend(1),
        RungBlend(1),
    ]
    assert schedule.at(100) == RungBlend(1)


@given(st.integers(1, 6), st.integers(0, 200), st.floats(0, 0.99))
def test_even_schedules(rungs, extra, share):
    schedule = RungSchedule.even(rungs + extra, rungs, share)
    assert sum(schedule.lengths) == rungs + extra
    assert max(schedule.lengths) - min(schedule.lengths) <= 1
    blends = [schedule.at(step) for step in range(rungs + extra)]
    positions = [blend.rung + blend.weight for blend in blends]
    assert positions == sorted(positions)
    assert {blend.rung for blend in blends} == set(range(rungs))
    steepest = 1 / (schedule.blend_steps + 1)
    assert all(later - earlier <= steepest + 1e-9 for earlier, later in pairwise(positions))


@pytest.mark.parametrize("bad", [((), 0), ((0, 3), 0), ((3, 3), 3), ((3, 3), -1)])
def test_impossible_schedules_are_refused(bad):
    with pytest.raises(ConfigError):
        RungSchedule(*bad)


def test_too_few_steps_for_the_rungs():
    with pytest.raises(ConfigError, match="at least 3 steps, got 2"):
        RungSchedule.even(2, 3)
