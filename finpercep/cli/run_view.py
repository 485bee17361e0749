"""A fine-tuning run in the terminal: one panel that is kept up to date, or plain lines where nobody watches a screen."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finpercep.cli.console import console as standard_error

if TYPE_CHECKING:
    from finpercep.curriculum.loop import StepMetrics

LINES = 20
"""Plain lines of a run, beside those of looks and decisions."""

RECENT = 20
"""Steps over which speed and waiting are measured."""

WIDE = 96
"""Columns of a terminal from which two figures stand beside each other."""

_BLOCKS = "▁▂▃▄▅▆▇█"
_SPARKS = 28


@dataclass
class Standing:
    """Where a run stands.

    Attributes:
        total: steps of the run.
        latest: the last step's metrics.
        verdict: of the monitor's last look, and its step.
        rewards: mean reward of every step seen.
        recent: (when it began, when it ended, its seconds, those spent waiting) of the last steps, in seconds of the clock;
            pictures and looks come after a step's own seconds and before its end.
    """

    total: int
    latest: StepMetrics | None = None
    verdict: tuple[int, Mapping[str, Any]] | None = None
    rewards: list[float] = field(default_factory=list)
    recent: deque[tuple[float, float, float, float]] = field(default_factory=lambda: deque(maxlen=RECENT))

    def add(self, metrics: StepMetrics, now: float) -> None:
        """Take in a step that ended now."""
        self.latest = metrics
        self.rewards.append(metrics.reward)
        began = self.recent[-1][1] if self.recent else now - metrics.seconds
        self.recent.append((began, now, metrics.seconds, metrics.reward_seconds))
        if metrics.verdict is not None:
            self.verdict = (metrics.step, metrics.verdict)

    @property
    def rate(self) -> float | None:
        """Steps a second, pictures and looks included."""
        elapsed = self.recent[-1][1] - self.recent[0][0] if self.recent else 0.0
        return len(self.recent) / elapsed if elapsed > 0 else None

    @property
    def left(self) -> float | None:
        """Seconds to the end, at this rate."""
        done = 0 if self.latest is None else self.latest.step
        return (self.total - done) / self.rate if self.rate else None

    @property
    def waiting(self) -> float:
        """Share of the steps' time spent waiting for rewards."""
        seconds = sum(step for _, _, step, _ in self.recent)
        return sum(waited for *_, waited in self.recent) / seconds if seconds else 0.0


class RunView:
    """Shows a run while it goes on; a context.

    Args:
        name: of the run.
        total: steps of the run.
        console: where; by default standard error.
        clock: seconds.
    """

    def __init__(
        self, name: str, total: int, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name, self.console, self._clock = name, console or standard_error, clock
        self.standing = Standing(total)
        watched = self.console.is_terminal and not self.console.is_dumb_terminal
        self._live = Live(get_renderable=self.panel, console=self.console, refresh_per_second=4) if watched else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def add(self, metrics: StepMetrics) -> None:
        """Show a step."""
        self.standing.add(metrics, self._clock())
        for text in events(metrics):
            self.console.print(text, markup=False, soft_wrap=True)
        if self._live is None and self._tells(metrics):
            self.console.print(line(self.standing), markup=False, soft_wrap=True)

    def _tells(self, metrics: StepMetrics) -> bool:
        every = max(1, self.standing.total // LINES)
        return metrics.step % every == 0 or metrics.step == self.standing.total or metrics.verdict is not None

    def panel(self) -> Panel:
        """The panel as it is now; on a narrow terminal one figure a line."""
        standing, metrics = self.standing, self.standing.latest
        if metrics is None:
            return Panel(Text("starting …"), title=Text(self.name), title_align="left", expand=False)
        cells, width = figures(standing), self.console.width
        named = [
            ("reward", f"{cells['reward']}  {self._trend()}"),
            ("score", cells["score"]),
            ("gradient", cells["gradient"]),
            ("panel", cells["panel"]),
            ("speed", f"{cells['speed']}, {cells['left']} left"),
            ("waiting", f"{cells['waiting']} for the reward"),
        ]
        beside = 2 if width >= WIDE else 1
        table = Table.grid(padding=(0, 2))
        for _ in range(beside):
            table.add_column(style="dim", no_wrap=True, min_width=8)
            table.add_column(no_wrap=True)
        for first in range(0, len(named), beside):
            table.add_row(*(text for pair in named[first : first + beside] for text in pair))
        bar = Table.grid(padding=(0, 2))
        done = f"{metrics.step}/{standing.total}"
        length = max(8, min(44, width - 40))
        bar.add_row(
            ProgressBar(total=standing.total, completed=metrics.step, width=length), done, Text(cells["rung"], style="bold")
        )
        whole = Table.grid()
        whole.add_row(bar)
        whole.add_row(table)
        return Panel(whole, title=Text(self.name), title_align="left", expand=False)

    def _trend(self) -> str:
        return sparkline(self.standing.rewards) if self.console.encoding.lower().startswith("utf") else ""


def figures(standing: Standing) -> dict[str, str]:
    """What there is to say of a run, by name."""
    from finpercep.curriculum.snapshots import rung_label

    metrics = standing.latest
    assert metrics is not None
    panel = "not looked at yet"
    if standing.verdict is not None:
        step, verdict = standing.verdict
        panel = f"{verdict['change']:+.3f} [{verdict['low']:+.3f}, {verdict['high']:+.3f}] at step {step}"
    return {
        "rung": rung_label(metrics.rung, metrics.next_rung, metrics.blend),
        "reward": f"{metrics.reward:.4f}",
        "score": f"{metrics.score:.4f}",
        "gradient": f"{metrics.grad_norm:.3g}",
        "panel": panel,
        "speed": "– it/s" if standing.rate is None else f"{standing.rate:.2f} it/s",
        "left": "–" if standing.left is None else span(standing.left),
        "waiting": f"{standing.waiting:.0%}",
    }


def line(standing: Standing) -> str:
    """A run's standing in one line, for a log."""
    cells, metrics = figures(standing), standing.latest
    assert metrics is not None
    panel = "" if standing.verdict is None else f", panel {cells['panel']}"
    return (
        f"step {metrics.step}/{standing.total}, {cells['rung']}: reward {cells['reward']}, score {cells['score']}, "
        f"gradient {cells['gradient']}{panel}; {cells['speed']}, {cells['left']} left, {cells['waiting']} waiting"
    )


def events(metrics: StepMetrics) -> list[str]:
    """What happened at a step and should stay on the screen: decisions, refreshed rungs, alarms."""
    found = []
    if metrics.refreshed:
        found.append(f"step {metrics.step}: {metrics.refreshed}")
    if (verdict := metrics.verdict) and verdict["hacked"]:
        change = f"reward {verdict['reward_change']:+.3g}, panel {verdict['change']:+.3f}"
        found.append(f"step {metrics.step}: alarm of the monitor: {change} [{verdict['low']:+.3f}, {verdict['high']:+.3f}]")
    if decision := metrics.decision:
        found.append(f"step {metrics.step}: {decision['move']} to {decision['name']}: {'; '.join(decision['reasons'])}")
    return found


def sparkline(values: Sequence[float], width: int = _SPARKS) -> str:
    """Means of ``width`` equal parts of a series, lowest to highest."""
    count = min(width, len(values))
    bounds = [round(len(values) * k / count) for k in range(count + 1)] if count else [0]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(bounds)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    spread = high - low or 1.0
    return "".join(_BLOCKS[min(len(_BLOCKS) - 1, int((mean - low) / spread * len(_BLOCKS)))] for mean in means)


def span(seconds: float) -> str:
    """A time as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
