"""A training run tried out in memory: does the finest rung fit, and how long will the ladder take? Writes nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from finpercep.reward_model.build import build_reward_model
from finpercep.training.data import Samples
from finpercep.training.rung import RungTrainer
from finpercep.training.train import first_weights
from finpercep.training.train_config import TrainConfig


@dataclass(frozen=True)
class Rehearsal:
    """What was found.

    Attributes:
        parameters: of each rung, by name.
        loss: of the finest rung's first step, from fresh weights.
        first_seconds: of that step, which sets the device up.
        step_seconds: of the step after it.
        draw_seconds: one thread's for drawing this process's share of a batch.
        peak_bytes: most GPU memory in use; None on a CPU.
    """

    parameters: dict[str, int]
    loss: float
    first_seconds: float
    step_seconds: float
    draw_seconds: float
    peak_bytes: int | None

    def seconds(self, config: TrainConfig, threads: int) -> float:
        """Of the whole ladder, looks at the validation split left out: every step at the pace of the finest rung's."""
        return sum(config.steps) * max(self.step_seconds, self.draw_seconds / threads)


def rehearse(train: Samples, config: TrainConfig, accelerator: Accelerator) -> Rehearsal:
    """Two optimiser steps of the finest rung, all processes together: one to see that it fits, one to time."""
    parameters = {
        rung: sum(parameter.numel() for parameter in build_reward_model(model).parameters())
        for rung, model in config.ladder.rungs()
    }
    finest = len(config.steps) - 1
    anchor = first_weights(config, 0).to(accelerator.device).eval().requires_grad_(False) if finest else None
    trainer = RungTrainer(first_weights(config, finest), anchor, train, config, finest, accelerator)
    losses, first = _timed_step(trainer)
    _, second = _timed_step(trainer)
    begun = time.perf_counter()
    trainer.draw(trainer.step)
    drawing = time.perf_counter() - begun
    on_gpu = accelerator.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(accelerator.device) if on_gpu else None
    accelerator.free_memory()
    return Rehearsal(parameters, losses["total"], first, second, drawing, peak)


def _timed_step(trainer: RungTrainer) -> tuple[dict[str, float], float]:
    batch = trainer.draw(trainer.step)
    begun = time.perf_counter()
    losses, _, _ = trainer.update(batch)
    if trainer.accelerator.device.type == "cuda":
        torch.cuda.synchronize(trainer.accelerator.device)
    return losses, time.perf_counter() - begun
