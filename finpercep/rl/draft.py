"""DRaFT-K and AlignProp: the reward's gradient, through the last denoising steps, into the policy.

DRaFT-K (arXiv 2309.17400, §4.2) differentiates the last K steps; AlignProp (arXiv 2310.03739, §4) draws where the differentiated
part begins. Either way there is one cut a trajectory: before it nothing is differentiated, after it everything is, so that the
gradient is that of a function of the state at the cut. Each differentiated step is checkpointed: memory is that of one network
evaluation and K states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from finpercep.reward import RewardFn
from finpercep.rl import ranges
from finpercep.rl.algorithm import Batch, Optimise, Stateless, Trainee, Update
from finpercep.rl.rollout import denoise_to
from finpercep.rl.scoring import finite_rewards, joined_rewards
from finpercep.rl.supervision import add_pretraining
from finpercep.rl.views import seen
from finpercep.sr.policy import Condition, Generators, SRPolicy, seeded_generators


@dataclass(frozen=True)
class DraftConfig:
    """Settings of DRaFT-K and AlignProp.

    Attributes:
        last_steps: K, steps that are differentiated; 1 is DRaFT's usual one. More than there are means all.
        random_cut: draw the step at which the differentiated part begins, as AlignProp does; ``last_steps`` is not used then.
        cut_mean: mean of that step as a share of all steps; AlignProp's N(42, 5) of 50 is 0.84 and 0.1.
        cut_std: its standard deviation as a share of all steps.
        reward_weight: of −r.
        pretraining_weight: weight of the supervised denoising loss on ground truth; what keeps this, the greediest of the
            algorithms, from painting what the reward likes.
        micro_batch: photos differentiated together; None for the whole batch.
        views: ask the reward about a view of the images, drawn anew for every update (`finpercep.rl.views`): a pattern that
            pleases it only on its own pixel grid then gains nothing.
    """

    name: ClassVar[str] = "draft"
    needs_gradient: ClassVar[bool] = True

    last_steps: int = 1
    random_cut: bool = False
    cut_mean: float = 0.84
    cut_std: float = 0.1
    reward_weight: float = 1.0
    pretraining_weight: float = 1.0
    micro_batch: int | None = None
    views: bool = True

    def __post_init__(self) -> None:
        ranges.at_least(self, 1, "last_steps", "micro_batch")
        ranges.unit(self, "cut_mean")
        ranges.at_least(self, 0, "cut_std", "reward_weight", "pretraining_weight")

    def cut(self, num_steps: int, rng: np.random.Generator) -> int:
        """The first differentiated step, in [0, ``num_steps``)."""
        if not self.random_cut:
            return max(0, num_steps - self.last_steps)
        drawn = rng.normal(self.cut_mean * num_steps, self.cut_std * num_steps)
        return int(np.clip(round(drawn), 0, num_steps - 1))

    def build(self, trainee: Trainee) -> Draft:
        """The algorithm."""
        return Draft(trainee, self)


def draft_objective(rewards: torch.Tensor) -> torch.Tensor:
    """L = −1/N·Σ r over those of N images that have a reward."""
    return -torch.where(rewards.isfinite(), rewards, 0.0).mean()


def denoise_from(policy: SRPolicy, x: torch.Tensor, cut: int, condition: Condition, generators: Generators) -> torch.Tensor:
    """x0 from the state ``x`` before step ``cut``, differentiable in ``x`` and the parameters, one checkpoint a step.

    The fresh noise is drawn outside the checkpoints: what is computed again going backward is the same.
    """
    for index in range(cut, policy.num_steps):
        x = checkpoint(policy.transition, x, index, condition, use_reentrant=False).sample(generators)
    return x


class Draft(Stateless):
    """`Algorithm`: DRaFT-K, or AlignProp."""

    def __init__(self, trainee: Trainee, config: DraftConfig) -> None:
        self.policy, self.config, self.world = trainee.policy, config, trainee.world

    def update(self, batch: Batch, reward: RewardFn, rng: np.random.Generator, optimise: Optimise) -> Update:
        """One optimiser step."""
        config, count = self.config, len(batch.lr)
        cut = config.cut(self.policy.num_steps, rng)
        seeds = batch.seeds(rng)
        view = int(rng.integers(2**31)) if config.views else None
        size, scored, total = config.micro_batch or count, [], 0.0
        for start in range(0, count, size):
            part = slice(start, start + size)
            images = self.images(batch.lr[part], cut, seeds[part])
            scored.append(seen(reward, batch.lr[part], self.policy.scale, view)(images))
            loss = config.reward_weight * len(images) / count * draft_objective(scored[-1].reward)
            optimise.backward(loss)
            total += loss.item()
        rewards = finite_rewards(joined_rewards(scored), self.world)
        pretraining = add_pretraining(self.policy, batch, config.pretraining_weight, rng, optimise, config.micro_batch)
        optimise.step()
        without = self.world.total(count - len(rewards.reward))
        figures = {"differentiated steps": self.policy.num_steps - cut, "images without reward": without}
        return Update(rewards, {"reward": total, "pretraining": pretraining}, figures)

    def images(self, lr: torch.Tensor, cut: int, seeds: list[int]) -> torch.Tensor:
        """Sampled images N×3×H×W of ``lr``, differentiable through the steps from ``cut`` on."""
        generators = seeded_generators(seeds)
        with torch.no_grad():
            condition = self.policy.condition(lr)
            x = denoise_to(self.policy, cut, condition, generators)
        return self.policy.decode(denoise_from(self.policy, x, cut, condition, generators), condition)
