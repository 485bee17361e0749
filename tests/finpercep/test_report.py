"""The report: self-contained, escaped, and drawn from the records a run leaves."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from finpercep.curriculum.snapshots import Cases, Side
from finpercep.errors import ConfigError
from finpercep.report.charts import Chart, Line
from finpercep.report.figures import Cell, Curve, curves, image_grid, smoothed
from finpercep.report.finetuning import CASES, case_sections
from finpercep.report.page import LARGEST, LOSSLESS, Comparison, Layer, Picture, Report, Section, Table, webp_uri, write_report
from finpercep.report.runs import read_records, report_of_run, validation_charts
from finpercep.training.provenance import Session, add_session


def test_a_report_is_one_file_without_outside_references(tmp_path):
    grid = image_grid(["a <b>", "map"], [[Cell(np.zeros((8, 8, 3), np.uint8), "x"), Cell(np.ones((8, 8), np.float32))]])
    evil = "</script><script>alert(1)</script>"
    layers = [Layer(name, np.zeros((4, 4, 3), np.uint8)) for name in ("before", 'after" onload="alert(2)')]
    section = Section(
        evil,
        evil,
        [Table(["k"], [[evil]])],
        [Picture(grid, f'say "hi" {evil}')],
        [Chart(evil, [Line(evil, [0, 1], [0, 1])])],
        [Comparison(evil, layers, ("before", "before"))],
        [evil],
        [(evil, evil)],
    )
    write_report(Report("T", "summary", [("figure", "1.0")], [section]), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in html and '" onload="' not in html
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import", html)
    assert "data:image/png;base64," in html


def test_figures_are_pictures_of_what_they_were_given():
    png = curves({"left": [Curve("up", [0, 1], [0, 1])], "right": [Curve("", [0, 1], [1, 0], faint=True)]}, marks={0.5: "RM_1"})
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.width > 2 * picture.height


def test_small_pictures_are_kept_and_huge_ones_reduced():
    pixels = np.random.default_rng(0).integers(0, 256, (160, LOSSLESS // 160, 3), dtype=np.uint8)
    assert np.array_equal(_pixels(webp_uri(pixels)), pixels)
    assert _pixels(webp_uri(np.zeros((100, 2 * LARGEST, 3), np.uint8))).shape == (50, LARGEST, 3)


def _pixels(uri: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        return np.asarray(picture.convert("RGB"))


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


def write_records(folder, records):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def charts_of(report):
    return {chart.title: chart for section in report.sections for chart in section.charts}


def test_report_of_a_run_of_before_there_were_pictures(tmp_path):
    """Neither pictures, sessions, nor the deviation of the reward; and its last line is torn."""
    records = [finetuning_record(step, "RM_0" if step < 3 else "RM_1") for step in range(1, 6)]
    write_records(tmp_path, records)
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 6, "ru')
    (tmp_path / "config.toml").write_text("[finetune]\nlr = 2e-6\n")
    report = report_of_run(tmp_path)
    assert "25%" in report.sections[0].text and "5 steps" in report.sections[0].text
    assert [section.title for section in report.sections] == ["Fine-tuning along the ladder", "How to do it again"]
    assert "deviation of the reward" not in charts_of(report)
    write_report(report, tmp_path / "report.html")
    assert "lr = 2e-6" in (tmp_path / "report.html").read_text()


def test_the_reward_is_drawn_along_the_rungs_below_its_ceiling(tmp_path):
    records = [finetuning_record(step, "RM_0" if step < 3 else "RM_1") | {"reward": step / 10} for step in range(1, 6)]
    write_records(tmp_path, records)
    charts = charts_of(report_of_run(tmp_path))
    reward = charts["reward"]
    raw = next(line for line in reward.lines if line.faint)
    assert (list(raw.x), list(raw.y)) == ([1, 2, 3, 4, 5], [0.1, 0.2, 0.3, 0.4, 0.5])
    assert [line.name for line in reward.lines if line.name] == ["SR output", "ground truth (ceiling)"]
    assert [(one.start, one.end, one.name) for one in reward.stretches] == [(0.5, 2.5, "RM_0"), (2.5, 5.5, "RM_1")]
    assert {"gradient norm", "losses, weighted", "clipped"} <= charts.keys() and "ceiling" not in charts


def test_report_of_a_watched_run_tells_decisions_and_alarms(tmp_path):
    records = [finetuning_record(step, "RM_0") for step in range(1, 6)]
    panel = {"panel": {"psnr": 24.5, "grid": 0.2}, "panel_at_start": {"psnr": 25.0, "grid": 0.1}}
    verdict = {"change": -0.2, "low": -0.3, "high": -0.1, "reward_change": 0.05, "hacked": True, **panel}
    records[2] |= {"verdict": verdict, "decision": {"move": "back", "rung": 0, "lr_scale": 0.5, "reasons": ["the panel fell"]}}
    records[4] |= {"verdict": {**verdict, "hacked": False}, "decision": None}
    records[3]["losses"] = {"gram": 1.0}  # a term that is not there at every step
    write_records(tmp_path, records)
    report = report_of_run(tmp_path)
    ladder, held_out = report.sections
    assert [row[:2] for row in ladder.tables[0].rows] == [["3", "back"], ["3", "alarm"]]
    assert "the panel fell" in ladder.tables[0].rows[0][2]
    charts = charts_of(report)
    assert [(mark.x, mark.kind) for mark in charts["reward"].marks] == [(3, "alarm"), (3, "back")]
    assert [chart.title for chart in held_out.charts] == ["panel, change", "held-out reward, change", "PSNR", "grid"]
    assert charts["PSNR"].level == 25.0 and list(charts["PSNR"].lines[0].x) == [3, 5]
    assert list(charts["panel, change"].bands[0].low) == [-0.3, -0.3]
    assert "Higher" in charts["PSNR"].note and "Lower" in charts["grid"].note
    figures = dict(report.figures)
    assert figures["alarms"] == "1" and figures["PSNR, held out"] == "25 → 24.5"


@pytest.mark.parametrize("on_alarm", ["warn", "fallback", "stop"])
@pytest.mark.parametrize("best", [0.3, -0.1])
def test_the_head_shows_the_weights_that_the_run_ended_with(tmp_path, on_alarm, best):
    records = [finetuning_record(step, "RM_0") for step in range(1, 7)]
    for step, change, hacked in ((2, best, False), (4, best - 0.05, False), (6, -0.9, True)):
        about = {"change": change, "low": change - 0.1, "high": change + 0.1, "reward_change": 0.05, "hacked": hacked}
        records[step - 1]["verdict"] = {**about, "panel": {"psnr": 20.0 + step}, "panel_at_start": {"psnr": 20.0}}
    write_records(tmp_path, records)
    (tmp_path / "config.toml").write_text(f'[finetune.monitor]\non_alarm = "{on_alarm}"\n')
    figures = dict(report_of_run(tmp_path).figures)
    if on_alarm == "warn":
        assert figures["panel, change [interval]"] == "-0.900 [-1.000, -0.800]" and figures["PSNR, held out"] == "20 → 26"
    elif best > 0:
        assert figures["panel at step 2, taken back at 6"] == "+0.300 [+0.200, +0.400]"
        assert figures["PSNR, held out"] == "20 → 22"
    else:
        assert figures["panel, change"] == "0: the start's weights were taken back at step 6" and "PSNR, held out" not in figures


@pytest.mark.parametrize(
    ("rungs", "way", "reward"),
    [
        (["RM_0"] * 10, "RM_0", "reward, first → last tenth"),
        (["RM_0"] * 5 + ["RM_1"] * 3 + ["RM_0"] * 2, "RM_0 → RM_1 → RM_0", "reward, first → last tenth"),
        (["RM_0"] * 5 + ["RM_1"] * 5, "RM_0 → RM_1", "reward, first tenth, RM_0 → last, RM_1"),
        (["RM_0", "RM_1"] * 5, "RM_0 → … → RM_1", "reward, first tenth, RM_0 → last, RM_1"),
    ],
)
def test_the_head_shows_the_way_along_the_ladder(tmp_path, rungs, way, reward):
    write_records(tmp_path, [finetuning_record(step, rung) for step, rung in enumerate(rungs, start=1)])
    figures = dict(report_of_run(tmp_path).figures)
    assert figures["rungs"] == way and figures[reward] == "0.5000 → 0.5000"


def test_a_run_watched_before_the_panel_was_kept(tmp_path):
    verdict = {"change": -0.2, "low": -0.3, "high": -0.1, "reward_change": 0.05, "hacked": False}
    write_records(tmp_path, [finetuning_record(1, "RM_0") | {"verdict": verdict}])
    report = report_of_run(tmp_path)
    assert [chart.title for chart in report.sections[1].charts] == ["panel, change", "held-out reward, change"]


def cases(count: int, changes, *, maps: bool = True) -> Cases:
    """Crops whose FSIM changes so; crop k is a flat k."""
    images = np.stack([np.full((8, 8, 3), index, np.uint8) for index in range(count)])
    degradation = np.zeros((count, 8, 8), np.float32) if maps else None
    before = Side(images, degradation, [0.5] * count, {"psnr": [20.0] * count, "fsim": [0.9] * count, "gmsd": [0.1] * count})
    after = Side(images, degradation, [0.6] * count, {**before.panel, "fsim": [0.9 + c for c in changes], "gmsd": [0.2] * count})
    return Cases(7, "RM_1", True, images[:, :2, :2], images, before, after)


def test_best_and_worst_cases_are_those_of_the_largest_and_smallest_change():
    changes = [0.01, -0.03, 0.02, 0.0, 0.05, -0.01, 0.03, -0.05, 0.04, -0.02]
    best, worst = case_sections(cases(10, changes))
    assert [one.title for one in best.comparisons] == ["crop 5", "crop 9", "crop 7", "crop 3"]
    assert [one.title for one in worst.comparisons] == ["crop 8", "crop 2", "crop 10", "crop 6"]
    assert len(best.comparisons) == CASES and "held-out" in best.text and "step 7" in best.text
    rows = {row[0]: row[1:] for row in best.comparisons[0].figures}
    assert rows["reward"] == ("0.5000", "0.6000", "+0.1000") and rows["FSIM"][2] == "+0.0500" and rows["PSNR"][2] == "0.00"
    assert worst.comparisons[0].worse == {"FSIM", "GMSD"}
    assert best.comparisons[0].worse == {"GMSD"}  # it rose, and lower is better


def test_few_cases_stand_in_one_section_and_without_a_panel_in_their_order():
    (section,) = case_sections(cases(3, [0.0, 0.1, -0.1], maps=False))
    assert [one.title for one in section.comparisons] == ["crop 2", "crop 1", "crop 3"] and not section.has_heat
    few = cases(3, [0.0, 0.1, -0.1])
    bare = dataclasses.replace(few, now=dataclasses.replace(few.now, panel={}), before=dataclasses.replace(few.before, panel={}))
    (section,) = case_sections(bare)
    assert [one.title for one in section.comparisons] == ["crop 1", "crop 2", "crop 3"] and section.has_heat


def test_the_report_says_how_to_do_the_run_again(tmp_path):
    write_records(tmp_path, [finetuning_record(1, "RM_0")])
    (tmp_path / "config.toml").write_text('rungs = ["RM_0"]\n[finetune]\nlr = 2e-6\n[policy]\nname = "tiny"\ndigest = "abc"\n')
    begun = Session.now(["finetune", "--out", "a folder"], "cpu")
    for session in (begun, dataclasses.replace(begun, started="2026-01-02T03:04:05+00:00", command="finpercep finetune again")):
        add_session(tmp_path, session)
    section = report_of_run(tmp_path).sections[-1]
    assert section.commands == ["finpercep finetune --out 'a folder'"]
    continued, given = section.tables
    assert continued.rows == [["2026-01-02T03:04:05+00:00", "finpercep finetune again"]]
    assert given.rows == [["rungs", "RM_0"], ["policy.name", "tiny"], ["policy.digest", "abc"]]
    (_, versions), (_, settings) = section.folded
    assert f"torch          {begun.versions['torch']}\n" in versions and "lr = 2e-6" in settings


def test_report_of_a_training_run(tmp_path):
    steps = [{"kind": "StepReport", "rung": "RM_0", "step": s, "losses": {"rank": 0.1, "total": 0.2}} for s in (1, 2, 2, 3)]
    ranking = {"gt_over_syn": 0.9, "syn_over_sr": 0.8, "triplet": 0.75, "count": 12}
    rung = {
        "kind": "RungReport",
        "rung": "RM_0",
        "digest": "d",
        "quality": {"map": None, "ranking": ranking, "ranking_by_area": {}},
    }
    write_records(tmp_path, [*steps, rung])
    section = report_of_run(tmp_path).sections[0]
    (table,) = section.tables
    assert table.rows == [["RM_0", "–", "–", "–", "–", "0.750", "0.900", "12", "–"]]  # a run of before looks at validation photos
    (chart,) = section.charts
    assert [line.name for line in chart.lines if line.name] == ["rank", "total"] and list(chart.lines[0].x) == [1, 2, 3]

    look = {"figure": 0.75, "improved": True, "quality": rung["quality"]}
    looked = [{**step, "validation": look if step["step"] > 1 else None} for step in steps]
    write_records(tmp_path, [*looked, {**rung, "step": 3, "steps": 3}])
    section = report_of_run(tmp_path).sections[0]
    assert section.tables[0].rows[0][-1] == "3"
    assert [chart.title for chart in section.charts] == ["RM_0: loss terms", "RM_0: validation"]
    (chart,) = validation_charts(looked[2:])
    assert [(line.name, list(line.y)) for line in chart.lines] == [
        ("figure", [0.75, 0.75]),
        ("order gt > syn > sr", [0.75, 0.75]),
    ]


def test_nothing_to_report(tmp_path):
    with pytest.raises(ConfigError, match="expected a run directory"):
        read_records(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match="no step yet"):
        read_records(tmp_path / "metrics.jsonl")
