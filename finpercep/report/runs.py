"""Sections of a report drawn from the metrics a run left on disk."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finpercep.curriculum.snapshots import read_cases
from finpercep.curriculum.watch import MonitorConfig
from finpercep.errors import ConfigError
from finpercep.report.charts import Chart, Line
from finpercep.report.figures import smoothed
from finpercep.report.finetuning import case_sections, finetuning_sections, key_figures
from finpercep.report.page import Report, Section, Table
from finpercep.training.metrics_log import read_metrics
from finpercep.training.provenance import read_sessions

Records = list[dict[str, Any]]

SETTINGS = ("finetune", "train", "policy_settings", "refresh")
"""Tables of a run's config that say how, not with what."""


def read_records(path: Path) -> Records:
    """Lines of a ``metrics.jsonl``. Raises `ConfigError` when there is none or it is empty."""
    if not path.exists():
        raise ConfigError(f"{path.parent}: expected a run directory with {path.name}, found none")
    records = read_metrics(path)
    if not records:
        raise ConfigError(f"{path}: the run has no step yet; there is nothing to report")
    return records


def report_of_run(folder: Path) -> Report:
    """The report of a training run (`train-rm`) or a fine-tuning run (`finetune`)."""
    records = read_records(folder / "metrics.jsonl")
    config = (folder / "config.toml").read_text() if (folder / "config.toml").exists() else ""
    figures: list[tuple[str, str]] = []
    if "losses" in records[0] and "blend" in records[0]:
        title, figures = "Fine-tuning run", key_figures(records, taken_back=takes_back(config))
        cases = read_cases(folder)
        sections = [*finetuning_sections(records), *(case_sections(cases) if cases else [])]
    else:
        sections, title = training_sections(records), "Reward-model training run"
    summary = f"{len(records)} records in {folder / 'metrics.jsonl'}."
    return Report(f"{title}: {folder.name}", summary, figures, [*sections, *origin_sections(folder, config)])


def takes_back(config: str) -> bool:
    """Whether a fine-tuning run of this ``config.toml`` takes the best weights back on an alarm."""
    monitor = tomllib.loads(config).get("finetune", {}).get("monitor", {})
    return bool(monitor.get("on_alarm", MonitorConfig().on_alarm) != "warn")


def origin_sections(folder: Path, config: str) -> list[Section]:
    """How to do the run again: its commands, the digests of what it was given, the versions it ran with, its settings."""
    sessions = read_sessions(folder)
    text, tables, folded = "", [], []
    if sessions:
        first, *later = sessions
        text = f"Begun {first.started} in {first.folder}. With another --out the same command does the run again."
        ran_with = {"Python": first.python, **first.versions, "platform": first.platform, "device": first.device}
        ran_with["processes"] = str(first.processes)
        folded.append(("Versions", "\n".join(f"{name:<14} {value}" for name, value in ran_with.items())))
        if later:
            tables.append(Table(["continued", "by"], [[one.started, one.command] for one in later]))
    given = [[name, value] for name, value in _leaves(tomllib.loads(config)) if name.split(".")[0] not in SETTINGS]
    if given:
        tables.append(Table(["given", ""], given, "What the run was given; a digest names weights and preprocessing exactly."))
    if config:
        folded.append(("config.toml, as the run resolved it", config))
    commands = [first.command for first in sessions[:1]]
    return [Section("How to do it again", text, tables, commands=commands, folded=folded)] if tables or folded else []


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def training_sections(records: Records) -> list[Section]:
    """Loss curves and the figures of every rung."""
    # A step that was done again after an interruption stands twice; the later line counts.
    steps = list({(r["rung"], r["step"]): r for r in records if r["kind"] == "StepReport"}.values())
    charts = []
    for rung in dict.fromkeys(record["rung"] for record in steps):
        own = [record for record in steps if record["rung"] == rung]
        x = [record["step"] for record in own]
        lines = []
        for name in own[0]["losses"]:
            y = [record["losses"][name] for record in own]
            lines += [Line("", x, y, faint=True), Line(name, x, smoothed(y))]
        charts.append(Chart(f"{rung}: loss terms", lines, note="Thick: moving average."))
    return [Section("Reward-model ladder", tables=[rung_table(records)], charts=[*charts, *validation_charts(steps)])]


def validation_charts(steps: Records) -> list[Chart]:
    """Of every rung that was measured along the way: the figure that chooses its weights, and what it is made of."""
    charts = []
    looks = [record for record in steps if (record.get("validation") or {}).get("figure") is not None]
    for rung in dict.fromkeys(record["rung"] for record in looks):
        own = [record for record in looks if record["rung"] == rung]
        found = {
            "figure": [(r["step"], r["validation"]["figure"]) for r in own],
            "order gt > syn > sr": [(r["step"], r["validation"]["quality"]["ranking"]["triplet"]) for r in own],
            "map AUROC (paired)": [(r["step"], (r["validation"]["quality"]["map"] or {}).get("paired_auroc")) for r in own],
        }
        known = {name: [point for point in points if point[1] is not None] for name, points in found.items()}
        lines = [Line(n, [x for x, _ in points], [y for _, y in points], points=True) for n, points in known.items() if points]
        note = "The averaged weights on validation photos; the best by the figure are stored."
        charts.append(Chart(f"{rung}: validation", lines, note=note))
    return charts


def rung_table(records: Records) -> Table:
    """Figures of every finished rung on the validation photos."""
    rows = []
    for record in records:
        if record["kind"] == "RungReport" and record["quality"] is not None:
            quality, ranking = record["quality"]["map"], record["quality"]["ranking"]
            maps = [figure(quality[key]) for key in ("paired_auroc", "auroc", "l1", "clean_mean")] if quality else ["–"] * 4
            rows.append(
                [
                    record["rung"],
                    *maps,
                    *(figure(ranking[key]) for key in ("triplet", "gt_over_syn")),
                    str(ranking["count"]),
                    str(record.get("step") or "–"),
                ]
            )
    note = "Held-out photos. Paired AUROC: the map on a defect against the map on the same pixels of the clean photo."
    columns = [
        "rung",
        "map AUROC (paired)",
        "map AUROC",
        "map L1",
        "map on clean",
        "gt > syn > sr",
        "gt > syn",
        "triplets",
        "step",
    ]
    return Table(columns, rows, note)


def figure(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where it is undefined."""
    return "–" if value is None else f"{value:.{digits}f}"


def difference(before: float, after: float, digits: int) -> str:
    """Signed change, for a table."""
    return f"{after - before:+.{digits}f}"


def panel_table(names: Sequence[str], columns: dict[str, dict[str, float]], note: str) -> Table:
    """Metrics as rows, models as columns; the last column is the last model less the one before it."""
    digits = {"psnr": 2}
    models = list(columns)
    rows = []
    for name in names:
        values = [columns[model][name] for model in models]
        rows.append(
            [
                name.upper(),
                *(figure(v, digits.get(name, 4)) for v in values),
                difference(values[-2], values[-1], digits.get(name, 4)),
            ]
        )
    return Table(["metric", *models, f"{models[-1]} − {models[-2]}"], rows, note)
