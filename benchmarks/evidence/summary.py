"""From the runs' JSON files to what can be said: paired differences between arms, with intervals over seeds. Pure."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from benchmarks.evidence.arms import ARMS
from finpercep.curriculum.monitor import HeldOut, judge, panel_change
from finpercep.curriculum.tripwires import TRIPWIRES
from finpercep.sr.panel import PANEL

Run = Mapping[str, Any]

FINEST = "RM_2"

RIVALS = ("control", "control-no-gram", "global", "full")
"""Arms that every other is held against: no reward, nor a Gram term, one number, and the finest map from the first step."""


def load_runs(out: Path) -> dict[str, list[Run]]:
    """Arm → its runs in order of their seeds."""
    found: dict[str, list[Run]] = {}
    for name in ARMS:
        runs = [json.loads(path.read_text()) for path in out.glob(f"{name}/seed-*/result.json")]
        if runs:
            found[name] = sorted(runs, key=lambda run: run["seed"])
    return found


def held_out(run: Run, rung: str) -> HeldOut:
    """A run's held-out crops at its end, with the reward of one rung."""
    panel = {name: torch.tensor(values, dtype=torch.float64) for name, values in run["panel"].items()}
    return HeldOut(panel, torch.tensor(run["rewards"][rung], dtype=torch.float64))


def changes(run: Run, start: Run) -> dict[str, float]:
    """What a run changed, means over the crops: the panel (standard deviations), every measure, every rung's reward.

    ``moved`` is the finest rung's reward of images moved by a pixel or two (`benchmarks.evidence.moved`), where it was measured.
    """
    now, before = held_out(run, FINEST), held_out(start, FINEST)
    found = {"panel": float(panel_change(before, now, PANEL).mean())}
    for name in now.panel:
        found[name] = float((now.panel[name] - before.panel[name]).mean())
    for rung, values in run["rewards"].items():
        found[f"reward {rung}"] = statistics.fmean(values) - statistics.fmean(start["rewards"][rung])
    if "moved" in run:
        found["moved"] = run["moved"] - start["moved"]
    found["own reward"] = found[f"reward {last_rung(run)}"]
    return found


def last_rung(run: Run) -> str:
    """The packaged rung a run ended on; the finest for a reward that is none."""
    rung: str = run["steps"][-1]["rung"]
    return rung if rung in run["rewards"] else FINEST


def is_hacked(run: Run, control: Run) -> bool:
    """Whether its reward did what hacking is, beside ``control``, the same steps without one.

    The rung it ended on rates its crops higher, and the panel of the same crops is lower by more than its interval.
    """
    own = last_rung(run)
    return judge(held_out(control, own), held_out(run, own), PANEL).hacked


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean, and half of its Student's t interval; infinite for one value."""
    if len(values) < 2:
        return statistics.fmean(values), math.inf
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), error * float(stats.t.ppf((1 + confidence) / 2, len(values) - 1))


def roughness(rewards: Sequence[float]) -> float:
    """Standard deviation of the reward from step to step around a slow trend: √(mean (r_t − r_{t−1})² / 2)."""
    return math.sqrt(statistics.fmean((b - a) ** 2 for a, b in pairwise(rewards)) / 2)


def summarise(runs: Mapping[str, Sequence[Run]], start: Run) -> dict[str, Any]:
    """All figures of all arms.

    ``versus`` is the paired difference to the arm it is compared with, over the seeds that both have, and ``beside`` that of the
    panel to each of `RIVALS`; a run that diverged has no figures, and counts in ``diverged``.
    """
    whole = {name: [run for run in own if "diverged" not in run] for name, own in runs.items()}
    controls = {run["seed"]: run for run in whole.get("control", ())}
    each = {name: {run["seed"]: changes(run, start) for run in own} for name, own in whole.items()}
    table: dict[str, dict[str, Any]] = {}
    for name, own in each.items():
        if not own:
            table[name] = {"runs": len(runs[name]), "diverged": len(runs[name])}
            continue
        against = ARMS[name].against
        other = {} if against == name else each.get(against, {})
        paired = sorted(set(own) & set(other))
        keys = list(next(iter(own.values())))
        table[name] = {
            "runs": len(runs[name]),
            "diverged": len(runs[name]) - len(own),
            "hacked": sum(is_hacked(run, controls[run["seed"]]) for run in whole[name] if run["seed"] in controls),
            "change": {key: interval([one[key] for one in own.values()]) for key in keys},
            "against": against,
            "beside": {
                rival: interval([own[s]["panel"] - each[rival][s]["panel"] for s in shared])
                for rival in RIVALS
                if rival != name and (shared := sorted(set(own) & set(each.get(rival, {}))))
            },
            "versus": {key: interval([own[s][key] - other[s][key] for s in paired]) for key in keys} if paired else None,
            "roughness": interval([roughness([step["reward"] for step in run["steps"]]) for run in whole[name]]),
            "seconds": statistics.fmean(sum(step["seconds"] for step in run["steps"]) for run in whole[name]),
        }
    return table


COLUMNS = (
    "arm",
    "its own reward",
    "reward RM_2",
    "moved",
    "panel, SD",
    "panel, beside",
    "PSNR, dB",
    "FSIM",
    "roughness",
    "hacked · diverged",
)


def rows(table: Mapping[str, Any]) -> list[list[str]]:
    """One row an arm, under `COLUMNS`."""
    shown = []
    for name, figures in table.items():
        if "change" not in figures:
            shown.append([name, *["–"] * (len(COLUMNS) - 2), f"0 · {figures['diverged']} of {figures['runs']}"])
            continue
        change, versus = figures["change"], figures["versus"]
        shown.append(
            [
                name,
                plus_minus(change["own reward"], 4),
                plus_minus(change[f"reward {FINEST}"], 4),
                plus_minus(change["moved"], 4) if "moved" in change else "–",
                plus_minus(change["panel"], 3),
                "–" if versus is None else f"{plus_minus(versus['panel'], 3)} ({figures['against']})",
                plus_minus(change["psnr"], 3),
                plus_minus(change["fsim"], 4),
                f"{figures['roughness'][0]:.4f}",
                f"{figures['hacked']} · {figures['diverged']} of {figures['runs']}",
            ]
        )
    return shown


def rival_rows(table: Mapping[str, Any]) -> list[list[str]]:
    """The panel of every arm beside each of `RIVALS`, paired by seed."""
    return [
        [name, *(plus_minus(figures["beside"][rival], 3) if rival in figures["beside"] else "–" for rival in RIVALS)]
        for name, figures in table.items()
        if figures.get("beside")
    ]


MEASURES = {
    "psnr": 3,
    "fsim": 4,
    "vsi": 4,
    "gmsd": 4,
    "vif": 4,
    "cw_ssim": 4,
    "nlpd": 4,
    "piqe": 2,
    **dict.fromkeys(TRIPWIRES, 4),
}
"""What stands in the table beside control, with its decimal places."""


def measure_rows(table: Mapping[str, Any]) -> list[list[str]]:
    """Every measure of every arm beside the arm it is compared with, paired by seed."""
    return [
        [f"{name} – {figures['against']}", *(plus_minus(figures["versus"][key], digits) for key, digits in MEASURES.items())]
        for name, figures in table.items()
        if figures.get("versus")
    ]


def plus_minus(value: Sequence[float], digits: int) -> str:
    mean, reach = value
    return f"{mean:+.{digits}f}" if math.isinf(reach) else f"{mean:+.{digits}f} ± {reach:.{digits}f}"
