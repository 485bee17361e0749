"""Charts: axes around everything, ticks that people can read, no spike lost, and the same numbers for the page's script."""

from __future__ import annotations

import json
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finpercep.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Band,
    Chart,
    Line,
    Mark,
    Stretch,
    axes_of,
    thinned,
    ticks,
)

FULL = Chart(
    "reward",
    [Line("", [1, 2, 3], [0.1, 0.5, 0.2], faint=True), Line("mean", [1, 2, 3], [0.3, 0.3, 0.2]), Line("other", [2], [0.4])],
    [Band("interval", [1, 3], [-1.0, 0.0], [0.5, 2.0])],
    [Mark(2, "back", "the <panel> fell")],
    [Stretch(0.5, 2.5, "RM_0"), Stretch(2.5, 3.5, "RM_1")],
    level=-3.0,
)


def points_of(svg: str) -> list[tuple[float, float]]:
    pairs = [pair for corners in re.findall(r'points="([^"]*)"', svg) for pair in corners.split()]
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in pairs)]


def test_axes_hold_everything_that_is_drawn():
    x_axis, y_axis = axes_of(FULL)
    assert (x_axis.low, x_axis.high) == (0.5, 3.5)
    assert y_axis.low < -3.0 and y_axis.high > 2.0
    assert y_axis.at(2.0) < y_axis.at(-1.0)  # up is up
    inside = [LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in points_of(FULL.svg)]
    assert inside and all(inside)


def test_a_drawing_is_wellformed_and_escaped():
    root = ElementTree.fromstring(str(FULL.svg))
    titles = [element.text for element in root.iter() if element.tag == "title"]
    assert titles == ["the <panel> fell"]
    assert len([element for element in root.iter("polyline") if "faint" in element.get("class", "")]) == 1


def test_events_of_one_step_do_not_hide_each_other():
    svg = Chart(
        "reward", [Line("", [1, 9], [1, 2])], marks=[Mark(x, kind, kind) for x, kind in ((3, "alarm"), (3, "back"), (5, "up"))]
    ).svg
    signs = re.findall(r'<text class="mark (\w+)" x="([\d.]+)" y="(\d+)">(.)', svg)
    assert [(kind, sign) for kind, _, _, sign in signs] == [("alarm", "✖"), ("back", "▼"), ("up", "▲")]
    assert len({(x, y) for _, x, y, _ in signs}) == 3


def test_a_faint_line_has_the_colour_of_its_average():
    assert FULL.colours == [0, 0, 1]
    assert FULL.legend == [(0, "mean"), (1, "other")]
    assert Chart("one", [Line("", [1], [1]), Line("only", [1], [1])]).legend == []


def test_the_script_gets_the_numbers_that_are_drawn():
    chart = Chart("</script>", [Line("</script><b>", [1, 2, 3], [0.1234567, math.nan, 1])], level=0.5)
    assert "</script" not in chart.data
    plain = json.loads(chart.data)
    assert plain["lines"] == [{"name": "</script><b>", "colour": 0, "faint": False, "x": [1, 2, 3], "y": [0.123457, None, 1]}]
    left, top, right, bottom = plain["plot"]
    x_axis, y_axis = axes_of(chart)
    assert (x_axis.at(plain["x"][0]), x_axis.at(plain["x"][1])) == (left, right)
    assert (y_axis.at(plain["y"][0]), y_axis.at(plain["y"][1])) == (bottom, top)


def test_a_value_that_is_not_finite_leaves_a_gap():
    svg = Chart("gap", [Line("", [1, 2, 3, 4, 5], [1, 2, math.nan, 2, math.inf])]).svg
    assert [len(corners.split()) for corners in re.findall(r'points="([^"]*)"', svg)] == [2, 1]


@pytest.mark.parametrize("y", [[], [0.0, 0.0], [5.0], [math.nan], [1e-9, 1e-9], [-2.0, -2.0]])
def test_flat_and_empty_lines_can_be_drawn(y):
    x_axis, y_axis = axes_of(chart := Chart("flat", [Line("", list(range(len(y))), y)]))
    assert x_axis.high > x_axis.low and y_axis.high > y_axis.low
    assert "nan" not in chart.svg


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.booleans())
def test_ticks_are_few_round_and_inside(low, width, whole):
    found = ticks(low, low + width, whole=whole)
    room = 1e-6 * max(width, 1e-3 * abs(low))
    assert all(low - room <= tick <= low + width + room for tick in found)
    assert len(found) <= 7 and found == sorted(set(found))
    if whole:
        assert all(tick == int(tick) for tick in found)
    else:
        assert len(found) >= 2


def test_thinning_keeps_spikes_and_order():
    points = [(float(x), math.sin(x / 50)) for x in range(10_000)]
    points[7_777] = (7_777.0, 9.0)
    points[3_333] = (3_333.0, -9.0)
    kept = thinned(points, limit=100)
    assert len(kept) <= 100 and points[7_777] in kept and points[3_333] in kept
    assert list(kept) == sorted(kept)
    assert thinned(points[:50], limit=100) == points[:50]
