"""Two real processes fine-tune one policy: one process's update with the whole batch, by every algorithm, and one run on disk."""

from __future__ import annotations

import pytest
import torch

from finpercep.training.metrics_log import read_metrics
from tests.finpercep.rl.finetuning_process import SETTINGS
from tests.torchrun import run_alone_and_together

SCRIPT = "tests.finpercep.rl.finetuning_process"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    run_alone_and_together(SCRIPT, out)
    return out


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("algorithm", SETTINGS)
def test_two_processes_make_the_update_of_one(folder, algorithm):
    alone, first, second = (torch.load(folder / f"{algorithm}-{name}.pt") for name in ("0-of-1", "0-of-2", "1-of-2"))
    assert first["metrics"] == second["metrics"]
    assert alone["metrics"][0] == pytest.approx(first["metrics"][0], rel=1e-5)
    assert first["told"] == second["told"] and alone["told"][0] == pytest.approx(first["told"][0], rel=1e-4, abs=1e-6)
    for ours, theirs in zip(alone["told"], first["told"], strict=True):  # refl's ceiling depends on the company of a photo here
        names = ours.keys() - {"reward", "ceiling"}
        assert {name: ours[name] for name in names} == pytest.approx({name: theirs[name] for name in names}, rel=1e-2, abs=1e-4)
    for ours, theirs in zip(alone["metrics"], first["metrics"], strict=True):  # what rounding has grown to through clipped ratios
        assert ours[:2] == pytest.approx(theirs[:2], rel=1e-2)
        assert ours[2] == pytest.approx(theirs[2], abs=1e-2)  # the panel of two crops, in standard deviations
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
    one, two, begun = (torch.cat([t.flatten() for t in w.values()]) for w in (alone["weights"], first["weights"], alone["start"]))
    # Adam turns a rounding error of a vanishing gradient into a whole step, so it is the whole that is compared.
    assert (one - two).norm() < 0.02 * (one - begun).norm()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("algorithm", SETTINGS)
def test_they_write_one_run(folder, algorithm):
    names = [sorted(path.name for path in (folder / f"{algorithm}-of-{count}").iterdir()) for count in (1, 2)]
    assert names[0] == names[1]
    assert [m["step"] for m in read_metrics(folder / f"{algorithm}-of-2" / "metrics.jsonl")] == [1, 2, 3, 4]
