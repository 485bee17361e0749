"""One rung in training: model, optimiser, average and selection, which are one state that can be saved and gone on from.

Step s draws its batch and its random numbers from (seed, s) and the process alone, so a run that is interrupted anywhere and run
again ends with the same weights, bit for bit on a CPU with the same number of threads. Knows neither the ladder nor the folder.

The gradient is the mean of the processes' gradients. It is that of the whole batch, but for the map loss: its mean over the
pixels whose M_gt is known is taken in each process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from finpercep.batch_share import share_of
from finpercep.errors import TrainingError
from finpercep.reward_model.model import FinPercepRM
from finpercep.training.attack import attacked
from finpercep.training.averaging import WeightAverage
from finpercep.training.data import Samples, TripletBatch, spread, training_batch
from finpercep.training.evaluate import evaluate_rung
from finpercep.training.learning_rate import warmup_cosine
from finpercep.training.objective import triplet_losses
from finpercep.training.prefetch import prefetched
from finpercep.training.processes import on_main_process, prepare_for_processes
from finpercep.training.reports import StepReport
from finpercep.training.run_state import load_run_state, save_run_state
from finpercep.training.selection import Selection, Validation, Weights
from finpercep.training.train_config import TrainConfig


class RungTrainer:
    """Trains rung number ``position`` of ``config``'s ladder, in place; ``model`` may hold its first weights anywhere."""

    def __init__(
        self,
        model: FinPercepRM,
        anchor: FinPercepRM | None,
        train: Samples,
        config: TrainConfig,
        position: int,
        accelerator: Accelerator,
    ) -> None:
        self.train, self.config, self.position, self.accelerator = train, config, position, accelerator
        self.rung, self.steps = list(config.rung_steps().items())[position]
        self.share = share_of(config.batch_size, rank=accelerator.process_index, size=accelerator.num_processes)
        self.model, self.anchor = model.to(accelerator.device), anchor
        self.average = WeightAverage(self.model, config.ema)
        self.selection = Selection()
        self.step = 0  # done so far
        self.model.train().to(memory_format=torch.channels_last)
        optimiser = torch.optim.AdamW(self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.wrapped, self.optimiser = prepare_for_processes(accelerator, self.model, optimiser, self._probe)

    def run(self, validation: Samples, state_path: Path, *, threads: int) -> Iterator[StepReport]:
        """Do the steps that are left.

        Args:
            validation: samples for the selection; may be empty.
            state_path: where the main process keeps the run state, and every process finds it.
            threads: draw batches.

        Yields:
            A report after every step. A state is saved when the next one is asked for, so whoever asks has dealt with the last.

        Raises:
            TrainingError: a loss or a gradient that is not finite.
        """
        self._resume(state_path)
        if self._is_done():
            return
        looks = spread(validation, self.config.validate_samples)
        with closing(prefetched(self._draw, range(self.step, self.steps), threads)) as batches:
            for batch in batches:
                losses, lr, norm = self.update(batch)
                yield StepReport(self.rung, self.step, losses, lr, norm, self._look(looks))
                if self.step % self.config.save_every == 0 and self.accelerator.is_main_process:
                    save_run_state(state_path, self._state())
                if self._is_done():
                    break

    def update(self, batch: TripletBatch) -> tuple[dict[str, float], float, float | None]:
        """One optimiser step on this process's share of a batch. Returns losses, learning rate and gradient norm."""
        torch.manual_seed(self._step_seed())
        lr = warmup_cosine(self.step, self.steps, self.config.lr)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        losses = self._losses(batch)
        self.optimiser.zero_grad()
        self.accelerator.backward(losses["total"])
        norm: Any = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.step += 1
        values, length = self._checked(losses, norm)
        self.optimiser.step()
        self.average.update(self.model)
        return values, lr, length

    def chosen(self) -> tuple[Weights, int]:
        """The weights to store, and the step they are from: the best by validation, or else the last average."""
        if self.selection.weights is None:
            return self.average.weights(), self.step
        return self.selection.weights, self.selection.step

    def draw(self, step: int) -> TripletBatch:
        """This process's share of the batch of a 0-based step; a rung goes on in the samples where the last one ended."""
        config = self.config
        return training_batch(
            self.train,
            sum(config.steps[: self.position]) + step,
            batch_size=config.batch_size,
            crop=config.crop,
            seed=config.seed,
            lr_known=config.lr_known,
            share=self.share,
        )

    def _draw(self, step: int) -> TripletBatch:
        batch = self.draw(step)
        return _each(batch, torch.Tensor.pin_memory) if self.accelerator.device.type == "cuda" else batch

    def _losses(self, batch: TripletBatch) -> dict[str, torch.Tensor]:
        """The one place that calls the objective; autocast is the accelerator's."""
        on_device = _each(batch, lambda tensor: tensor.to(self.accelerator.device, non_blocking=True))
        return triplet_losses(self.wrapped, self.anchor, self._attacked(on_device), self.config.loss, photos=on_device.gt)

    def _attacked(self, batch: TripletBatch) -> TripletBatch:
        """The batch, a part of it changed so as to fool the model as it is."""
        if not self.config.attack.radius:
            return batch

        def loss(victims: TripletBatch) -> torch.Tensor:
            with self.accelerator.autocast():
                return triplet_losses(self.model, None, victims, self.config.loss)["total"]

        self.model.eval()  # the statistics of its norms are those of images
        try:
            return attacked(batch, loss, self.config.attack, self.share)
        finally:
            self.model.train()

    def _probe(self) -> None:
        self.wrapped = self.model
        self._losses(self.draw(0))["total"].backward()

    def _checked(self, losses: dict[str, torch.Tensor], norm: torch.Tensor) -> tuple[dict[str, float], float | None]:
        """Means over the processes, in one transfer, so that all of them go on or stop together."""
        stacked = torch.stack([*losses.values(), norm.to(losses["total"].device)]).detach().float()
        *values, length = self.accelerator.reduce(stacked, "mean").tolist()
        named = dict(zip(losses, values, strict=True))
        overflowed = self.config.precision == "fp16" and not math.isfinite(length)  # the scaler leaves such a step out
        for name, value in {"loss": named["total"], "gradient norm": 0.0 if overflowed else length}.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"{self.rung}, step {self.step}: {name} is {value}; lower the learning rate (now {self.config.lr})"
                )
        return named, None if overflowed else length

    def _look(self, samples: Samples) -> Validation | None:
        """Judge the average when it is due: by the main process, for all."""
        if not len(samples) or (self.step % self.config.validate_every and self.step < self.steps):
            return None
        quality = on_main_process(self.accelerator, lambda: evaluate_rung(self.average.module, samples))
        return self.selection.judge(quality, self.average.weights(), self.step)

    def _is_done(self) -> bool:
        return self.step >= self.steps or self.selection.exhausted(self.step, self.config.patience)

    def _step_seed(self) -> int:
        entropy = (self.config.seed, self.position, self.step, self.accelerator.process_index)
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def _state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "rung": self.rung,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "average": self.average.module.state_dict(),
            "updates": self.average.updates,
            "selection": self.selection.state(),
        }

    def _resume(self, state_path: Path) -> None:
        """Go on from the run state when it is this rung's."""
        state = load_run_state(state_path)
        if state is None or state["rung"] != self.rung:
            return
        self.step = int(state["step"])
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.average.restore(state["average"], int(state["updates"]))
        self.selection = Selection(**state["selection"])


def _each(batch: TripletBatch, change: Callable[[torch.Tensor], torch.Tensor]) -> TripletBatch:
    return TripletBatch(**{name: change(getattr(batch, name)) for name in TripletBatch.__dataclass_fields__})
