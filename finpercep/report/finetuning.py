"""Sections of a report on a fine-tuning run: its curves along the ladder, the held-out panel, the best and the worst cases."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from finpercep.curriculum.snapshots import Cases, Side
from finpercep.curriculum.watch import HIGHER_BETTER
from finpercep.heatmap import overlay
from finpercep.report.charts import Band, Chart, Line, Mark, Stretch
from finpercep.report.figures import smoothed
from finpercep.report.page import Comparison, Layer, Section, Table
from finpercep.sr.panel import PANEL

Records = list[dict[str, Any]]

CASES = 4
"""Best cases that are shown, and as many worst."""

RUNGS = 5
"""Stretches on a rung that the head of the report names one by one."""

CHOSEN_BY = "fsim"
"""Metric whose change orders the cases."""

_WORDS = {
    "brightness_drift": "brightness drift",
    "colour_drift": "colour drift",
    "grid": "grid",
    "fine_loss": "loss of fine detail",
}


def finetuning_sections(records: Records) -> list[Section]:
    """Curves along the ladder with what was decided on the way, and those of the held-out panel if a monitor looked at it."""
    seconds = sum(record["seconds"] for record in records)
    waited = sum(record["reward_seconds"] for record in records) / seconds if seconds else 0.0
    text = (
        f"{len(records)} steps in {seconds:.0f} s, of which {waited:.0%} waiting for the reward. Thin lines are the steps, "
        "thick ones a moving average; shading tells the rungs apart. ▲ ▼ the curriculum goes up or back, ● a refreshed rung, "
        "✖ the monitor's alarm."
    )
    tables = decision_tables(records)
    sections = [Section("Fine-tuning along the ladder", text, tables=tables, charts=ladder_charts(records))]
    looks = [record for record in records if record.get("verdict")]
    if looks:
        note = "Held-out photos, by measures that the reward does not contain. Dotted: where the run began."
        sections.append(Section("Held-out panel", note, charts=panel_charts(records, looks)))
    return sections


def ladder_charts(records: Records) -> list[Chart]:
    """What every step showed."""
    named = _named_series(records, "figures")
    reward = series("SR output", records, "reward")
    note = "Of the images that were scored."
    if ceiling := named.pop("ceiling", None):
        reward.append(dataclasses.replace(ceiling[-1], name="ground truth (ceiling)"))
        note += " The ceiling is what the ground truth of the same photos earns."
    charts = [
        Chart("reward", reward, note=note),
        Chart("deviation of the reward", series("", records, "reward_std"), note="Over the images of a step."),
        Chart("gradient norm", series("", records, "grad_norm"), note="Before clipping."),
        Chart("losses, weighted", _joined(_named_series(records, "losses"))),
        Chart("score", series("", records, "score")),
    ]
    if any(record["max_degradation"] for record in records):
        lines = [*series("worst places", records, "max_degradation"), *series("mean", records, "mean_degradation")]
        charts.append(Chart("degradation", lines, note="The reward model's map of the SR output; 0 on rungs without a map."))
    if len({record.get("lr") for record in records}) > 1:
        charts.append(Chart("learning rate", [Line("", *_points(records, "lr"))]))
    charts.append(
        Chart(
            "seconds a step",
            [*series("in all", records, "seconds"), *series("waiting for the reward", records, "reward_seconds")],
        )
    )
    charts += [Chart(name, lines) for name, lines in named.items()]
    return _along([chart for chart in charts if any(line.x for line in chart.lines)], records)  # older runs have fewer figures


def panel_charts(records: Records, looks: Records) -> list[Chart]:
    """What the monitor's looks showed."""
    at = [record["step"] for record in looks]
    verdicts = [record["verdict"] for record in looks]
    change, low, high, reward = ([verdict[key] for verdict in verdicts] for key in ("change", "low", "high", "reward_change"))
    charts = [
        Chart(
            "panel, change",
            [Line("", at, change, points=True)],
            [Band("interval", at, low, high)],
            level=0.0,
            note="In standard deviations over the images; below 0 is worse.",
        ),
        Chart("held-out reward, change", [Line("", at, reward, points=True)], level=0.0, note="By the rung in force."),
    ]
    for name in verdicts[0].get("panel", {}):
        values = [verdict["panel"][name] for verdict in verdicts]
        note = "Higher is better." if HIGHER_BETTER.get(name, True) else "Lower is better."
        level = verdicts[0]["panel_at_start"][name]
        charts.append(Chart(measure(name), [Line("", at, values, points=True)], level=level, note=note))
    return _along(charts, records)


