"""The fine-tuning loop: an SR policy, a reward that may be anywhere, a rung schedule, a run directory.

Step s draws everything from (seed, s), and the state is saved every few steps, so an interrupted run continues bit for bit (CPU).
Knows nothing about servers: a reward is a `RewardSource`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from finpercep.curriculum.blended_reward import LadderReward
from finpercep.curriculum.optimiser import PolicyOptimiser
from finpercep.curriculum.run_directory import RunDirectory
from finpercep.curriculum.schedule import RungBlend, RungSchedule
from finpercep.errors import ConfigError, RewardRejected, TrainingError
from finpercep.reward import RewardFn, Rewards, RewardSource, RewardWeights, score_with_map
from finpercep.rl.algorithm import AlgorithmConfig, Batch, Trainee, Update
from finpercep.rl.gram import FeatureExtractor
from finpercep.rl.refl import ReflConfig
from finpercep.sr.policy import DrawPair, SRPolicy, weights_of

T = TypeVar("T")


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of `finetune`.

    Attributes:
        algorithm: settings of one of `finpercep.rl.algorithms.ALGORITHMS`.
        steps: optimiser steps in all.
        rung_steps: steps on each rung, RM_0 first; None divides ``steps`` evenly.
        blend_share: share of a rung over which the next one is blended in, in [0, 1).
        batch_size: photos a step.
        crop: side of the HR crop in px.
        lr: AdamW's learning rate. A higher one, or a higher weight of the reward, is hacked sooner.
        max_grad_norm: gradients are clipped to this norm.
        ema: decay of the average of the weights that ``final`` holds, in [0, 1); 0 keeps the last weights themselves.
        save_every: steps between checkpoints.
        seed: decides batches and noise.
        reward: weights of R_k.
    """

    algorithm: AlgorithmConfig = field(default_factory=ReflConfig)
    steps: int = 300
    rung_steps: tuple[int, ...] | None = None
    blend_share: float = 0.25
    batch_size: int = 4
    crop: int = 128
    lr: float = 1e-5
    max_grad_norm: float = 1.0
    ema: float = 0.0
    save_every: int = 25
    seed: int = 0
    reward: RewardWeights = field(default_factory=RewardWeights)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "crop", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.crop % 8:
            raise ConfigError(f"crop must be a multiple of 8, got {self.crop}")
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


@dataclass(frozen=True)
class StepMetrics:
    """One line of ``metrics.jsonl``: 1-based step, the rungs in force, mean rewards of what was scored, the algorithm's own
    losses and figures, the gradient's norm before clipping, seconds.
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
    grad_norm: float
    seconds: float
    reward_seconds: float


def finetune(
    policy: SRPolicy,
    source: RewardSource,
    draw_pair: DrawPair,
    features: FeatureExtractor,
    config: FinetuneConfig,
    run: RunDirectory,
    *,
    described: dict[str, Any] | None = None,
) -> Iterator[StepMetrics]:
    """Fine-tune ``policy`` in place along the rungs of ``source``; ``run.final`` holds it at the end.

    Args:
        policy: the SR model; only its parameters are changed.
        source: the rewards.
        draw_pair: training pairs.
        features: frozen extractor of the Gram term.
        config: settings.
        run: where the run lives; a run already there is continued.
        described: what else belongs into ``config.toml`` (paths, digests).

    Yields:
        The metrics of every step done now.

    Raises:
        RewardError: a reward could not be had; the run can be continued.
        TrainingError: a non-finite loss, or a run directory of another run.
    """
    reward = LadderReward(source, config.reward)
    schedule = config.schedule(len(reward.rungs))
    run.claim({"finetune": config.to_json(), "rungs": list(reward.rungs), **(described or {})})
    algorithm = config.algorithm.build(Trainee(policy, policy.frozen_copy(), features))
    optimiser = PolicyOptimiser(policy, lr=config.lr, max_grad_norm=config.max_grad_norm, ema=config.ema)
    first = 0
    if state := run.load_state():
        policy.load_state_dict(state["policy"])
        optimiser.load_state_dict(state["optimiser"])
        algorithm.load_state_dict(state["algorithm"])
        first = int(state["step"])
    for step in range(first, config.steps):
        started = time.perf_counter()
        blend = schedule.at(step)
        timed = _TimedReward(reward.at(blend))
        rng = np.random.default_rng((config.seed, step))
        try:
            update = algorithm.update(_draw_batch(draw_pair, config.batch_size, rng, policy.device), timed, rng, optimiser)
        except TrainingError as error:
            raise TrainingError(f"step {step + 1}: {error}") from error
        seconds = time.perf_counter() - started
        waited = timed.seconds if update.waited is None else update.waited
        metrics = _metrics(step, reward.rungs, blend, update, optimiser.take_grad_norm(), seconds, waited)
        run.append_metrics(dataclasses.asdict(metrics))
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            state = {"policy": policy.state_dict(), "optimiser": optimiser.state_dict(), "algorithm": algorithm.state_dict()}
            run.save_state({"step": step + 1, **state})
        yield metrics
    if first < config.steps or not (run.final / "policy.json").exists():
        with weights_of(policy, optimiser.average or optimiser.parameters):
            policy.save_pretrained(run.final)


def _draw_batch(draw_pair: DrawPair, size: int, rng: np.random.Generator, device: torch.device) -> Batch:
    hr, lr = (torch.stack(side).to(device) for side in zip(*(draw_pair(rng) for _ in range(size)), strict=True))
    return Batch(hr, lr)


class _TimedReward:
    """A `RewardFn` that counts the seconds spent waiting for it."""

    def __init__(self, reward: RewardFn) -> None:
        self._reward, self.seconds = reward, 0.0

    def __call__(self, images: torch.Tensor) -> Rewards:
        rewards = self._timed(self._reward, images)
        if images.requires_grad and not rewards.reward.requires_grad:
            raise RewardRejected("this reward has no gradient, which refl, rfsr and draft go through; use grpo, ddpo, dpo or nft")
        return rewards

    def with_map(self, images: torch.Tensor) -> tuple[Rewards, torch.Tensor | None]:
        """See `MapRewardFn`."""
        return self._timed(partial(score_with_map, self._reward), images)

    def _timed(self, score: Callable[[torch.Tensor], T], images: torch.Tensor) -> T:
        started = time.perf_counter()
        try:
            return score(images)
        finally:
            self.seconds += time.perf_counter() - started


def _metrics(
    step: int,
    rungs: tuple[str, ...],
    blend: RungBlend,
    update: Update,
    grad_norm: float,
    seconds: float,
    reward_seconds: float,
) -> StepMetrics:
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
        grad_norm=grad_norm,
        seconds=seconds,
        reward_seconds=reward_seconds,
    )
