"""What is left of a reward when the image is moved by a pixel or two: a pattern made for the reward model's pixel grid is not."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.evidence.summary import FINEST, Run
from finpercep.local_reward import LocalSource
from finpercep.predictor import load_predictors, packaged_model_folder
from finpercep.reward import RewardFn, RewardWeights, weights_on

SHIFTS = ((0, 1), (1, 0), (1, 1), (2, 1))
"""Rows and columns that are left out above and to the left."""


def with_moved(
    out: Path, runs: Mapping[str, Sequence[Run]], start: Mapping[str, Any]
) -> tuple[dict[str, list[Run]], dict[str, Any]]:
    """All runs and the start with ``moved``: mean reward by the finest packaged rung of the crops whose images were kept, moved.

    Another reader's crop of an image begins at another pixel, and the image is as good as it was.
    """
    source = LocalSource(load_predictors(packaged_model_folder()))
    reward = source.reward_fn(FINEST, weights_on(source, FINEST, RewardWeights()))
    found = {
        name: [
            run
            if "diverged" in run
            else {**run, "moved": _moved(reward, out / name / f"seed-{run['seed']}" / "images.safetensors")}
            for run in own
        ]
        for name, own in runs.items()
    }
    return found, {**start, "moved": _moved(reward, out / "start.safetensors")}


@torch.no_grad()
def _moved(reward: RewardFn, kept: Path) -> float:
    images = load_file(kept)["images"]
    return statistics.fmean(float(reward(images[..., top:, left:]).reward.mean()) for top, left in SHIFTS)
