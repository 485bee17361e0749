"""Uniform draws shaped into numbers, and refused ranges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_synth.draws import DrawError, between, check_probabilities, check_probability, check_range, choose, integer_between

unit = st.floats(0, 1, exclude_max=True)


@given(unit, st.integers(-5, 5), st.integers(0, 5))
def test_integers_stay_in_their_bounds_and_reach_both_ends(u, low, span):
    assert low <= integer_between(u, (low, low + span)) <= low + span
    assert integer_between(0.0, (low, low + span)) == low
    assert integer_between(math.nextafter(1, 0), (low, low + span)) == low + span


def test_between_is_linear():
    assert [between(u, (2.0, 4.0)) for u in (0.0, 0.25, 1.0)] == [2.0, 2.5, 4.0]


@given(unit)
def test_choose_inverts_the_cumulative_probabilities(u):
    expected = "a" if u < 0.25 else "c"
    assert choose(u, ("a", "b", "c"), (0.25, 0.0, 0.75)) == expected
    assert choose(u, ("a", "b")) == ("a" if u < 0.5 else "b")


def test_choose_never_takes_what_cannot_occur_when_the_sum_falls_short_of_one():
    assert choose(math.nextafter(1, 0), ("a", "b", "c"), (0.5, 0.5 - 1e-9, 0.0)) == "b"


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_probabilities_lie_in_the_unit_interval(value):
    with pytest.raises(DrawError, match=r"p must lie in \[0, 1\], got"):
        check_probability("p", value)


@pytest.mark.parametrize(
    ("values", "message"),
    [((0.5, 0.5), "3 probabilities, got 2"), ((0.5, 0.6, 0.1), "sum to 1.2"), ((1.5, -0.5, 0.0), "in \\[0, 1\\], got 1.5")],
)
def test_distributions_are_complete(values, message):
    with pytest.raises(DrawError, match=message):
        check_probabilities("p", values, 3)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [((2, 1), "low <= high"), ((math.nan, 1), "finite"), ((0, math.inf), "finite"), ((-1, 1), r"lie in \[0, 5\]"), ((1, 6), "5")],
)
def test_ranges_are_ordered_finite_and_within_limits(bounds, message):
    with pytest.raises(DrawError, match=message):
        check_range("r", bounds, least=0, most=5)


def test_good_values_pass():
    check_probability("p", 0.0)
    check_probabilities("p", np.full(10, 0.1), 10)
    check_range("r", (0, 5), least=0, most=5)