def _along(charts: Sequence[Chart], records: Records) -> list[Chart]:
    """The charts with the run's rungs and events."""
    marks, stretches = marks_of(records), rungs_of(records)
    return [dataclasses.replace(chart, marks=marks, stretches=stretches) for chart in charts]


def series(name: str, records: Records, key: str) -> list[Line]:
    """A figure of every step, thin, and its moving average."""
    x, y = _points(records, key)
    return [Line("", x, y, faint=True), Line(name, x, smoothed(y))] if len(x) > 1 else [Line(name, x, y, points=True)]


def rungs_of(records: Records) -> list[Stretch]:
    """The steps on each rung."""
    found = []
    for rung, group in groupby(records, key=lambda record: record["rung"]):
        steps = [record["step"] for record in group]
        found.append(Stretch(steps[0] - 0.5, steps[-1] + 0.5, rung))
    return found


def marks_of(records: Records) -> list[Mark]:
    """Decisions, refreshes and alarms."""
    found = []
    for record in records:
        if said := record.get("refreshed"):
            found.append(Mark(record["step"], "refresh", said))
        if (verdict := record.get("verdict")) and verdict["hacked"]:
            found.append(Mark(record["step"], "alarm", f"alarm: {alarm_text(verdict)}"))
        if decision := record.get("decision"):
            found.append(Mark(record["step"], decision["move"], f"{decision['move']}: {'; '.join(decision['reasons'])}"))
    return found


def alarm_text(verdict: Mapping[str, Any]) -> str:
    """An alarm in words."""
    change = f"reward {verdict['reward_change']:+.3g}, panel {verdict['change']:+.3f}"
    return f"{change} [{verdict['low']:+.3f}, {verdict['high']:+.3f}]"


def decision_tables(records: Records) -> list[Table]:
    """What the curriculum decided and why, refreshed rungs, and the monitor's alarms; nothing where none happened."""
    rows = []
    for record in records:
        if said := record.get("refreshed"):
            rows.append([str(record["step"]), "refresh", said])
        if decision := record.get("decision"):
            rows.append([str(record["step"]), decision["move"], "; ".join(decision["reasons"])])
        if (verdict := record.get("verdict")) and verdict["hacked"]:
            rows.append([str(record["step"]), "alarm", alarm_text(verdict)])
    return (
        [Table(["step", "", "why"], rows, "Decisions of the curriculum, refreshed rungs, alarms of the monitor.")] if rows else []
    )


