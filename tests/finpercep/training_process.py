"""One of several processes that train together, as `test_training_processes` starts it; or the lone one it compares them with.

    python -m tests.finpercep.training_process FOLDER

Writes FOLDER/updates-RANK-OF-COUNT.pt: RM_1's weights after three updates with BatchNorm's statistics fixed, so that nothing but
the gradient depends on who holds which sample. Then trains a ladder into FOLDER/ladder-of-COUNT, and writes the digests it sees.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch

from finpercep.reward_model.ladder import LadderConfig
from finpercep.training.processes import make_accelerator
from finpercep.training.rung import RungTrainer
from finpercep.training.train import RungReport, first_weights, train_ladder
from tests.finpercep.test_training import CONFIG, SAMPLES, SIDE


def main(folder: Path) -> None:
    accelerator = make_accelerator(torch.device("cpu"), "fp32")
    rank, count = accelerator.process_index, accelerator.num_processes
    config = dataclasses.replace(CONFIG, crop=SIDE, ladder=LadderConfig(CONFIG.ladder.base, (4,)), steps=(3, 3))
    updates(accelerator, config, folder / f"updates-{rank}-of-{count}.pt")
    ladder(accelerator, config, folder, rank, count)
    accelerator.end_training()


def updates(accelerator, config, path):
    """With a parameter that takes no part, as some encoders have."""
    model = first_weights(config, 1)
    model.bystander = torch.nn.Parameter(torch.ones(1))
    trainer = RungTrainer(model, first_weights(config, 0).eval(), SAMPLES, config, 1, accelerator)
    trainer.model.eval()
    losses = [trainer.update(trainer.draw(trainer.step))[0]["total"] for _ in range(3)]
    torch.save({"losses": losses, "model": trainer.model.state_dict(), "average": trainer.average.weights()}, path)
    accelerator.free_memory()


def ladder(accelerator, config, folder, rank, count):
    out = folder / f"ladder-of-{count}"
    reports = train_ladder(SAMPLES[:8], SAMPLES[8:], config, out, accelerator=accelerator)
    digests = [report.digest for report in reports if isinstance(report, RungReport)]
    (folder / f"digests-{rank}-of-{count}.json").write_text(json.dumps(digests))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
