"""Ladder training: RM_0 … RM_N, each rung started from the one before and anchored to RM_0's scores (method §4, §5).

A run is a function of its config and dataset: step s draws its batch from (seed, s) alone, and a run state is saved every few
steps, so running again after an interruption continues exactly.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from finpercep.checkpoint import LadderRung, write_checkpoint, write_ladder
from finpercep.errors import ConfigError, TrainingError
from finpercep.reward_model.build import build_reward_model, inherit_weights
from finpercep.reward_model.ladder import LadderConfig
from finpercep.reward_model.model import FinPercepRM
from finpercep.training.data import Samples, TripletBatch, training_batch
from finpercep.training.evaluate import RungQuality, calibrate, evaluate_rung
from finpercep.training.learning_rate import warmup_cosine
from finpercep.training.objective import LossWeights, triplet_losses
from finpercep.training.run_state import load_run_state, save_run_state


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `train_ladder`.

    Attributes:
        ladder: the rungs.
        steps: optimiser steps for each rung, RM_0 first.
        batch_size: triplets a step.
        crop: side of the random crop in px.
        lr: peak learning rate of AdamW (warm-up over 5 % of a rung's steps, then cosine to a hundredth).
        weight_decay: AdamW's.
        loss: weights and margins.
        pretrained_encoder: start RM_0's encoder from timm's weights (may need a download).
        autocast: bfloat16 convolutions.
        save_every: steps between run states.
        half: store the rungs' weights in float16.
        seed: decides weights, batches and augmentations.
    """

    ladder: LadderConfig = field(default_factory=LadderConfig)
    steps: tuple[int, ...] = (300, 300, 600)
    batch_size: int = 16
    crop: int = 128
    lr: float = 1e-3
    weight_decay: float = 1e-2
    loss: LossWeights = field(default_factory=LossWeights)
    pretrained_encoder: bool = False
    autocast: bool = True
    save_every: int = 100
    half: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        rungs = len(self.ladder.map_strides) + 1
        if len(self.steps) != rungs or min(self.steps) < 1:
            raise ConfigError(f"steps must name a positive count for each of the {rungs} rungs, got {self.steps}")


@dataclass(frozen=True)
class StepReport:
    """After one optimiser step of a rung: 1-based step of that rung, and the loss terms by name (``total`` among them)."""

    rung: str
    step: int
    losses: dict[str, float]


@dataclass(frozen=True)
class RungReport:
    """A finished rung: its digest, and its figures on the validation split (None when that is empty)."""

    rung: str
    digest: str
    quality: RungQuality | None


def train_ladder(
    train: Samples,
    validation: Samples,
    config: TrainConfig,
    out: Path,
    *,
    start: dict[str, FinPercepRM] | None = None,
    name: str = "finpercep-rm",
    device: torch.device | str = "cpu",
) -> Iterator[StepReport | RungReport]:
    """Train every rung into ``out``; rungs that are already there are kept, an interrupted one continues.

    Args:
        train: samples to learn from; not empty.
        validation: samples of other photos, for the figures.
        config: settings.
        out: becomes a ladder folder (contract 2).
        start: models to start rungs of the same name from, in place of fresh weights and of the rung before.
        name: the ladder's name.
        device: where to train.

    Yields:
        A report after every step done now, and after every rung, those of an earlier run included.

    Raises:
        TrainingError: no training sample, or a non-finite loss.
    """
    if not len(train):
        raise TrainingError("the training split is empty; build a dataset with more samples")
    entries: list[LadderRung] = []
    anchor: FinPercepRM | None = None
    previous: FinPercepRM | None = None
    for position, (rung, model_config) in enumerate(config.ladder.rungs()):
        folder = out / rung
        if not (folder / "config.json").exists():
            torch.manual_seed(config.seed + position)  # a rung's fresh weights must not depend on where a run was interrupted
            model = build_reward_model(model_config, pretrained_encoder=config.pretrained_encoder and position == 0).to(device)
            for parent in (previous, (start or {}).get(rung)):
                if parent is not None:
                    inherit_weights(model, parent)
            yield from _train_rung(model, anchor, train, config, rung, config.steps[position], out / "run_state.pt")
            if len(validation):
                calibrate(model, validation)
            dtype = torch.float16 if config.half else None
            write_checkpoint(folder, model.config.to_json(), model.state_dict(), dtype=dtype)
        model = FinPercepRM.load(folder).to(device)  # go on from what was stored
        yield RungReport(rung, str(model.digest), evaluate_rung(model, validation) if len(validation) else None)
        entries.append(LadderRung(rung, rung, str(model.digest)))
        previous = model
        anchor = anchor or copy.deepcopy(model).eval().requires_grad_(False)
    write_ladder(out, name, entries)
    (out / "run_state.pt").unlink(missing_ok=True)


def _train_rung(
    model: FinPercepRM, anchor: FinPercepRM | None, train: Samples, config: TrainConfig, rung: str, steps: int, state_path: Path
) -> Iterator[StepReport]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    first = _resume(state_path, rung, model, optimiser)
    model.train().to(memory_format=torch.channels_last)
    device = next(model.parameters()).device

    def draw(step: int) -> TripletBatch:
        return training_batch(train, step, batch_size=config.batch_size, crop=config.crop, seed=config.seed)

    with ThreadPoolExecutor(1) as prefetch:
        upcoming = prefetch.submit(draw, first)
        for step in range(first, steps):
            batch = upcoming.result()
            upcoming = prefetch.submit(draw, step + 1)
            for group in optimiser.param_groups:
                group["lr"] = warmup_cosine(step, steps, config.lr)
            losses = triplet_losses(model, anchor, _to(batch, device), config.loss, autocast=config.autocast)
            total = losses["total"]
            if not math.isfinite(total.item()):
                raise TrainingError(f"{rung}, step {step + 1}: loss is {total.item()}; lower the learning rate (now {config.lr})")
            optimiser.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            if (step + 1) % config.save_every == 0:
                state = {"rung": rung, "step": step + 1, "model": model.state_dict(), "optimiser": optimiser.state_dict()}
                save_run_state(state_path, state)
            yield StepReport(rung, step + 1, {name: value.item() for name, value in losses.items()})


def _resume(state_path: Path, rung: str, model: FinPercepRM, optimiser: torch.optim.Optimizer) -> int:
    """Load the run state when it belongs to this rung; returns the 0-based step to go on with."""
    state: dict[str, Any] | None = load_run_state(state_path)
    if state is None or state["rung"] != rung:
        return 0
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def _to(batch: TripletBatch, device: torch.device) -> TripletBatch:
    return TripletBatch(**{name: getattr(batch, name).to(device) for name in TripletBatch.__dataclass_fields__})
