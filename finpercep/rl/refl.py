"""ReFL: reward feedback learning on one late denoising step (ImageReward, arXiv 2304.05977, §3; the algorithm FinPercep-RM uses).

A no-gradient loop denoises to a late index m; there one network evaluation with gradient predicts x̂0, which is decoded and
scored. Departs from the paper in three ways. The ceiling c is, for each image, the reward of its own ground truth: pushing past
what a clean photo earns is what reward hacking looks like. RFSR's Gram term ties the output to the frozen reference's. And the
reward is asked about random views, so that its pixel grid cannot be fitted. The pretraining loss, missing from the public
release of ReFL, is part of the objective.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from finpercep.reward import RewardFn, Rewards
from finpercep.rl import ranges
from finpercep.rl.algorithm import Batch, Optimise, Stateless, Trainee, Update
from finpercep.rl.gram import gram_distance
from finpercep.rl.rollout import denoise_to
from finpercep.rl.scoring import finite_rewards, require_finite
from finpercep.rl.views import seen
from finpercep.sr.policy import denoising_loss, seeded_generators


@dataclass(frozen=True)
class ReflConfig:
    """Settings of ReFL.

    Attributes:
        window: m is drawn uniformly from the last ``window`` share of the denoising steps, in (0, 1]; the paper's
            30…39 of 40 is 0.25.
        reward_weight: w of the reward term. 1 made a policy with faults to see better, and hacked one without any
            (``docs/evidence.md``).
        pretraining_weight: weight of the supervised denoising loss on ground truth.
        gram_weight: weight of the Gram term; 0 switches it off.
        views: ask the reward about a view of the images, drawn anew for every update (`finpercep.rl.views`): a pattern that
            pleases it only on its own pixel grid then gains nothing.
    """

    name: ClassVar[str] = "refl"
    needs_gradient: ClassVar[bool] = True

    window: float = 0.5
    reward_weight: float = 0.2
    pretraining_weight: float = 1.0
    gram_weight: float = 100.0
    views: bool = True

    def __post_init__(self) -> None:
        ranges.share(self, "window")
        ranges.at_least(self, 0, "reward_weight", "pretraining_weight", "gram_weight")

    def indices(self, num_steps: int) -> range:
        """The denoising indices that may be trained; 0 is the noisiest."""
        return range(num_steps - max(1, round(num_steps * self.window)), num_steps)

    def build(self, trainee: Trainee) -> Refl:
        """The algorithm."""
        return Refl(trainee, self)


@dataclass(frozen=True)
class ReflLosses:
    """The terms of one update, weighted, and their sum; scalars. ``rewards`` are of the trained step's images that have one."""

    reward: torch.Tensor
    pretraining: torch.Tensor
    gram: torch.Tensor
    rewards: Rewards
    ceiling: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """What is minimised."""
        return self.reward + self.pretraining + self.gram


def refl_objective(reward: torch.Tensor, ceiling: torch.Tensor) -> torch.Tensor:
    """L = 1/N·Σ relu(c − r) over the images that have both: pulls rewards (N,) up to their ceilings (N,), and not beyond."""
    gap = ceiling - reward
    return torch.where(gap.isfinite(), F.relu(gap), 0.0).mean()


class Refl(Stateless):
    """`Algorithm`: ReFL."""

    def __init__(self, trainee: Trainee, config: ReflConfig) -> None:
        self.trainee, self.config = trainee, config

    def update(self, batch: Batch, reward: RewardFn, rng: np.random.Generator, optimise: Optimise) -> Update:
        """One optimiser step."""
        losses = self.losses(batch, reward, rng)
        optimise.backward(losses.total)
        optimise.step()
        terms = {name: float(getattr(losses, name).detach()) for name in ("reward", "pretraining", "gram")}
        ceiling = self.trainee.world.gather(losses.ceiling).nanmean()
        return Update(losses.rewards, terms, {"ceiling": ceiling.item()})

    def losses(self, batch: Batch, reward: RewardFn, rng: np.random.Generator) -> ReflLosses:
        """All terms; gradients reach the policy's parameters and nothing else. ``rng`` decides m and all noise."""
        policy, reference, config = self.trainee.policy, self.trainee.reference, self.config
        index = int(rng.choice(np.asarray(config.indices(policy.num_steps))))
        generators = seeded_generators(batch.seeds(rng))
        view = int(rng.integers(2**31)) if config.views else None
        reward = seen(reward, batch.lr, policy.scale, view)
        with torch.no_grad():
            condition = policy.condition(batch.lr)
            x = denoise_to(policy, index, condition, generators)
            ceiling = reward(batch.hr).reward
        image = policy.decode(policy.predict_clean(x, index, condition), condition)
        rewards = reward(image)
        require_finite(ceiling - rewards.reward, self.trainee.world)
        gram = image.new_zeros(())
        if config.gram_weight:
            with torch.no_grad():
                original = reference.decode(reference.predict_clean(x, index, condition), condition)
            gram = gram_distance(self.trainee.features(image), self.trainee.features(original))
        return ReflLosses(
            reward=config.reward_weight * refl_objective(rewards.reward, ceiling),
            pretraining=config.pretraining_weight * denoising_loss(policy, batch.hr, condition, generators),
            gram=config.gram_weight * gram,
            rewards=finite_rewards(rewards, self.trainee.world),
            ceiling=ceiling,
        )
