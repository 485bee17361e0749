"""Two real processes train one model: the same update as one process with the whole batch, and one ladder for both."""

from __future__ import annotations

import json

import pytest
import torch

from finpercep.predictor import load_predictors
from tests.torchrun import run_alone_and_together

SCRIPT = "tests.finpercep.training_process"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("processes")
    run_alone_and_together(SCRIPT, out)
    return out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_make_the_update_of_one(folder):
    """Statistics are fixed and all masks have one size, so the means over two halves are the mean over the whole."""
    alone, first, second = (torch.load(folder / f"updates-{name}.pt") for name in ("0-of-1", "0-of-2", "1-of-2"))
    assert first["losses"] == second["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    moved = 0.0
    for name, tensor in alone["model"].items():
        assert torch.equal(first["model"][name], second["model"][name]), name
        assert torch.equal(first["average"][name], second["average"][name]), name
        # Sums in another order differ by float32's rounding: 1.3e-6 at most was seen, of steps of 1e-3.
        assert (tensor - first["model"][name]).abs().max() < 2e-5, name
        moved += (tensor - first["average"][name]).abs().float().sum().item()
    assert moved > 0
    assert first["model"]["bystander"].item() == 1.0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_they_write_one_ladder(folder):
    digests = [json.loads((folder / f"digests-{rank}-of-2.json").read_text()) for rank in (0, 1)]
    assert digests[0] == digests[1] == [one.digest for one in load_predictors(folder / "ladder-of-2").values()]
    assert sorted(path.name for path in (folder / "ladder-of-2").iterdir()) == ["RM_0", "RM_1", "ladder.json"]
    assert digests[0] != json.loads((folder / "digests-0-of-1.json").read_text())  # BatchNorm saw other batches
