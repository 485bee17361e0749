"""Several samples of each photo, scored: what every algorithm that compares samples starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from finpercep.errors import ConfigError, RewardError
from finpercep.reward import RewardFn, Rewards
from finpercep.rl import ranges
from finpercep.rl.algorithm import Batch
from finpercep.rl.rollout import Trajectory, sample_trajectory, stochastic_indices
from finpercep.rl.scoring import Scored, Scorer, finite_rewards, joined_rewards
from finpercep.rl.world import World
from finpercep.sr.policy import SRPolicy, seeded_generators
from finpercep.sr.transition import NoiseForm, Sampler


@dataclass(frozen=True)
class GroupConfig:
    """Settings of every algorithm that compares samples of one photo.

    Attributes:
        group_size: K, samples of each photo; 8 to 24.
        micro_batch: samples that go through the network together, in sampling and in training alike; None for a whole group.
            What does not fit in memory is set here.
        num_steps: denoising steps of a sample in training; None for the policy's own. Flow-GRPO trains with 10 of 40.
        noise: form of a step in training, ``ddim``, ``flow-grpo`` or ``dance``; None for the policy's own.
        eta: fresh noise of a step in training; None for the policy's own. Flow-GRPO 0.7, DanceGRPO 0.3, DDPO 1.
        shared_noise: whether the samples of a photo start from the same noise (DanceGRPO does).
        pretraining_weight: weight of the supervised denoising loss on ground truth.
        overlap: whether the next photo's samples are drawn while the last one's are scored; the results are the same.
    """

    name: ClassVar[str]
    needs_gradient: ClassVar[bool] = False
    smallest_group: ClassVar[int] = 2

    group_size: int = 8
    micro_batch: int | None = None
    num_steps: int | None = None
    noise: NoiseForm | None = None
    eta: float | None = None
    shared_noise: bool = False
    pretraining_weight: float = 0.0
    overlap: bool = True

    def __post_init__(self) -> None:
        ranges.at_least(self, self.smallest_group, "group_size")
        ranges.at_least(self, 1, "micro_batch", "num_steps")
        ranges.at_least(self, 0, "pretraining_weight")

    def sampled(self, policy: SRPolicy) -> SRPolicy:
        """The live policy with the training sampler. Raises `ConfigError` when it cannot be sampled so."""
        own = policy.sampler
        sampler = Sampler(
            own.num_steps if self.num_steps is None else self.num_steps,
            own.noise if self.noise is None else self.noise,
            own.eta if self.eta is None else self.eta,
        )
        return policy if sampler == own else policy.with_sampler(sampler)

    def parts(self) -> Sequence[slice]:
        """The micro-batches of a group."""
        size = self.micro_batch or self.group_size
        return [slice(start, min(start + size, self.group_size)) for start in range(0, self.group_size, size)]


def require_different_samples(policy: SRPolicy, config: GroupConfig) -> None:
    """Raises `ConfigError` when the samples that ``policy`` draws of a photo would all be the same."""
    if stochastic_indices(policy) or (policy.draws_start and not config.shared_noise):
        return
    what = f"{config.name} compares samples of a photo, and all that {policy.name} draws are the same"
    if not policy.draws_start:
        raise ConfigError(f"{what}: neither its start nor its steps have noise; use refl or draft, which compare none")
    raise ConfigError(
        f"{what}: they start from the same noise, and its steps add none (num_steps {policy.num_steps}, eta "
        f"{policy.sampler.eta}); set shared_noise=false, or num_steps >= 2 and eta > 0"
    )


def trained_indices(policy: SRPolicy, name: str) -> Sequence[int]:
    """The steps a policy gradient can train.

    Raises:
        ConfigError: there is none, because every step of the policy is deterministic.
    """
    indices = stochastic_indices(policy)
    if not indices:
        raise ConfigError(
            f"{name} needs denoising steps with noise, and none of {policy.name}'s has any "
            f"(num_steps {policy.num_steps}, eta {policy.sampler.eta}; the last step never has); set num_steps >= 2 and eta > 0"
        )
    return indices


@dataclass(frozen=True)
class Group:
    """The K samples of one photo.

    Attributes:
        parts: in micro-batches, in order.
        scored: their rewards and maps.
    """

    parts: Sequence[Trajectory]
    scored: Scored

    @property
    def clean(self) -> torch.Tensor:
        """x0 of all samples, (K, C, h, w)."""
        return torch.cat([part.clean for part in self.parts])


@dataclass(frozen=True)
class Rollout:
    """The groups of a batch, one for each photo, and the seconds spent waiting for their rewards."""

    groups: Sequence[Group]
    waited: float

    @property
    def rewards(self) -> torch.Tensor:
        """Float32 (N, K); what has no reward is NaN."""
        return torch.stack([group.scored.rewards.reward for group in self.groups])

    def finite_rewards(self, world: World) -> Rewards:
        """Those of all images that have one.

        Raises:
            RewardError: no photo of any process has one for each of its samples, so that there is nothing to compare.
        """
        if not world.mean(float(self.rewards.isfinite().all(dim=1).any())):
            raise RewardError(f"each of the {len(self.groups)} photos has a sample without a finite reward")
        return finite_rewards(joined_rewards([group.scored.rewards for group in self.groups]), world)


def sample_groups(
    policy: SRPolicy,
    batch: Batch,
    reward: RewardFn,
    rng: np.random.Generator,
    config: GroupConfig,
    *,
    stored: Sequence[int] = (),
    maps: bool = False,
) -> Rollout:
    """K samples of every photo, scored; ``stored`` names the steps that are kept. All noise is decided by ``rng`` at once."""
    start_seeds, step_seeds = (batch.seeds(rng, config.group_size) for _ in range(2))
    waiting: list[tuple[list[Trajectory], Callable[[], Scored]]] = []
    with Scorer(reward, maps=maps, overlap=config.overlap) as scorer:
        for photo, lr in enumerate(batch.lr):
            starts = [start_seeds[photo][0]] * config.group_size if config.shared_noise else start_seeds[photo]
            parts, images = [], []
            for part in config.parts():
                trajectory = _sample(policy, lr, starts[part], step_seeds[photo][part], stored)
                with torch.no_grad():
                    images.append(policy.decode(trajectory.clean, trajectory.condition))
                parts.append(trajectory)
            waiting.append((parts, scorer.submit(torch.cat(images), lr.expand(config.group_size, *lr.shape))))
        groups = [Group(parts, answer()) for parts, answer in waiting]
    return Rollout(groups, scorer.waited)


def _sample(
    policy: SRPolicy, lr: torch.Tensor, start_seeds: Sequence[int], step_seeds: Sequence[int], stored: Sequence[int]
) -> Trajectory:
    with torch.no_grad():
        condition = policy.condition(lr.expand(len(step_seeds), *lr.shape))
        start = policy.initial_state(condition, seeded_generators(start_seeds))
    return sample_trajectory(policy, condition, start, seeded_generators(step_seeds), stored)
