"""Sections of a report drawn from the metrics a run left on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from finpercep.errors import ConfigError
from finpercep.report.figures import Curve, curves, smoothed
from finpercep.report.page import Picture, Report, Section, Table
from finpercep.training.metrics_log import read_metrics

Records = list[dict[str, Any]]


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
    if "losses" in records[0] and "blend" in records[0]:
        sections, title = finetuning_sections(records), "Fine-tuning run"
    else:
        sections, title = training_sections(records), "Reward-model training run"
    config = (folder / "config.toml").read_text() if (folder / "config.toml").exists() else ""
    settings = Section("Settings", tables=[Table(["config.toml"], [[line] for line in config.splitlines() if line.strip()])])
    return Report(f"{title}: {folder.name}", f"{len(records)} records in {folder / 'metrics.jsonl'}.", (), [*sections, settings])


def training_sections(records: Records) -> list[Section]:
    """Loss curves and the figures of every rung."""
    # A step that was done again after an interruption stands twice; the later line counts.
    steps = list({(r["rung"], r["step"]): r for r in records if r["kind"] == "StepReport"}.values())
    panels: dict[str, list[Curve]] = {}
    for rung in dict.fromkeys(record["rung"] for record in steps):
        own = [record for record in steps if record["rung"] == rung]
        x = [record["step"] for record in own]
        panels[f"{rung}: loss terms"] = [Curve(name, x, smoothed([r["losses"][name] for r in own])) for name in own[0]["losses"]]
    pictures = [Picture(curves(panels), "Loss terms of each rung (moving average).")] if panels else []
    if looks := validation_panels(steps):
        pictures.append(Picture(curves(looks), "The averaged weights on validation photos; the best by the figure are stored."))
    return [Section("Reward-model ladder", tables=[rung_table(records)], pictures=pictures)]


def validation_panels(steps: Records) -> dict[str, list[Curve]]:
    """Of every rung that was measured along the way: the figure that chooses its weights, and what it is made of."""
    panels: dict[str, list[Curve]] = {}
    looks = [record for record in steps if (record.get("validation") or {}).get("figure") is not None]
    for rung in dict.fromkeys(record["rung"] for record in looks):
        own = [record for record in looks if record["rung"] == rung]
        found = {
            "figure": [(r["step"], r["validation"]["figure"]) for r in own],
            "order gt > syn > sr": [(r["step"], r["validation"]["quality"]["ranking"]["triplet"]) for r in own],
            "map AUROC (paired)": [(r["step"], (r["validation"]["quality"]["map"] or {}).get("paired_auroc")) for r in own],
        }
        known = {name: [point for point in points if point[1] is not None] for name, points in found.items()}
        panels[f"{rung}: validation"] = [
            Curve(name, [x for x, _ in points], [y for _, y in points]) for name, points in known.items() if points
        ]
    return panels


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


def finetuning_sections(records: Records) -> list[Section]:
    """Reward and losses along the ladder, with the rung changes marked."""
    x = [record["step"] for record in records]
    marks = {b["step"]: b["rung"] for a, b in pairwise(records) if a["rung"] != b["rung"]}
    reward = [record["reward"] for record in records]
    ours = [Curve("", x, reward, faint=True), Curve("SR output", x, smoothed(reward))]
    figures = {curve.name: curve for curve in _named_curves(records, "figures")}
    if ceiling := figures.pop("ceiling", None):
        ours.append(replace(ceiling, name="ground truth (ceiling)"))
    panels = {
        "reward R_k": ours,
        "loss terms (weighted)": _named_curves(records, "losses"),
        "map of SR output": [
            Curve(name, x, smoothed([record[f"{name}_degradation"] for record in records])) for name in ("max", "mean")
        ],
        **{name: [replace(curve, name="")] for name, curve in figures.items()},
    }
    seconds = sum(record["seconds"] for record in records)
    waited = sum(record["reward_seconds"] for record in records) / seconds
    text = (
        f"{len(records)} steps in {seconds:.0f} s, of which {waited:.0%} waiting for the reward. Dotted: a new rung takes over."
    )
    caption = "Reward of the batch and of its ground truth; the reward's scale changes with the rung, so compare the two lines."
    pictures = [Picture(curves(panels, marks=marks), caption)]
    looks = [record for record in records if record.get("verdict")]
    if looks:
        at = [record["step"] for record in looks]
        ends = {"change": False, "low": True, "high": True}
        found = [Curve(name, at, [record["verdict"][name] for record in looks], faint) for name, faint in ends.items()]
        note = "Held-out panel against the start, in standard deviations of the images, with its interval; below 0 is worse."
        rewards = [Curve("", at, [record["verdict"]["reward_change"] for record in looks])]
        pictures.append(Picture(curves({"held-out panel": found, "held-out reward": rewards}, marks=marks), note))
    return [Section("Fine-tuning along the ladder", text, tables=decision_tables(records), pictures=pictures)]


def decision_tables(records: Records) -> list[Table]:
    """What the curriculum decided and why, and the monitor's alarms; nothing where neither happened."""
    rows = []
    for record in records:
        if decision := record.get("decision"):
            rows.append([str(record["step"]), decision["move"], "; ".join(decision["reasons"])])
        if (verdict := record.get("verdict")) and verdict["hacked"]:
            change = f"reward {verdict['reward_change']:+.3g}, panel {verdict['change']:+.3f}"
            rows.append([str(record["step"]), "alarm", f"{change} [{verdict['low']:+.3f}, {verdict['high']:+.3f}]"])
    return [Table(["step", "", "why"], rows, "Decisions of the curriculum and alarms of the monitor.")] if rows else []


def _named_curves(records: Records, field: str) -> list[Curve]:
    """A smoothed curve of every number that ``field`` ever held; a step without it is left out."""
    found = []
    for name in dict.fromkeys(name for record in records for name in record[field]):
        own = [(record["step"], record[field][name]) for record in records if name in record[field]]
        found.append(Curve(name, [x for x, _ in own], smoothed([y for _, y in own])))
    return found


def figure(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where it is undefined."""
    return "–" if value is None else f"{value:.{digits}f}"


def difference(before: float, after: float, digits: int) -> str:
    """Signed change, for a table."""
    return f"{after - before:+.{digits}f}"


def panel_table(names: Sequence[str], columns: dict[str, dict[str, float]], note: str) -> Table:
    """Metrics as rows, models as columns; the last column is the change from the second-last to the last model."""
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
    return Table(["metric", *models, "change"], rows, note)