def key_figures(records: Records, *, taken_back: bool) -> list[tuple[str, str]]:
    """What the head of the report shows; ``taken_back`` says whether the best weights are taken back on an alarm."""
    count = max(1, len(records) // 10)
    parts = records[:count], records[-count:]
    first, last = (float(np.mean([record["reward"] for record in part])) for part in parts)
    on = [", ".join(dict.fromkeys(record["rung"] for record in part)) for part in parts]
    where = "first → last tenth" if on[0] == on[1] else f"first tenth, {on[0]} → last, {on[1]}"
    figures = [
        ("steps", str(records[-1]["step"])),
        ("rungs", way_of(records)),
        (f"reward, {where}", f"{first:.4f} → {last:.4f}"),
    ]
    looks = [record for record in records if record.get("verdict")]
    if looks:
        figures += _panel_figures(looks, taken_back)
        figures.append(("alarms", str(sum(look["verdict"]["hacked"] for look in looks))))
    seconds = sum(record["seconds"] for record in records)
    return [*figures, ("time in steps", f"{seconds:.0f} s")]


def way_of(records: Records) -> str:
    """The rungs in the order in which the run was on them; of a long way, the first and the last."""
    rungs = [rung for rung, _ in groupby(record["rung"] for record in records)]
    return " → ".join(rungs if len(rungs) <= RUNGS else [rungs[0], "…", rungs[-1]])


def _panel_figures(looks: Records, taken_back: bool) -> list[tuple[str, str]]:
    """Those of the last look; where its weights were taken back, of the best before it, which the run went on from."""
    record, name = looks[-1], "panel, change [interval]"
    if record["verdict"]["hacked"] and taken_back:
        best = max(looks, key=lambda look: look["verdict"]["change"])
        if best["verdict"]["change"] <= 0:
            return [("panel, change", f"0: the start's weights were taken back at step {record['step']}")]
        name = f"panel at step {best['step']}, taken back at {record['step']}"
        record = best
    look = record["verdict"]
    change = f"{look['change']:+.3f} [{look['low']:+.3f}, {look['high']:+.3f}]"
    panel = [
        (f"{measure(metric)}, held out", f"{look['panel_at_start'][metric]:.4g} → {look['panel'][metric]:.4g}")
        for metric in PANEL
        if metric in look.get("panel", {})
    ]
    return [(name, change), *panel]


def case_sections(cases: Cases) -> list[Section]:
    """The crops that gained most and least, before and after; without a panel the first ones."""
    count, chosen_by = len(cases.lr), CHOSEN_BY
    kind = "held-out" if cases.held_out else "training"
    what = f"{count} {kind} crops after step {cases.step} ({cases.rung})"
    how = "Before: the policy as the run began. Same LR pictures, same noise. Drag the border or choose other pictures."
    if chosen_by not in cases.now.panel:
        return [
            Section(
                "Before and after", f"{what}. {how}", comparisons=[comparison(cases, k) for k in range(min(count, 2 * CASES))]
            )
        ]
    change = np.subtract(cases.now.panel[chosen_by], cases.before.panel[chosen_by])
    order = [int(k) for k in np.argsort(-change, kind="stable")]
    if count <= 2 * CASES:
        return [
            Section("Before and after", f"{what}, best first, by FSIM. {how}", comparisons=[comparison(cases, k) for k in order])
        ]
    groups = {"Best cases": order[:CASES], "Worst cases": order[::-1][:CASES]}
    text = f"The {CASES} of {what} with the {{}} change of FSIM. {how}"
    return [
        Section(title, text.format(which), comparisons=[comparison(cases, k) for k in group])
        for (title, group), which in zip(groups.items(), ("largest", "smallest"), strict=True)
    ]


def comparison(cases: Cases, index: int) -> Comparison:
    """One crop."""
    layers = [
        Layer("LR", cases.lr[index]),
        Layer("before", cases.before.images[index], _heat(cases.before, index)),
        Layer("after", cases.now.images[index], _heat(cases.now, index)),
        Layer("ground truth", cases.ground_truth[index]),
    ]
    rows, worse = [], set()
    for name in ["reward", *(metric for metric in PANEL if metric in cases.now.panel)]:
        before, after = (
            side.reward[index] if name == "reward" else side.panel[name][index] for side in (cases.before, cases.now)
        )
        digits = 2 if name == "psnr" else 4
        change = _signed(after - before, digits)
        rows.append((measure(name), f"{before:.{digits}f}", f"{after:.{digits}f}", change))
        if change.startswith("−" if HIGHER_BETTER.get(name, True) else "+"):
            worse.add(measure(name))
    return Comparison(f"crop {index + 1}", layers, ("before", "after"), rows, frozenset(worse))


def measure(name: str) -> str:
    """A measure's name for people."""
    return name.upper() if name in PANEL else _WORDS.get(name, name)


def _heat(side: Side, index: int) -> Any:
    if side.maps is None:
        return None
    return overlay(side.images[index], np.nan_to_num(side.maps[index]))


def _signed(value: float, digits: int) -> str:
    """With its sign, unless it is 0 as it is written."""
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text if any(digit in text for digit in "123456789") else text[1:]


def _points(records: Records, key: str) -> tuple[list[float], list[float]]:
    own = [record for record in records if record.get(key) is not None]
    return [record["step"] for record in own], [record[key] for record in own]


def _named_series(records: Records, field: str) -> dict[str, list[Line]]:
    """Lines of every number that ``field`` ever held; a step without it is left out."""
    found = {}
    for name in dict.fromkeys(name for record in records for name in record[field]):
        own = [{"step": record["step"], name: record[field][name]} for record in records if name in record[field]]
        found[name] = series(name, own, name)
    return found


def _joined(named: Mapping[str, Sequence[Line]]) -> list[Line]:
    return [line for lines in named.values() for line in lines]
