"""Scoring beside sampling: a reward is asked on a thread of its own while the policy goes on.

What is scored, and in which order, does not depend on timing, so the results do not either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch

from finpercep.errors import RewardError
from finpercep.reward import RewardFn, Rewards, beside, score_with_map
from finpercep.rl.world import ALONE, World

NUMBERS = ("reward", "score", "max_degradation", "mean_degradation")


@dataclass(frozen=True)
class Scored:
    """Rewards of n images, and their maps (n, H, W) where they were asked for and the rung has one."""

    rewards: Rewards
    maps: torch.Tensor | None = None


class Scorer:
    """Asks a reward, without gradient, on one thread of its own; a context manager.

    Args:
        reward: what is asked; with ``maps`` a `MapRewardFn`.
        maps: whether maps are wanted.
        overlap: whether `submit` returns before the answer is there.

    Attributes:
        waited: seconds the caller stood still for answers.
    """

    def __init__(self, reward: RewardFn, *, maps: bool = False, overlap: bool = True) -> None:
        self._reward, self._maps, self._overlap = reward, maps, overlap
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self.waited = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def submit(self, images: torch.Tensor, lr: torch.Tensor) -> Callable[[], Scored]:
        """Have N×3×H×W images in [0, 1], made from ``lr``, scored; what is returned gives the answer, or raises."""
        future = self._thread.submit(self._score, images, lr)
        if not self._overlap:
            self._wait(future)
        return lambda: self._wait(future)

    def _wait(self, future: Future[Scored]) -> Scored:
        started = time.perf_counter()
        try:
            return future.result()
        finally:
            self.waited += time.perf_counter() - started

    @torch.no_grad()
    def _score(self, images: torch.Tensor, lr: torch.Tensor) -> Scored:
        reward = beside(self._reward, lr)
        return Scored(*score_with_map(reward, images)) if self._maps else Scored(reward(images))


def joined_rewards(each: Sequence[Rewards]) -> Rewards:
    """The rewards of several batches as one's; all have the same parts."""
    numbers = {name: torch.cat([getattr(one, name) for one in each]) for name in NUMBERS}
    return Rewards(**numbers, parts={part: torch.cat([one.parts[part] for one in each]) for part in each[0].parts})


def gathered_rewards(rewards: Rewards, world: World) -> Rewards:
    """Those of every process, in order of rank; without gradient."""
    numbers = {name: world.gather(getattr(rewards, name).detach()) for name in NUMBERS}
    return Rewards(**numbers, parts={part: world.gather(values) for part, values in rewards.parts.items()})


def require_finite(values: torch.Tensor, world: World) -> None:
    """Raises `RewardError` when no image of any process has a number among ``values`` (N,)."""
    if not world.total(float(values.isfinite().sum())):
        raise RewardError(f"none of {len(values)} images has a finite reward")


def finite_rewards(rewards: Rewards, world: World = ALONE) -> Rewards:
    """The rewards of the images that have one; none, where only other processes' images have.

    Raises:
        RewardError: no image of any process has.
    """
    require_finite(rewards.reward, world)
    kept = rewards.reward.isfinite()
    numbers = {name: getattr(rewards, name)[kept] for name in NUMBERS}
    return Rewards(**numbers, parts={part: values[kept] for part, values in rewards.parts.items()})
