"""Settings of a fine-tuning run, checked when they are made."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from finpercep.curriculum.controller import AdaptiveConfig, AdaptiveController, Controller, FixedController
from finpercep.curriculum.schedule import RungSchedule
from finpercep.curriculum.watch import MonitorConfig
from finpercep.errors import ConfigError
from finpercep.reward import RewardWeights
from finpercep.rl.algorithm import AlgorithmConfig
from finpercep.rl.groups import GroupConfig
from finpercep.rl.refl import ReflConfig


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of `finetune`.

    Attributes:
        algorithm: settings of one of `finpercep.rl.algorithms.ALGORITHMS`.
        steps: optimiser steps in all.
        rungs: the reward's rungs to use, in this order; None for all.
        rung_steps: steps on each rung, RM_0 first; None divides ``steps`` evenly.
        blend_share: share of a rung over which the next one is blended in, in [0, 1).
        match_scales: put each rung on the reward scale of the one before it where it is first used.
        show_lr: show the reward the LR pictures beside the images, on rungs that take them; others are not told.
        batch_size: photos a step.
        crop: side of the HR crop in px.
        degradation: what makes LR of the photos: ``light``, slight blur and noise, as the packaged SR model was trained;
            ``blind``, Real-ESRGAN's second-order model, as most published ones were.
        lr: AdamW's learning rate. A higher one, or a higher weight of the reward, is hacked sooner.
        max_grad_norm: gradients are clipped to this norm.
        ema: decay of the average of the weights that ``final`` holds, in [0, 1); 0 keeps the last weights themselves.
        save_every: steps between checkpoints.
        snapshot_every: steps between pictures of a few fixed crops in ``images``; None for as often as the monitor looks, or a
            tenth of the run; 0 for none.
        seed: decides batches and noise.
        reward: weights of R_k.
        curriculum: ``fixed`` keeps to ``rung_steps``; ``adaptive`` decides by itself when to change rung.
        adaptive: settings of the adaptive curriculum.
        monitor: settings of the hacking monitor.
    """

    algorithm: AlgorithmConfig = field(default_factory=ReflConfig)
    steps: int = 300
    rungs: tuple[str, ...] | None = None
    rung_steps: tuple[int, ...] | None = None
    blend_share: float = 0.25
    match_scales: bool = True
    show_lr: bool = False
    batch_size: int = 4
    crop: int = 128
    degradation: Literal["light", "blind"] = "light"
    lr: float = 1e-5
    max_grad_norm: float = 1.0
    ema: float = 0.0
    save_every: int = 25
    snapshot_every: int | None = None
    seed: int = 0
    reward: RewardWeights = field(default_factory=RewardWeights)
    curriculum: Literal["fixed", "adaptive"] = "fixed"
    adaptive: AdaptiveConfig = field(default_factory=AdaptiveConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "crop", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if isinstance(self.algorithm, GroupConfig) and self.algorithm.group_size * self.batch_size < 2:
            raise ConfigError(
                f"{self.algorithm.name} compares samples, and one photo a step with group_size 1 is one alone; "
                "set batch_size or group_size to at least 2"
            )
        if self.snapshot_every is not None and self.snapshot_every < 0:
            raise ConfigError(f"snapshot_every must be >= 0, got {self.snapshot_every}")
        for name in ("lr", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if self.seed < 0:
            raise ConfigError(f"seed must not be negative, got {self.seed}")
        if self.rung_steps is not None and self.curriculum == "adaptive":
            raise ConfigError("rung_steps is of curriculum fixed; adaptive decides by itself")
        if self.crop % 8:
            raise ConfigError(f"crop must be a multiple of 8, got {self.crop}")
        if self.degradation not in ("light", "blind"):
            raise ConfigError(f"degradation must be light or blind, got {self.degradation!r}")
        if self.curriculum not in ("fixed", "adaptive"):
            raise ConfigError(f"curriculum must be fixed or adaptive, got {self.curriculum!r}")
        for name in ("blend_share", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie in [0, 1), got {getattr(self, name)}")

    def to_json(self) -> dict[str, Any]:
        """All settings, the algorithm's under its name."""
        plain = dataclasses.asdict(self)
        settings = plain.pop("algorithm")
        return {**plain, "algorithm": self.algorithm.name, self.algorithm.name: settings}

    def schedule(self, rungs: int) -> RungSchedule:
        """The schedule over a ladder of ``rungs`` rungs."""
        if self.rung_steps is None:
            return RungSchedule.even(self.steps, rungs, self.blend_share)
        if len(self.rung_steps) != rungs or sum(self.rung_steps) != self.steps:
            raise ConfigError(f"rung_steps must name {rungs} rungs and sum to {self.steps} steps, got {self.rung_steps}")
        return RungSchedule(self.rung_steps, int(min(self.rung_steps) * self.blend_share))

    def controller(self, rungs: int) -> Controller:
        """What decides the rung of every step."""
        if self.curriculum == "adaptive":
            return AdaptiveController(rungs, self.adaptive)
        return FixedController(self.schedule(rungs))
