"""docs/finetuning.md: its code runs, and it names every algorithm and no setting that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from finpercep.reward import MapRewardFn
from finpercep.rl.algorithms import ALGORITHMS
from finpercep.sr.transition import Sampler
from tests.toy_policies import ConvolutionalFlow

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "finetuning.md").read_text(encoding="utf-8")


def test_the_code_trains_a_policy_with_a_reward_of_ones_own():
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(compile(block, "docs/finetuning.md", "exec"), names)
    reward, policy = names["Darkness"](), ConvolutionalFlow(Sampler(3, "flow-grpo", 0.7))
    assert isinstance(reward, MapRewardFn)
    means = names["train"](policy, reward, torch.rand(1, 3, 16, 16), torch.rand(1, 3, 4, 4), 2)
    assert len(means) == 2 and all(0 < mean < 1 for mean in means)


def test_every_algorithm_is_named():
    for name in ALGORITHMS:
        assert f"| `{name}` |" in TEXT


def test_the_papers_settings_exist_and_are_accepted():
    table = TEXT.split("## Settings that reproduce papers")[1].split("##")[0]
    rows = [line for line in table.splitlines() if "=" in line and line.startswith("|")]
    assert len(rows) >= 6
    for row in rows:
        name = re.search(r"`(\w+)`", row.split("|")[2]).group(1)
        for code in re.findall(r"`([^`]*=[^`]*)`", row):
            settings = dict(pair.split("=") for pair in code.split())
            ALGORITHMS[name](**{key: _value(value) for key, value in settings.items()})


def _value(text):
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text) if "." in text or "e" in text else int(text)
    except ValueError:
        return text
