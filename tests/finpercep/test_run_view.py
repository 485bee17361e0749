"""The terminal's view of a run: figures under a clock that is given, plain lines where nobody watches."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from finpercep.cli.run_view import LINES, RECENT, RunView, Standing, span, sparkline
from finpercep.curriculum.metrics import StepMetrics

VERDICT = {"change": -0.25, "low": -0.5, "high": -0.125, "reward_change": 0.03, "hacked": True}
DECISION = {"move": "back", "rung": 0, "name": "RM_1", "lr_scale": 0.5, "reasons": ["the [panel] fell"]}


def step(number: int, **changes: object) -> StepMetrics:
    given = {
        "step": number,
        "rung": "RM_0",
        "next_rung": None,
        "blend": 0.0,
        "reward": number / 100,
        "reward_std": 0.1,
        "score": 0.5,
        "max_degradation": 0.2,
        "mean_degradation": 0.1,
        "losses": {},
        "figures": {},
        "lr": 1e-5,
        "grad_norm": 1.5,
        "seconds": 2.0,
        "reward_seconds": 0.5,
    }
    return StepMetrics(**{**given, **changes})


class Clock:
    """Says what it is set to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def watched(total: int, *, terminal: bool, width: int = 100, **options: object):
    text, clock = io.StringIO(), Clock()
    console = Console(file=text, force_terminal=terminal, width=width, color_system=None, **options)
    return RunView("finetune runs/ft", total, console=console, clock=clock), text, clock


def test_speed_counts_pictures_and_looks_but_not_the_start():
    standing = Standing(100)
    assert standing.rate is None and standing.left is None
    standing.add(step(1), 1000.0)  # a step of 2 s after a long start
    assert standing.rate == pytest.approx(0.5) and standing.left == pytest.approx(99 / 0.5)
    standing.add(step(2), 1006.0)  # 2 s and a look of 4 s
    assert standing.rate == pytest.approx(2 / 8) and standing.left == pytest.approx(98 * 4)
    assert standing.waiting == pytest.approx(0.25)


def test_speed_is_that_of_the_last_steps():
    standing = Standing(1000)
    for number in range(1, 101):
        standing.add(step(number), 10.0 * number)
    for number in range(101, 101 + RECENT):
        standing.add(step(number), 1000.0 + (number - 100))
    assert standing.rate == pytest.approx(1.0)


def test_plain_lines_where_nobody_watches():
    view, text, clock = watched(200, terminal=False)
    with view:
        for number in range(1, 201):
            clock.now += 2.0
            view.add(step(number, rung="RM_1" if number > 100 else "RM_0"))
    lines = text.getvalue().splitlines()
    assert len(lines) == LINES and "\x1b" not in text.getvalue()
    assert lines[0].startswith("step 10/200, RM_0: reward 0.1000, score 0.5000, gradient 1.5; 0.50 it/s, 6:20 left, 25% waiting")
    assert lines[-1].startswith("step 200/200, RM_1: reward 2.0000") and "0:00 left" in lines[-1]


def test_looks_and_decisions_have_lines_of_their_own():
    view, text, clock = watched(200, terminal=False)
    with view:
        clock.now += 2.0
        view.add(step(3, verdict=VERDICT, decision=DECISION, next_rung="RM_1", blend=0.25))
    alarm, decision, line = text.getvalue().splitlines()
    assert alarm == "step 3: alarm of the monitor: reward +0.03, panel -0.250 [-0.500, -0.125]"
    assert decision == "step 3: back to RM_1: the [panel] fell"
    assert "RM_0 → RM_1 25%" in line and "panel -0.250 [-0.500, -0.125] at step 3" in line


@pytest.mark.parametrize("width", [40, 100])
def test_a_panel_on_a_screen(width):
    view, text, clock = watched(200, terminal=True, width=width)
    assert "starting" in drawn(view)
    with view:
        for number in range(1, 51):
            clock.now += 2.0
            view.add(step(number, verdict=VERDICT if number == 50 else None))
    shown = drawn(view)
    assert all(len(line) <= width for line in shown.splitlines())
    assert "50/200" in shown and "RM_0" in shown and "0.5000" in shown
    if width == 100:
        for part in (
            "finetune runs/ft",
            "0.50 it/s",
            "5:00 left",
            "25% for the reward",
            "-0.250 [-0.500, -0.125] at step 50",
            "1.5",
        ):
            assert part in shown
    assert "alarm of the monitor" in text.getvalue()


def drawn(view: RunView) -> str:
    with view.console.capture() as captured:
        view.console.print(view.panel())
    return captured.get()


def test_sparkline_and_span():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0] * 50 + [1] * 50, 2) == "▁█"
    assert sparkline([]) == "" and sparkline([3.0]) == "▁"
    assert [span(0.4), span(61), span(3600 * 26 + 5)] == ["0:00", "1:01", "26:00:05"]
