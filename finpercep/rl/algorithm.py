"""What every fine-tuning algorithm is: one update from a batch of photos, a reward and a generator.

An algorithm decides what is sampled, scored and minimised. The loop around it owns the optimiser, the schedule and the disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from finpercep.reward import RewardFn, Rewards
from finpercep.rl.gram import FeatureExtractor
from finpercep.rl.world import ALONE, World
from finpercep.sr.policy import SRPolicy


@dataclass(frozen=True)
class Batch:
    """Photos on the policy's device; of several processes, this one's share of the batch.

    Attributes:
        hr: (N, 3, H, W) float32 RGB in [0, 1].
        lr: its LR images (N, 3, h, w).
        first: place of the first of them in the whole batch.
        total: photos of the whole batch; None for these alone.
    """

    hr: torch.Tensor
    lr: torch.Tensor
    first: int = 0
    total: int | None = None

    def seeds(self, rng: np.random.Generator, *shape: int) -> list[Any]:
        """A seed for each of these photos, or an array of ``shape``; drawn for the whole batch, whoever has the rest of it."""
        count = len(self.lr)
        drawn = rng.integers(2**31, size=(self.total or count, *shape))
        found: list[Any] = drawn[self.first : self.first + count].tolist()
        return found


@dataclass(frozen=True)
class Trainee:
    """The trained policy, its frozen reference, the frozen extractor of the Gram term, and the processes that train together."""

    policy: SRPolicy
    reference: SRPolicy
    features: FeatureExtractor
    world: World = ALONE


class Optimise(Protocol):
    """How an algorithm changes weights: gradients add up until a step is taken, and are then averaged over the processes.

    A loss is therefore a mean over this process's share of the batch, and every process takes every step.
    """

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a scalar loss. Raises `TrainingError` when it is not finite."""
        ...

    def step(self) -> None:
        """Clip what has added up, change the weights, start again from zero."""
        ...


@dataclass(frozen=True)
class Update:
    """What one update did, for the log.

    Attributes:
        rewards: of the images it scored, in any order.
        losses: weighted terms of what was minimised, by name.
        figures: what else is worth watching: ceilings, clipped shares, KL. Of these and the losses, the mean over the processes
            is that of the whole batch; a count is that of all of them.
        waited: seconds it stood still for rewards, where it does something else meanwhile; None where it waits for every one.
    """

    rewards: Rewards
    losses: Mapping[str, float]
    figures: Mapping[str, float] = field(default_factory=dict)
    waited: float | None = None


class Algorithm(Protocol):
    """One fine-tuning algorithm at work on one policy."""

    def update(self, batch: Batch, reward: RewardFn, rng: np.random.Generator, optimise: Optimise) -> Update:
        """Sample, score and take one or more optimiser steps; all randomness comes from ``rng``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What must survive an interruption beside the policy's weights; tensors and plain data."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set it."""
        ...


class AlgorithmConfig(Protocol):
    """Settings of an algorithm: a frozen dataclass that checks itself and builds the algorithm.

    Attributes:
        name: of the algorithm, on the command line and in a run's config.
        needs_gradient: its gradient goes through the reward, so the reward must be differentiable.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]
    needs_gradient: ClassVar[bool]

    def build(self, trainee: Trainee) -> Algorithm:
        """The algorithm. Raises `ConfigError` when the policy cannot be trained by it."""
        ...


class Stateless:
    """An algorithm that remembers nothing from step to step."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""
