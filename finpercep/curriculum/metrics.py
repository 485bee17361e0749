"""What a step of a run is worth writing down."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from finpercep.curriculum.schedule import RungBlend
from finpercep.errors import RewardRejected
from finpercep.reward import RewardFn, Rewards, beside, score_with_map
from finpercep.rl.algorithm import Update
from finpercep.rl.algorithms import ALGORITHMS

T = TypeVar("T")


@dataclass(frozen=True)
class StepMetrics:
    """One line of ``metrics.jsonl``: 1-based step, the rungs in force, mean rewards of what was scored, the algorithm's own
    losses and figures, the learning rate, the gradient's norm before clipping, seconds; where there was one, the monitor's
    verdict, the controller's decision with its reasons, and what came of a rung's refresh before the step.
    """

    step: int
    rung: str
    next_rung: str | None
    blend: float
    reward: float
    reward_std: float
    score: float
    max_degradation: float
    mean_degradation: float
    losses: dict[str, float]
    figures: dict[str, float]
    lr: float
    grad_norm: float
    seconds: float
    reward_seconds: float
    verdict: dict[str, Any] | None = None
    decision: dict[str, Any] | None = None
    refreshed: str | None = None


class TimedReward:
    """A `MapRewardFn` that counts the seconds spent waiting for it.

    Args:
        reward: what is asked.
        shows_lr: whether it is shown LR pictures (`LRRewardFn`), or what offers them is told that it need not.
    """

    def __init__(self, reward: RewardFn, *, shows_lr: bool = False) -> None:
        self._reward, self._shows_lr, self._waits = reward, shows_lr, list[float]()

    @property
    def seconds(self) -> float:
        """All waiting so far."""
        return sum(self._waits)

    def beside(self, lr: torch.Tensor) -> RewardFn:
        """See `LRRewardFn`; its waiting is counted here."""
        if not self._shows_lr:
            return self
        shown = TimedReward(beside(self._reward, lr))
        shown._waits = self._waits
        return shown

    def __call__(self, images: torch.Tensor) -> Rewards:
        """See `RewardFn`. Raises `RewardRejected` when a gradient is needed and the reward has none."""
        rewards = self._timed(self._reward, images)
        if images.requires_grad and not rewards.reward.requires_grad:
            names = ", ".join(name for name, kind in ALGORITHMS.items() if not kind.needs_gradient)
            raise RewardRejected(f"this reward has no gradient, which the algorithm goes through; use one of {names}")
        return rewards

    def with_map(self, images: torch.Tensor) -> tuple[Rewards, torch.Tensor | None]:
        """See `MapRewardFn`."""
        return self._timed(partial(score_with_map, self._reward), images)

    def _timed(self, score: Callable[[torch.Tensor], T], images: torch.Tensor) -> T:
        started = time.perf_counter()
        try:
            return score(images)
        finally:
            self._waits.append(time.perf_counter() - started)


def step_metrics(
    step: int,
    rungs: tuple[str, ...],
    blend: RungBlend,
    update: Update,
    lr: float,
    grad_norm: float,
    seconds: float,
    reward_seconds: float,
) -> StepMetrics:
    """The line of a 0-based step."""
    rewards = update.rewards
    return StepMetrics(
        step=step + 1,
        rung=rungs[blend.rung],
        next_rung=None if blend.next is None else rungs[blend.next],
        blend=blend.weight,
        reward=rewards.reward.mean().item(),
        reward_std=rewards.reward.std(correction=0).item(),
        score=rewards.score.mean().item(),
        max_degradation=rewards.max_degradation.mean().item(),
        mean_degradation=rewards.mean_degradation.mean().item(),
        losses=dict(update.losses),
        figures={**update.figures, **{f"reward {name}": part.mean().item() for name, part in rewards.parts.items()}},
        lr=lr,
        grad_norm=grad_norm,
        seconds=seconds,
        reward_seconds=reward_seconds,
    )
