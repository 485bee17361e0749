"""Supervised pretraining of the packaged diffusion SR model on photos.

Photos and the degradation come in as a function, `draw_pair`, so this module knows nothing about files or recipes.
Step s draws its batch from (seed, s) alone, so an interrupted run continues exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.training_utils import EMAModel

from finpercep.errors import ConfigError, TrainingError
from finpercep.sr.policy import DrawPair, denoising_loss, seeded_generators
from finpercep.sr.tiny import SNAPSHOTS, TinyDiffusionSR
from finpercep.training.learning_rate import warmup_cosine
from finpercep.training.run_state import load_run_state, save_run_state


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of `pretrain`.

    Attributes:
        steps: optimiser steps.
        batch_size: crops a step.
        crop: side of the HR crop in px, a multiple of 8.
        lr: peak learning rate of AdamW (warm-up, then cosine).
        ema: decay of the weight average that is kept.
        save_every: steps between run states; the last step has one too.
        seed: decides batches and noise.
        snapshots: steps after which the model is kept as it is then, in ``snapshots/STEP``: an SR model with faults of its own.
    """

    steps: int = 4000
    batch_size: int = 8
    crop: int = 96
    lr: float = 6e-4
    ema: float = 0.999
    save_every: int = 200
    seed: int = 0
    snapshots: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.save_every) < 1:
            raise ConfigError(
                f"steps, batch_size and save_every must be positive, got {self.steps}, {self.batch_size}, {self.save_every}"
            )
        if self.crop < 8 or self.crop % 8:
            raise ConfigError(f"crop must be a positive multiple of 8, got {self.crop}")


@dataclass(frozen=True)
class PretrainProgress:
    """State after a step: the step number (1-based) and its loss."""

    step: int
    loss: float


def pretrain(policy: TinyDiffusionSR, draw_pair: DrawPair, config: PretrainConfig, out: Path) -> Iterator[PretrainProgress]:
    """Train ``policy`` in place; at the end it holds the averaged weights and ``out`` holds them as a policy folder.

    Yields:
        Progress after every step.

    Raises:
        TrainingError: a non-finite loss.
    """
    optimiser = torch.optim.AdamW(policy.parameters(), lr=config.lr, weight_decay=1e-2)
    ema = EMAModel(policy.parameters(), decay=config.ema, use_ema_warmup=True, power=0.75)
    state_path = out / "run_state.pt"
    first = 0
    if state := load_run_state(state_path):
        policy.load_state_dict(state["policy"])
        optimiser.load_state_dict(state["optimiser"])
        ema.load_state_dict(state["ema"])
        ema.to(policy.device)
        first = state["step"]
    policy.train()
    with ThreadPoolExecutor(1) as prefetch:
        upcoming = prefetch.submit(_draw_batch, draw_pair, config, first)
        for step in range(first, config.steps):
            hr, lr = upcoming.result()
            upcoming = prefetch.submit(_draw_batch, draw_pair, config, step + 1)
            for group in optimiser.param_groups:
                group["lr"] = warmup_cosine(step, config.steps, config.lr)
            loss = _loss(policy, hr.to(policy.device), lr.to(policy.device), _noise_seeds(config, step))
            if not math.isfinite(loss.item()):
                raise TrainingError(f"step {step + 1}: loss is {loss.item()}; lower the learning rate (now {config.lr})")
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimiser.step()
            ema.step(policy.parameters())
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                state = {
                    "policy": policy.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "ema": ema.state_dict(),
                    "step": step + 1,
                }
                save_run_state(state_path, state)
            if step + 1 in config.snapshots:
                policy.frozen_copy().save_pretrained(out / SNAPSHOTS / f"{step + 1:05d}", half=True)
            yield PretrainProgress(step + 1, loss.item())
    ema.copy_to(policy.parameters())
    policy.train(False)
    policy.save_pretrained(out, half=True)


def _loss(policy: TinyDiffusionSR, hr: torch.Tensor, lr: torch.Tensor, seeds: list[int]) -> torch.Tensor:
    return denoising_loss(policy, hr, policy.condition(lr), seeded_generators(seeds))


def measure_residual_std(policy: TinyDiffusionSR, draw_pair: DrawPair, seed: int, pairs: int = 64) -> float:
    """Standard deviation of (photo − bicubic), in [0, 1] units, over ``pairs`` drawn crops."""
    rng = np.random.default_rng((seed, 2**31))
    drawn = [draw_pair(rng) for _ in range(pairs)]
    hr, lr = (torch.stack(side) for side in zip(*drawn, strict=True))
    return float((policy.encode(hr, policy.condition(lr)) * policy.residual_std).std())


def _draw_batch(draw_pair: DrawPair, config: PretrainConfig, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng((config.seed, step))
    hr, lr = zip(*(draw_pair(rng) for _ in range(config.batch_size)), strict=True)
    return torch.stack(hr), torch.stack(lr)


def _noise_seeds(config: PretrainConfig, step: int) -> list[int]:
    return [int(s) for s in np.random.SeedSequence((config.seed, step, 1)).generate_state(config.batch_size)]
