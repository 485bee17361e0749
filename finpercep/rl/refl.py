"""ReFL: reward feedback learning on one late denoising step (ImageReward, arXiv 2304.05977, §3; the algorithm FinPercep-RM uses).

A no-gradient loop denoises to a late index m; there one network evaluation with gradient predicts x̂0, which is decoded and
scored. Departs from the paper in two ways. The ceiling c is, for each image, the reward of its own ground truth: pushing past
what a clean photo earns is what reward hacking looks like. And RFSR's Gram term ties the output to the frozen reference's.
The pretraining loss, missing from the public release of ReFL, is part of the objective.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from finpercep.errors import ConfigError
from finpercep.reward import RewardFn, Rewards
from finpercep.rl.gram import FeatureExtractor, gram_distance
from finpercep.sr.policy import SRPolicy, seeded_generators


@dataclass(frozen=True)
class ReflConfig:
    """Settings of ReFL.

    Attributes:
        window: m is drawn uniformly from the last ``window`` share of the denoising steps, in (0, 1]; the paper's
            30…39 of 40 is 0.25.
        reward_weight: w of the reward term. At 1 the held-out panel fell within 120 steps of `finpercep demo`, at the
            default it held (README).
        pretraining_weight: weight of the supervised denoising loss on ground truth.
        gram_weight: weight of the Gram term; 0 switches it off.
    """

    window: float = 0.5
    reward_weight: float = 0.2
    pretraining_weight: float = 1.0
    gram_weight: float = 100.0

    def __post_init__(self) -> None:
        if not 0 < self.window <= 1:
            raise ConfigError(f"refl window must lie in (0, 1], got {self.window}")
        for name in ("reward_weight", "pretraining_weight", "gram_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"refl {name} must be finite and >= 0, got {getattr(self, name)}")

    def indices(self, num_steps: int) -> range:
        """The denoising indices that may be trained; 0 is the noisiest."""
        return range(num_steps - max(1, round(num_steps * self.window)), num_steps)


@dataclass(frozen=True)
class ReflLosses:
    """The terms of one update, weighted, and their sum; scalars. ``rewards`` are those of the trained step's images."""

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
    """L = mean relu(c − r): pulls rewards (N,) up to their ceilings (N,), and not beyond."""
    return F.relu(ceiling - reward).mean()


def refl_losses(
    policy: SRPolicy,
    reference: SRPolicy,
    reward_fn: RewardFn,
    features: FeatureExtractor,
    hr: torch.Tensor,
    lr: torch.Tensor,
    config: ReflConfig,
    rng: np.random.Generator,
) -> ReflLosses:
    """All terms of one update on a batch; gradients reach the policy's parameters and nothing else.

    Args:
        policy: the trained model.
        reference: its frozen copy.
        reward_fn: the reward, local or remote.
        features: frozen extractor of the Gram term.
        hr: ground truth (N, 3, H, W) in [0, 1].
        lr: its LR images.
        config: settings.
        rng: decides m and all noise.
    """
    index = int(rng.choice(np.asarray(config.indices(policy.num_steps))))
    generators = seeded_generators(rng.integers(2**31, size=len(hr)).tolist())
    with torch.no_grad():
        condition = policy.condition(lr)
        x = policy.initial_state(condition, generators)
        for earlier in range(index):
            x = policy.step(x, earlier, condition, generators)
        reference_image = reference.decode(reference.predict_clean(x, index, condition), condition)
        ceiling = reward_fn(hr).reward
    image = policy.decode(policy.predict_clean(x, index, condition), condition)
    rewards = reward_fn(image)
    return ReflLosses(
        reward=config.reward_weight * refl_objective(rewards.reward, ceiling),
        pretraining=config.pretraining_weight * policy.denoising_loss(hr, lr, generators),
        gram=config.gram_weight * gram_distance(features(image), features(reference_image))
        if config.gram_weight
        else hr.new_zeros(()),
        rewards=rewards,
        ceiling=ceiling,
    )
