"""RFSR: reward feedback that knows the timestep (arXiv 2412.03268; method §6).

One denoising index is drawn; one network evaluation with gradient predicts x̂0 there. Early, its coarse structure is held to the
photo's; late, its reward is raised and its Gram matrices are held to the frozen reference's; in between nothing is trained, so
no index is drawn there. Departs from the authors' release in the state the network is shown: a proper denoising loop runs down
to the index. Theirs shows the starting state at every index; ``loop="one-shot"`` does too. And the reward is asked about views.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from finpercep.errors import ConfigError
from finpercep.reward import RewardFn, Rewards
from finpercep.rl import ranges
from finpercep.rl.algorithm import Batch, Optimise, Stateless, Trainee, Update
from finpercep.rl.gram import gram_distance
from finpercep.rl.low_frequency import low_frequency_distance
from finpercep.rl.refl import refl_objective
from finpercep.rl.rollout import denoise_to
from finpercep.rl.scoring import finite_rewards, require_finite
from finpercep.rl.vgg import LAYER_WEIGHTS, Vgg19Features
from finpercep.rl.views import seen
from finpercep.sr.policy import Condition, denoising_loss, seeded_generators


@dataclass(frozen=True)
class RfsrConfig:
    """Settings of RFSR. Its weights are the authors'; AdamW follows their ratios, and hardly their size.

    Attributes:
        early: share of the denoising steps, the noisiest, with the low-frequency constraint; 0…19 of 50 is 0.4. Too long blurs.
        late: share, the last, with reward feedback; 40…49 of 50 is 0.2. Too long stylises.
        loop: ``denoise`` down to the index, or show the starting state there (``one-shot``).
        low_frequency_weight: of the L1 between low-pass bands.
        reward_weight: of relu(ceiling − r); 5e-6 for ImageReward, 5e-5 for a reward in [0, 1].
        ceiling: reward beyond which nothing is gained: a number, or ``clean``, for each image what its own photo earns.
        gram_weight: of the L1 between Gram matrices of the policy's and the reference's output; VGG19's layers are weighted as in
            the paper, those of any other extractor alike.
        pretraining_weight: weight of the supervised denoising loss on ground truth; the authors have none. It is of the order
            of 1: beside it the other weights want to be larger.
        views: ask the reward about a view of the images, drawn anew for every update (`finpercep.rl.views`): a pattern that
            pleases it only on its own pixel grid then gains nothing.
    """

    name: ClassVar[str] = "rfsr"
    needs_gradient: ClassVar[bool] = True

    early: float = 0.4
    late: float = 0.2
    loop: Literal["denoise", "one-shot"] = "denoise"
    low_frequency_weight: float = 5e-4
    reward_weight: float = 5e-5
    ceiling: float | Literal["clean"] = 2.0
    gram_weight: float = 5e-7
    pretraining_weight: float = 0.0
    views: bool = True

    def __post_init__(self) -> None:
        ranges.unit(self, "early", "late")
        ranges.one_of(self, "loop", "denoise", "one-shot")
        ranges.at_least(self, 0, "low_frequency_weight", "reward_weight", "gram_weight", "pretraining_weight")
        if self.early + self.late > 1:
            raise ConfigError(f"rfsr early and late must not overlap, got {self.early} and {self.late}")
        if not (self.ceiling == "clean" or (isinstance(self.ceiling, (int, float)) and math.isfinite(self.ceiling))):
            raise ranges.refusal(self, "ceiling", "be a finite number or clean")

    def late_window(self, num_steps: int) -> range:
        """Indices of ``num_steps`` with reward feedback: the last one at least, unless ``late`` is 0."""
        first = min(round(num_steps * (1 - self.late)), num_steps - (self.late > 0))
        return range(first, num_steps)

    def early_window(self, num_steps: int) -> range:
        """Indices with the low-frequency constraint; none where a policy has too few steps for both windows."""
        return range(min(round(num_steps * self.early), self.late_window(num_steps).start))

    def build(self, trainee: Trainee) -> Rfsr:
        """The algorithm. Raises `ConfigError` when no index would be trained."""
        return Rfsr(trainee, self)


@dataclass(frozen=True)
class RfsrLosses:
    """The terms of one update, weighted, and their sum; scalars, 0 where they are not active."""

    low_frequency: torch.Tensor
    reward: torch.Tensor
    gram: torch.Tensor
    pretraining: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """What is minimised."""
        return self.low_frequency + self.reward + self.gram + self.pretraining


class Rfsr(Stateless):
    """`Algorithm`: RFSR."""

    def __init__(self, trainee: Trainee, config: RfsrConfig) -> None:
        self.trainee, self.config = trainee, config
        self.layer_weights = LAYER_WEIGHTS if isinstance(trainee.features, Vgg19Features) else None
        steps = trainee.policy.num_steps
        self.early, self.late = config.early_window(steps), config.late_window(steps)
        if not (*self.early, *self.late):
            raise ConfigError(f"rfsr has no index to train with early {config.early} and late {config.late} of {steps} steps")

    def update(self, batch: Batch, reward: RewardFn, rng: np.random.Generator, optimise: Optimise) -> Update:
        """One optimiser step, at an index drawn uniformly from both windows."""
        index = int(rng.choice(np.asarray([*self.early, *self.late])))
        losses, rewards = self.losses(batch, reward, index, rng)
        optimise.backward(losses.total)
        optimise.step()
        terms = ("low_frequency", "reward", "gram", "pretraining")
        return Update(rewards, {name: float(getattr(losses, name).detach()) for name in terms}, {"index": index})

    def losses(self, batch: Batch, reward: RewardFn, index: int, rng: np.random.Generator) -> tuple[RfsrLosses, Rewards]:
        """The terms at ``index``, and the rewards of what was predicted there; ``rng`` decides all noise."""
        policy, config = self.trainee.policy, self.config
        generators = seeded_generators(batch.seeds(rng))
        view = int(rng.integers(2**31)) if config.views else None
        reward = seen(reward, batch.lr, policy.scale, view)
        with torch.no_grad():
            condition = policy.condition(batch.lr)
            start = index if config.loop == "denoise" else 0
            x = denoise_to(policy, start, condition, generators)
        image = policy.decode(policy.predict_clean(x, index, condition), condition)
        zero = image.new_zeros(())
        low_frequency, raised, gram, pretraining = zero, zero, zero, zero
        if index in self.late:
            rewards = reward(image)
            raised = self._reward_term(rewards, batch, reward)
            gram = self._gram_term(image, x, index, condition)
        else:
            with torch.no_grad():  # for the log alone
                rewards = reward(image.detach())
        if index in self.early:
            low_frequency = config.low_frequency_weight * low_frequency_distance(image, batch.hr)
        if config.pretraining_weight:
            pretraining = config.pretraining_weight * denoising_loss(policy, batch.hr, condition, generators)
        return RfsrLosses(low_frequency, raised, gram, pretraining), finite_rewards(rewards, self.trainee.world)

    def _reward_term(self, rewards: Rewards, batch: Batch, reward: RewardFn) -> torch.Tensor:
        """Over the images that have a reward. Raises `RewardError` when none has."""
        ceiling = torch.full_like(rewards.reward, 0.0 if self.config.ceiling == "clean" else self.config.ceiling)
        if self.config.ceiling == "clean":
            with torch.no_grad():
                ceiling = reward(batch.hr).reward
        require_finite(ceiling - rewards.reward, self.trainee.world)
        return self.config.reward_weight * refl_objective(rewards.reward, ceiling)

    def _gram_term(self, image: torch.Tensor, x: torch.Tensor, index: int, condition: Condition) -> torch.Tensor:
        if not self.config.gram_weight:
            return image.new_zeros(())
        reference = self.trainee.reference
        with torch.no_grad():
            original = self.trainee.features(reference.decode(reference.predict_clean(x, index, condition), condition))
        return self.config.gram_weight * gram_distance(self.trainee.features(image), original, self.layer_weights)
