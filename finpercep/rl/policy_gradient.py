"""The update that DDPO and GRPO share: roll out groups, give advantages, follow the clipped ratio of stored steps.

A micro-batch of the rollout is evaluated again in the same company, so that the ratio is exactly 1 until the first optimiser
step. That asks of the policy that it be the same function both times: no dropout, the same mode, the same precision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from finpercep.reward import RewardFn
from finpercep.rl import ranges
from finpercep.rl.advantages import Advantages
from finpercep.rl.algorithm import Batch, Optimise, Stateless, Trainee, Update
from finpercep.rl.groups import Group, GroupConfig, Rollout, sample_groups, trained_indices
from finpercep.rl.rollout import Trajectory
from finpercep.rl.supervision import add_pretraining
from finpercep.rl.tally import Tally
from finpercep.rl.world import World


@dataclass(frozen=True)
class PolicyGradientConfig(GroupConfig):
    """Settings of every algorithm that follows the ratio of stored steps, beside `GroupConfig`'s.

    Attributes:
        train_share: share of the steps with noise that is trained, drawn anew for each micro-batch; DanceGRPO 0.6.
        clip: ε of the clipped ratio; 1e-4 to 1e-3, small because log-probabilities are means over dimensions.
        advantage_clip: largest |A|; 5.
        epochs: times the samples of an update are gone through, 1 or 2; beyond the first optimiser step the ratio leaves 1.
        minibatches: optimiser steps an epoch, each on its share of the samples; 1 or 2.
    """

    train_share: float = 1.0
    clip: float = 1e-4
    advantage_clip: float = 5.0
    epochs: int = 1
    minibatches: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.share(self, "train_share")
        ranges.positive(self, "clip", "advantage_clip")
        ranges.at_least(self, 1, "epochs", "minibatches")


@dataclass(frozen=True)
class Piece:
    """A micro-batch of n samples with its advantages, (n,), or (n, h, w) where every position has its own; and what draws for it.

    Its own generator makes what is drawn for it independent of which other pieces there are, in this process or another.
    """

    trajectory: Trajectory
    advantages: torch.Tensor
    rng: np.random.Generator


@dataclass(frozen=True)
class Judged:
    """What of a rollout is trained, and what is worth knowing about the rest."""

    pieces: Sequence[Piece]
    figures: dict[str, float]


@dataclass(frozen=True)
class StepLoss:
    """Of one step of a piece: the terms of the loss, weighted, scalars; share of clipped ratios; KL before its weight."""

    surrogate: torch.Tensor
    kl: torch.Tensor
    clipped: float
    divergence: float


class PolicyGradient(Stateless, ABC):
    """`Algorithm`; a subclass judges the samples and says what a step's loss is.

    Raises:
        ConfigError: no step of the policy has noise.
    """

    config: PolicyGradientConfig
    wants_maps = False

    def __init__(self, trainee: Trainee, config: PolicyGradientConfig) -> None:
        self.policy = config.sampled(trainee.policy)
        self.reference = config.sampled(trainee.reference)
        self.config, self.world = config, trainee.world
        self.indices = trained_indices(self.policy, config.name)

    @abstractmethod
    def judge(self, rollout: Rollout, seeds: Sequence[int]) -> Judged:
        """Advantages of the groups that can be learned from; ``seeds``, one a group, go to `pieces_of`."""

    @abstractmethod
    def step_loss(self, piece: Piece, index: int) -> StepLoss:
        """The loss of one stored step under the weights of now."""

    def update(self, batch: Batch, reward: RewardFn, rng: np.random.Generator, optimise: Optimise) -> Update:
        """``epochs`` × ``minibatches`` optimiser steps on one rollout; none where nothing can be learned from it."""
        rollout = sample_groups(self.policy, batch, reward, rng, self.config, stored=self.indices, maps=self.wants_maps)
        rewards = rollout.finite_rewards(self.world)
        judged = self.judge(rollout, batch.seeds(rng))
        tally = Tally(self.world)
        weight = self.config.pretraining_weight
        for _ in range(self.config.epochs):
            order = np.random.default_rng(int(rng.integers(2**31)))
            for part in minibatches(judged.pieces, self.config.minibatches, order, self.world):
                total = self.world.mean(sum(len(piece.trajectory) for piece in part))
                self._accumulate(part, total, optimise, tally)
                tally.add(1.0, pretraining=add_pretraining(self.policy, batch, weight, rng, optimise, self.config.micro_batch))
                if total or weight:
                    optimise.step()
        losses = {name: tally.mean(name) for name in ("policy", "kl", "pretraining")}
        figures = {**judged.figures, "clipped": tally.mean("clipped"), "divergence": tally.mean("divergence")}
        return Update(rewards, losses, figures, rollout.waited)

    def _accumulate(self, part: Sequence[Piece], total: float, optimise: Optimise, tally: Tally) -> None:
        """Add the gradient of the sum over the samples of ``part``, over ``total``, of the mean loss of the drawn steps."""
        count = max(1, round(self.config.train_share * len(self.indices)))
        for piece in part:
            share = len(piece.trajectory) / total / count
            for index in sorted(piece.rng.choice(np.asarray(self.indices), size=count, replace=False).tolist()):
                loss = self.step_loss(piece, index)
                optimise.backward(share * (loss.surrogate + loss.kl))
                terms = {"policy": loss.surrogate.item(), "kl": loss.kl.item()}
                tally.add(share, **terms, clipped=loss.clipped, divergence=loss.divergence)


def own_advantages(rollout: Rollout, world: World, judge: Callable[[torch.Tensor], Advantages]) -> Advantages:
    """Those of this process's groups, judged (G, K) beside the groups of all processes."""
    found, own = judge(world.gather(rollout.rewards)), len(rollout.groups)
    mine = slice(world.rank * own, (world.rank + 1) * own)
    return Advantages(found.values[mine], found.finite[mine], found.kept[mine])


def pieces_of(
    groups: Sequence[Group], advantages: torch.Tensor, kept: torch.Tensor, parts: Sequence[slice], seeds: Sequence[int]
) -> list[Piece]:
    """The micro-batches of the groups that are ``kept`` (G,), with their share of advantages (G, K, …) and of ``seeds`` (G,)."""
    return [
        Piece(trajectory, advantages[index, part], np.random.default_rng((seeds[index], number)))
        for index, group in enumerate(groups)
        if kept[index]
        for number, (part, trajectory) in enumerate(zip(parts, group.parts, strict=True))
    ]


def minibatches(pieces: Sequence[Piece], count: int, rng: np.random.Generator, world: World) -> list[list[Piece]]:
    """Those of ``pieces`` in each of the ``count`` parts of all processes' pieces in random order; a part may be empty.

    ``rng`` is the same in every process.
    """
    counts = [int(one) for one in world.gather(torch.tensor([len(pieces)]))]
    first = sum(counts[: world.rank])
    own = range(first, first + len(pieces))
    parts = np.array_split(rng.permutation(sum(counts)), count)
    return [[pieces[place - first] for place in part if place in own] for part in parts]
