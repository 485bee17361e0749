"""Ladder training: RM_0 … RM_N, each rung started from the one before and anchored to RM_0's scores (method §4, §5).

A run is a function of its config and dataset. It may be interrupted anywhere: running again continues exactly (`rung`). Several
processes (``accelerate launch``) train one model; all must see the output folder, the main process alone writes to it.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from pydantic import TypeAdapter

from data_synth.schema.pixels import write_atomically
from finpercep.batch_share import share_of
from finpercep.checkpoint import LadderRung, write_checkpoint, write_ladder
from finpercep.errors import TrainingError
from finpercep.reward_model.build import build_reward_model, inherit_weights
from finpercep.reward_model.model import FinPercepRM
from finpercep.training.data import Samples, spread
from finpercep.training.evaluate import RungQuality, calibrate, evaluate_rung
from finpercep.training.processes import make_accelerator, on_main_process
from finpercep.training.reports import RungReport, StepReport
from finpercep.training.rung import RungTrainer
from finpercep.training.train_config import TrainConfig

__all__ = ["RungReport", "StepReport", "TrainConfig", "train_ladder"]

STATE_NAME = "run_state.pt"
REPORTED_SAMPLES = 400
"""Validation samples, spread over the split, that a finished rung is calibrated and measured on; `eval-rm` takes all."""
TRAINING_NAME = "training.json"
"""In a rung's folder, beside contract 2: which step is stored, how many were done, and the figures on the validation split."""


def train_ladder(
    train: Samples,
    validation: Samples,
    config: TrainConfig,
    out: Path,
    *,
    start: dict[str, FinPercepRM] | None = None,
    name: str = "finpercep-rm",
    accelerator: Accelerator | None = None,
    threads: int = 2,
) -> Iterator[StepReport | RungReport]:
    """Train every rung into ``out``; rungs that are already there are kept, an interrupted one continues.

    Args:
        train: samples to learn from; not empty.
        validation: samples of other photos. They choose which weights of a rung are stored; without them those are the last.
        config: settings.
        out: becomes a ladder folder (contract 2).
        start: models to start rungs of the same name from, in place of fresh weights and of the rung before.
        name: the ladder's name.
        accelerator: `make_accelerator`'s; by default one on this process's CPU.
        threads: draw batches ahead; they change nothing but the speed.

    Yields:
        A report after every step done now, and after every rung, those of an earlier run included.

    Raises:
        TrainingError: no training sample, or a loss or gradient that is not finite.
        ConfigError: the batch does not divide among the processes.
    """
    if not len(train):
        raise TrainingError("the training split is empty; build a dataset with more samples")
    accelerator = accelerator or make_accelerator(torch.device("cpu"), config.precision)
    share_of(config.batch_size, rank=accelerator.process_index, size=accelerator.num_processes)
    entries: list[LadderRung] = []
    anchor: FinPercepRM | None = None
    previous: FinPercepRM | None = None
    for position, (rung, _) in enumerate(config.ladder.rungs()):
        folder = out / rung
        if not (folder / "config.json").exists():
            model = first_weights(config, position, previous, (start or {}).get(rung))
            trainer = RungTrainer(model, anchor, train, config, position, accelerator)
            yield from trainer.run(validation, out / STATE_NAME, threads=threads)
            if accelerator.is_main_process:
                _store(folder, trainer, spread(validation, REPORTED_SAMPLES))
            accelerator.free_memory()
            accelerator.wait_for_everyone()
        previous = FinPercepRM.load(folder).to(accelerator.device)  # go on from what was stored
        report = on_main_process(accelerator, functools.partial(_report, rung, folder, previous, validation))
        yield report
        entries.append(LadderRung(rung, rung, report.digest))
        anchor = anchor or copy.deepcopy(previous).eval().requires_grad_(False)
    if accelerator.is_main_process:
        write_ladder(out, name, entries)
        (out / STATE_NAME).unlink(missing_ok=True)
    accelerator.wait_for_everyone()


def first_weights(config: TrainConfig, position: int, *parents: FinPercepRM | None) -> FinPercepRM:
    """A rung before training: fresh weights by the seed and, over them, those of each of ``parents`` that fit, in turn."""
    torch.manual_seed(config.seed + position)
    _, model_config = config.ladder.rungs()[position]
    model = build_reward_model(model_config, pretrained_encoder=False if position else config.pretrained_encoder)
    for parent in parents:
        if parent is not None:
            inherit_weights(model, parent)
    return model


def _store(folder: Path, trainer: RungTrainer, validation: Samples) -> None:
    """Write the chosen weights, calibrated on ``validation``."""
    weights, step = trainer.chosen()
    model = trainer.average.module
    model.load_state_dict(weights)
    if len(validation):
        calibrate(model, validation)
    record = {"step": step, "steps": trainer.step, "validation_figure": trainer.selection.figure}
    write_atomically(folder / TRAINING_NAME, (json.dumps(record, indent=2) + "\n").encode())
    dtype = torch.float16 if trainer.config.half else None
    write_checkpoint(folder, model.config.to_json(), model.state_dict(), dtype=dtype)


def _report(rung: str, folder: Path, model: FinPercepRM, validation: Samples) -> RungReport:
    """The rung's figures: measured once, and kept in its record."""
    path = folder / TRAINING_NAME
    record = json.loads(path.read_text()) if path.exists() else {}  # rungs of earlier versions have none
    if record.get("digest") != model.digest:
        measured = spread(validation, REPORTED_SAMPLES)
        record["digest"] = model.digest
        record["quality"] = evaluate_rung(model, measured).to_json() if len(measured) else None
        write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())
    quality = TypeAdapter(RungQuality | None).validate_python(record["quality"])
    return RungReport(rung, str(model.digest), quality, record.get("step"), record.get("steps"))
