"""One of two processes that refresh a rung together, as `test_refresh` starts it.

    python -m tests.finpercep.refresh_process FOLDER KNOWN

FOLDER/RANK.json says what this process saw: its steps, and the digests of the rungs it ended with.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch

from data_synth.photos import gather
from finpercep.cli.publishing import LocalPublisher
from finpercep.cli.refresh import LadderRefresher
from finpercep.curriculum.loop import finetune
from finpercep.curriculum.run_directory import RunDirectory
from finpercep.local_reward import LocalSource
from finpercep.predictor import load_predictors, packaged_model_folder
from finpercep.rl.world import join_world
from finpercep.sr.loading import load_policy
from tests.finpercep.test_refresh import RUN, SMALL, draw_pair


def main(folder: Path, known: Path) -> None:
    world, device = join_world(torch.device("cpu"))
    source = LocalSource(load_predictors(packaged_model_folder()))
    refresher = LadderRefresher(
        folder / "refresh",
        packaged_model_folder(),
        gather(["samples"]),
        dataclasses.replace(SMALL, data=str(known)),
        LocalPublisher(source, device),
        device=device,
        world=world,
    )
    config = dataclasses.replace(RUN, steps=2, batch_size=2)
    run = RunDirectory(folder / "run")
    steps = finetune(load_policy("tiny"), source, draw_pair, lambda x: [x], config, run, refresher=refresher, world=world)
    seen = {"steps": [step.reward for step in steps], "digests": source.digests()}
    (folder / f"{world.rank}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
