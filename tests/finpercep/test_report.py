"""The report: self-contained, escaped, and drawn from the records a run leaves."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from finpercep.errors import ConfigError
from finpercep.report.figures import Cell, Curve, curves, image_grid, smoothed
from finpercep.report.page import Picture, Report, Section, Table, write_report
from finpercep.report.runs import read_records, report_of_run, validation_panels


def test_a_report_is_one_file_without_outside_references(tmp_path):
    grid = image_grid(["a <b>", "map"], [[Cell(np.zeros((8, 8, 3), np.uint8), "x"), Cell(np.ones((8, 8), np.float32))]])
    section = Section("S", "text", [Table(["k"], [["<script>alert(1)</script>"]])], [Picture(grid, 'say "hi"')])
    write_report(Report("T", "summary", [("figure", "1.0")], [section]), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    assert "data:image/png;base64," in html


def test_figures_are_pictures_of_what_they_were_given():
    png = curves({"left": [Curve("up", [0, 1], [0, 1])], "right": [Curve("", [0, 1], [1, 0], faint=True)]}, marks={0.5: "RM_1"})
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.width > 2 * picture.height


def test_moving_average():
    assert smoothed([1.0] * 30) == [1.0] * 30
    assert smoothed([0.0, 3.0, 6.0], share=0.7) == [1.5, 3.0, 4.5]


def finetuning_record(step: int, rung: str) -> dict[str, object]:
    keys = [
        "reward",
        "score",
        "max_degradation",
        "mean_degradation",
        "grad_norm",
    ]
    return {
        "step": step,
        "rung": rung,
        "next_rung": None,
        "blend": 0.0,
        "seconds": 1.0,
        "reward_seconds": 0.25,
        "losses": {"reward": 0.1, "pretraining": 0.2},
        "figures": {"ceiling": 0.9, "clipped": 0.3},
        **dict.fromkeys(keys, 0.5),
    }


def test_report_of_a_fine_tuning_run(tmp_path):
    records = [finetuning_record(step, "RM_0" if step < 3 else "RM_1") for step in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + '{"step": 6, "ru')
    (tmp_path / "config.toml").write_text("[finetune]\nlr = 2e-6\n")
    report = report_of_run(tmp_path)
    assert "25%" in report.sections[0].text and "5 steps" in report.sections[0].text
    write_report(report, tmp_path / "report.html")
    assert "lr = 2e-6" in (tmp_path / "report.html").read_text()


def test_report_of_a_watched_run_tells_decisions_and_alarms(tmp_path):
    records = [finetuning_record(step, "RM_0") for step in range(1, 6)]
    verdict = {"change": -0.2, "low": -0.3, "high": -0.1, "reward_change": 0.05, "hacked": True}
    records[2] |= {"verdict": verdict, "decision": {"move": "back", "rung": 0, "lr_scale": 0.5, "reasons": ["the panel fell"]}}
    records[4] |= {"verdict": {**verdict, "hacked": False}, "decision": None}
    records[3]["losses"] = {"gram": 1.0}  # a term that is not there at every step
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (section, _) = report_of_run(tmp_path).sections
    assert len(section.pictures) == 2
    assert [row[:2] for row in section.tables[0].rows] == [["3", "back"], ["3", "alarm"]]
    assert "the panel fell" in section.tables[0].rows[0][2]


def test_report_of_a_training_run(tmp_path):
    steps = [{"kind": "StepReport", "rung": "RM_0", "step": s, "losses": {"rank": 0.1, "total": 0.2}} for s in (1, 2, 2, 3)]
    ranking = {"gt_over_syn": 0.9, "syn_over_sr": 0.8, "triplet": 0.75, "count": 12}
    rung = {
        "kind": "RungReport",
        "rung": "RM_0",
        "digest": "d",
        "quality": {"map": None, "ranking": ranking, "ranking_by_area": {}},
    }
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*steps, rung]))
    (table,) = report_of_run(tmp_path).sections[0].tables
    assert table.rows == [["RM_0", "–", "–", "–", "–", "0.750", "0.900", "12", "–"]]  # a run of before looks at validation photos

    look = {"figure": 0.75, "improved": True, "quality": rung["quality"]}
    looked = [{**step, "validation": look if step["step"] > 1 else None} for step in steps]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*looked, {**rung, "step": 3, "steps": 3}]))
    section = report_of_run(tmp_path).sections[0]
    assert section.tables[0].rows[0][-1] == "3"
    assert len(section.pictures) == 2
    (curves,) = validation_panels(looked[2:]).values()
    assert [(curve.name, list(curve.y)) for curve in curves] == [("figure", [0.75, 0.75]), ("order gt > syn > sr", [0.75, 0.75])]


def test_nothing_to_report(tmp_path):
    with pytest.raises(ConfigError, match="expected a run directory"):
        read_records(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match="no step yet"):
        read_records(tmp_path / "metrics.jsonl")
