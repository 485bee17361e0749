"""A real ladder with fresh weights, small enough for tests: the models a server would load, without any training."""

from __future__ import annotations

from pathlib import Path

import torch

from finpercep.checkpoint import LadderRung, write_checkpoint, write_ladder
from finpercep.reward_model.build import build_reward_model
from finpercep.reward_model.config import RewardModelConfig


def write_tiny_ladder(folder: Path) -> Path:
    """RM_0 without a map and RM_1 with one, in ``folder``; the same weights at every call."""
    rungs = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for rung, stride in (("RM_0", None), ("RM_1", 4)):
            model = build_reward_model(RewardModelConfig(map_stride=stride))
            digest = write_checkpoint(folder / rung, model.config.to_json(), model.state_dict())
            rungs.append(LadderRung(rung, rung, digest))
    write_ladder(folder, "tiny", rungs)
    return folder
