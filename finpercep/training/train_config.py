"""The settings of ladder training: everything that decides the weights, and nothing that does not (devices, loader threads)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from finpercep.errors import ConfigError
from finpercep.reward_model.ladder import LadderConfig
from finpercep.training.attack import AttackConfig
from finpercep.training.objective import LossWeights

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `train_ladder`.

    Attributes:
        ladder: the rungs.
        steps: optimiser steps for each rung, RM_0 first; fewer where ``patience`` runs out.
        batch_size: triplets a step, of all processes together; each takes an equal share.
        crop: side of the random crop in px.
        lr_known: share of the samples whose LR picture a model with LR input may see; the others teach it to do without.
        lr: peak learning rate of AdamW (warm-up over 5 % of a rung's steps, then cosine to a hundredth).
        weight_decay: AdamW's.
        clip: largest norm of the gradient; a longer one is scaled down to it.
        ema: decay of the average of the weights that is judged and stored, with warm-up, so that short runs forget their start
            too (`averaging`); 0 stores the last weights themselves.
        precision: of the convolutions: fp32, bf16 (CPU and GPU), or fp16 with a scaled loss (GPU only). Weights are float32.
        validate_every: steps between looks at the validation split; the last step has one too.
        validate_samples: samples of a look, spread evenly over the split. The finished rung is measured on up to 400.
        patience: a rung ends after this many steps without a better validation figure (`selection`); 0: it never does.
        loss: weights and margins.
        attack: adversarial training; off by default.
        pretrained_encoder: start RM_0's encoder from timm's weights (may need a download), or from a file of them.
        save_every: steps between run states: at most that much is done again after an interruption.
        half: store the rungs' weights in float16.
        seed: decides weights, batches and augmentations.
    """

    ladder: LadderConfig = field(default_factory=LadderConfig)
    steps: tuple[int, ...] = (300, 300, 600)
    batch_size: int = 16
    crop: int = 128
    lr_known: float = 0.5
    lr: float = 1e-3
    weight_decay: float = 1e-2
    clip: float = 1.0
    ema: float = 0.999
    precision: Precision = "fp32"
    validate_every: int = 100
    validate_samples: int = 64
    patience: int = 0
    loss: LossWeights = field(default_factory=LossWeights)
    attack: AttackConfig = field(default_factory=AttackConfig)
    pretrained_encoder: bool | str = False
    save_every: int = 100
    half: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        rungs = len(self.ladder.map_strides) + 1
        if len(self.steps) != rungs or min(self.steps) < 1:
            raise ConfigError(f"steps must name a positive count for each of the {rungs} rungs, got {self.steps}")
        self.ladder.rungs()  # what a rung cannot be is said now
        for name in ("lr", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be finite and not negative, got {getattr(self, name)}")
        for name in ("batch_size", "validate_every", "validate_samples", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.precision not in get_args(Precision):
            raise ConfigError(f"precision must be one of {get_args(Precision)}, got {self.precision!r}")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema must lie in [0, 1), got {self.ema}")
        if not 0 <= self.lr_known <= 1:
            raise ConfigError(f"lr_known must lie in [0, 1], got {self.lr_known}")
        if not self.clip > 0:
            raise ConfigError(f"clip must be positive, got {self.clip}")
        for name in ("patience", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")

    def rung_steps(self) -> dict[str, int]:
        """Steps of each rung by name, RM_0 first."""
        return dict(zip((rung for rung, _ in self.ladder.rungs()), self.steps, strict=True))
