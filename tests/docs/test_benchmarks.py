"""`python -m benchmarks`: the page says what the records say, and a benchmark that fails stops no other."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import pytest

from benchmarks.__main__ import SUITE, Benchmark, main, run, run_suite
from benchmarks.page import description, page_text, write_page
from benchmarks.report import RESULTS
from benchmarks.shown import VIEWS
from tests.docs.pages import DOCS, ROOT

NOT_IN_THE_SUITE = {"loss_weights", "held_out_families", "evidence"}
"""An hour, hours and days; `SUITE` says so."""


def test_the_page_is_what_the_records_give():
    text, faults = page_text(RESULTS, Path("figures"))
    assert faults == []
    assert text == (DOCS / "benchmarks.md").read_text(encoding="utf-8"), "run: python -m benchmarks --page-only"
    assert set(re.findall(r"figures/(bench_\w+\.png)", text)) == {path.name for path in (DOCS / "figures").glob("bench_*.png")}


@pytest.fixture
def results(tmp_path):
    """A few records, to be changed."""
    folder = tmp_path / "results"
    folder.mkdir()
    for name in ("synth_cache", "credit_assignment_tiny", "rm_precision"):
        (folder / f"{name}.json").write_bytes((RESULTS / f"{name}.json").read_bytes())
    return folder


def test_a_figure_a_machine_and_a_command_that_change_change_the_page(results):
    record = json.loads((results / "synth_cache.json").read_text())
    record |= {"ratio": 123.4, "command": "python -m benchmarks.synth_cache --samples 9"}
    record["machine"] |= {"gpu": "Some GPU", "versions": {"torch": "9.8.7"}}
    (results / "synth_cache.json").write_text(json.dumps(record))
    text, faults = page_text(results, Path("figures"))
    assert faults == [] and "| ratio | 123 |" in text
    assert "Some GPU, Python 3.11.7, torch 9.8.7. `python -m benchmarks.synth_cache --samples 9`" in text
    assert "0.026 ± 0.063" in text  # mean and interval of the first row


def test_a_record_of_another_shape_is_said_and_leaves_the_others_alone(results, tmp_path):
    (results / "rm_precision.json").write_text(json.dumps({"date": "2026-01-01"}))
    (results / "a_question_of_nobody.json").write_text("{}")
    page = tmp_path / "page.md"
    faults = write_page(results, page, tmp_path / "figures")
    assert len(faults) == 2 and all(fault in page.read_text() for fault in faults)
    assert "rm_precision.json" in faults[0] and "| ratio |" in page.read_text()


def test_pictures_are_drawn_where_the_page_looks_for_them(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    for name in ("finetune_step", "credit_assignment_toy"):
        (results / f"{name}.json").write_bytes((RESULTS / f"{name}.json").read_bytes())
    (tmp_path / "docs" / "figures").mkdir(parents=True)
    (tmp_path / "docs" / "figures" / "bench_old_0.png").touch()
    assert write_page(results, tmp_path / "docs" / "page.md", tmp_path / "docs" / "figures") == []
    named = re.findall(r"!\[.+\]\((.+)\)", (tmp_path / "docs" / "page.md").read_text())
    assert len(named) == 2 and all((tmp_path / "docs" / name).stat().st_size > 5000 for name in named)
    assert not (tmp_path / "docs" / "figures" / "bench_old_0.png").exists()


def test_every_question_is_in_the_suite_with_options_that_there_are():
    asked = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "write_result(" in path.read_text(encoding="utf-8")}
    asked -= {"report"}
    assert {one.name for one in SUITE} | NOT_IN_THE_SUITE >= asked
    for one in SUITE:
        source = (ROOT / "benchmarks" / f"{one.name}.py").read_text(encoding="utf-8")
        for option in re.findall(r"--[a-z-]+", f"{one.settings} {one.quick}"):
            assert f'"{option}"' in source, (one.name, option)
        question, method = description(one.name)
        assert question and method and "python -m" not in method
    assert {path.stem for path in RESULTS.glob("*.json")} >= VIEWS.keys()


def test_one_that_fails_stops_no_other_and_is_named(tmp_path, capsys):
    options = type("Options", (), {"data": None, "photos": "samples", "quick": True, "limit": 60.0})
    suite = [
        Benchmark("no_such_benchmark", "", ""),
        Benchmark("load", "", ""),
    ]  # the second is a module that does nothing when run
    assert run_suite(suite, tmp_path / "results", tmp_path, options) == ["no_such_benchmark"]
    said = capsys.readouterr().out
    assert "no_such_benchmark: FAILED, exit code 1" in said and "No module named" in said
    assert re.search(r"^load: \d+ s$", said, re.MULTILINE)


def test_one_that_hangs_is_ended_with_its_children(tmp_path, capsys):
    late = tmp_path / "late"
    child = f"import time, pathlib; time.sleep(4); pathlib.Path({str(late)!r}).touch()"
    command = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    assert not run("hanging", [sys.executable, "-c", command], tmp_path, {}, limit=2.0)
    assert "not done after 2 s" in capsys.readouterr().out
    time.sleep(4)
    assert not late.exists()


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["no_such_benchmark"])
    assert "no such benchmark: no_such_benchmark" in capsys.readouterr().err
