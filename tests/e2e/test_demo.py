"""The whole story as a user runs it: one command, a real server process, a report at the end."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

SECTIONS = [
    "Dataset",
    "Reward-model ladder",
    "What the reward model sees",
    "A planted defect",
    "Fine-tuning along the ladder",
    "Held-out full-reference metrics",
    "SR output",
    "Time",
]


def run_demo(out, *options):
    command = [sys.executable, "-m", "finpercep", "demo", "--fast", "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_the_fast_demo_runs_and_resumes(tmp_path):
    out = tmp_path / "demo"
    first = run_demo(out)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == str(out / "report.html")

    html = (out / "report.html").read_text()
    assert re.findall(r"<h2>(.*?)</h2>", html) == SECTIONS
    assert not re.search(r"(src|href)=\"(?!data:)", html)

    steps = [json.loads(line) for line in (out / "finetune" / "metrics.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(step["rung"] for step in steps)) == ["RM_0", "RM_1", "RM_2"]
    control = [json.loads(line) for line in (out / "control" / "metrics.jsonl").read_text().splitlines()]
    assert len(control) == len(steps) and all(step["losses"]["reward"] == 0 for step in control)
    weights = {name: (out / name).read_bytes() for name in ("ladder/RM_2/model.safetensors", "finetune/checkpoints/latest.pt")}

    again = run_demo(out)
    assert again.returncode == 0, again.stderr
    assert {name: (out / name).read_bytes() for name in weights} == weights

    other = run_demo(out, "--seed", "1")
    assert other.returncode == 1
    assert "error:" in other.stderr and "--out" in other.stderr and "Traceback" not in other.stderr
