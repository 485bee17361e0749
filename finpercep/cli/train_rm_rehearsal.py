"""`finpercep train-rm --dry-run`: what a training run would do, whether it fits, and how long it would take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from finpercep.cli.console import figures_table, say, show
from finpercep.cli.train_rm import open_splits

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from finpercep.predictor import Predictor
    from finpercep.training.data import Samples
    from finpercep.training.rehearsal import Rehearsal
    from finpercep.training.train import TrainConfig


def show_rehearsal(
    data: Path, config: TrainConfig, parents: Mapping[str, Predictor], *, device: torch.device, threads: int
) -> None:
    """Resolve everything, try two optimiser steps of the finest rung, and print what there is to know. Writes nothing."""
    from finpercep.training.processes import make_accelerator
    from finpercep.training.rehearsal import rehearse

    accelerator = make_accelerator(device, config.precision)
    train, validation = open_splits(data, config)
    if accelerator.is_main_process:
        say("trying the finest rung …")
    found = rehearse(train, config, accelerator)
    if accelerator.is_main_process:
        rows = run_rows(config, accelerator, train, validation, threads)
        show(figures_table("training run", [*rows, ("starts from", ", ".join(parents) or "fresh weights")]))
        show(figures_table("rungs", rung_rows(config, found)))
        show(figures_table("a step of the finest rung", step_rows(config, found, threads)))
    accelerator.end_training()


def run_rows(
    config: TrainConfig, accelerator: Accelerator, train: Samples, validation: Samples, threads: int
) -> list[tuple[str, str]]:
    """Data and machine."""
    looked_at = min(config.validate_samples, len(validation))
    epochs = sum(config.steps) * config.batch_size / len(train)
    return [
        ("training samples", f"{len(train)}, each seen {epochs:.1f} times"),
        ("validation samples", f"{len(validation)}, {looked_at} of them every {config.validate_every} steps"),
        ("batch", f"{config.batch_size} triplets of {config.crop} px in all"),
        ("processes", f"{accelerator.num_processes}, with {threads} loader threads each"),
        ("device", str(accelerator.device)),
        ("precision", config.precision),
        ("encoder", config.ladder.base.encoder),
    ]


def rung_rows(config: TrainConfig, found: Rehearsal) -> list[tuple[str, str]]:
    """Each rung's size, stride and steps."""
    steps, strides = config.rung_steps(), (None, *config.ladder.map_strides)
    kinds = ["score only" if stride is None else f"map at stride {stride}" for stride in strides]
    return [
        (rung, f"{found.parameters[rung] / 1e6:.2f} M parameters, {kind}, {steps[rung]} steps")
        for rung, kind in zip(steps, kinds, strict=True)
    ]


def step_rows(config: TrainConfig, found: Rehearsal, threads: int) -> list[tuple[str, str]]:
    """What a step takes, and the run."""
    rows = [
        ("loss", f"{found.loss:.3f}"),
        ("first step", f"{found.first_seconds:.2f} s"),
        ("a step", f"{found.step_seconds:.2f} s"),
        ("drawing its batch", f"{found.draw_seconds / threads:.2f} s, while the last one trains"),
        ("GPU memory", "–" if found.peak_bytes is None else f"{found.peak_bytes / 2**30:.1f} GiB"),
    ]
    return [
        *rows,
        ("the run, about", f"{duration(found.seconds(config, threads))}; coarser rungs are faster, validation comes on top"),
    ]


def duration(seconds: float) -> str:
    """``1 h 20 min``, ``20 min`` or ``45 s``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
