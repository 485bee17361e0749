"""Small real models shared by the tests: built here, never downloaded."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

# Each of pytest's workers, and the processes its tests start, has its share of the cores; torch reads this when it is imported.
if (WORKERS := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // WORKERS)))

import pytest
import torch

os.environ["DIFFUSERS_VERBOSITY"] = "error"

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def small_ladder(tmp_path_factory):
    """A ladder of three rungs with random weights, saved under contract 2."""
    from finpercep.checkpoint import LadderRung, write_checkpoint, write_ladder
    from finpercep.reward_model.build import build_reward_model
    from finpercep.reward_model.ladder import LadderConfig

    folder = tmp_path_factory.mktemp("ladder")
    torch.manual_seed(0)
    rungs = []
    for rung, config in LadderConfig().rungs():
        model = build_reward_model(dataclasses.replace(config, score_scale=20.0)).eval()
        rungs.append(LadderRung(rung, rung, write_checkpoint(folder / rung, model.config.to_json(), model.state_dict())))
    write_ladder(folder, "small", rungs)
    return folder


@pytest.fixture
def small_policy():
    """A diffusion SR policy of the packaged architecture, far smaller, with random weights."""
    from finpercep.sr.tiny import TinyConfig, TinyDiffusionSR, build_scheduler, build_unet

    torch.manual_seed(0)
    return TinyDiffusionSR(build_unet((16, 16, 16)), build_scheduler(), TinyConfig(num_steps=3))
