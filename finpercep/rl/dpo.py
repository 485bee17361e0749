"""Diffusion-DPO on pairs the reward makes: of K samples of a photo, the best beats the worst (arXiv 2311.12908, eq. 14).

The paper's pairs come from people, once; these come from the policy as it is now.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from finpercep.reward import RewardFn
from finpercep.rl import ranges
from finpercep.rl.advantages import group_advantages
from finpercep.rl.algorithm import Batch, Optimise, Stateless, Trainee, Update
from finpercep.rl.groups import GroupConfig, Rollout, require_different_samples, sample_groups
from finpercep.rl.supervision import add_pretraining
from finpercep.rl.tally import Tally
from finpercep.sr.policy import SRPolicy, seeded_generators


@dataclass(frozen=True)
class DpoConfig(GroupConfig):
    """Settings of online Diffusion-DPO, beside `GroupConfig`'s.

    Attributes:
        beta: β, how far the policy may leave its reference; 100 (far) to 5000.
        draws: levels and noises at which each pair is compared, 1 to 8; more is less noisy.
        steps: optimiser steps on one set of pairs, 1 to 4, each with draws of its own.
    """

    name: ClassVar[str] = "dpo"

    beta: float = 1000.0
    draws: int = 4
    steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.positive(self, "beta")
        ranges.at_least(self, 1, "draws", "steps")

    def build(self, trainee: Trainee) -> Dpo:
        """The algorithm. Raises `ConfigError` when the samples of a photo would all be the same."""
        return Dpo(trainee, self)


@dataclass(frozen=True)
class Errors:
    """Denoising errors of winners and losers at the same levels and noises, (n,) each."""

    winner: torch.Tensor
    loser: torch.Tensor


def dpo_margin(policy: Errors, reference: Errors) -> torch.Tensor:
    """(e_w^θ − e_w^ref) − (e_l^θ − e_l^ref), (n,): negative where the policy has moved to the winner."""
    return (policy.winner - reference.winner) - (policy.loser - reference.loser)


def dpo_objective(policy: Errors, reference: Errors, beta: float) -> torch.Tensor:
    """L = mean −log σ(−½β·margin), margin as `dpo_margin`; log 2 while the policy is its reference."""
    return -F.logsigmoid(-beta / 2 * dpo_margin(policy, reference)).mean()


@dataclass(frozen=True)
class Pairs:
    """Best and worst sample of n photos: LR images (n, 3, h, w), and their x0 (n, C, h', w')."""

    lr: torch.Tensor
    winner: torch.Tensor
    loser: torch.Tensor

    def __len__(self) -> int:
        return len(self.lr)

    def __getitem__(self, part: slice) -> Pairs:
        return Pairs(self.lr[part], self.winner[part], self.loser[part])


def pair_errors(policy: SRPolicy, pairs: Pairs, seeds: list[int]) -> Errors:
    """The denoising errors of both sides; equal generators give them the same level and noise."""
    condition = policy.condition(pairs.lr)
    sides = (pairs.winner, pairs.loser)
    return Errors(*(policy.denoising_errors(side, condition, seeded_generators(seeds)) for side in sides))


class Dpo(Stateless):
    """`Algorithm`: online Diffusion-DPO."""

    def __init__(self, trainee: Trainee, config: DpoConfig) -> None:
        self.config, self.world = config, trainee.world
        self.policy, self.reference = config.sampled(trainee.policy), trainee.reference
        require_different_samples(self.policy, config)

    def update(self, batch: Batch, reward: RewardFn, rng: np.random.Generator, optimise: Optimise) -> Update:
        """``steps`` optimiser steps on the pairs of one rollout; none where no photo's samples differ in reward."""
        rollout = sample_groups(self.policy, batch, reward, rng, self.config)
        rewards = rollout.finite_rewards(self.world)
        found = group_advantages(rollout.rewards)
        pairs = _pairs(batch, rollout, found.kept)
        total = self.world.mean(len(pairs))
        tally, weight = Tally(self.world), self.config.pretraining_weight
        for _ in range(self.config.steps):
            seeds = np.asarray(batch.seeds(rng, self.config.draws))[found.kept.cpu().numpy()]
            self._accumulate(pairs, total, seeds, optimise, tally)
            pretraining = add_pretraining(self.policy, batch, weight, rng, optimise, self.config.micro_batch)
            tally.add(1.0, pretraining=pretraining)
            if total or weight:
                optimise.step()
        figures = {**found.dropped(self.world), "margin": tally.mean("margin"), "agreement": tally.mean("agreement")}
        return Update(rewards, {name: tally.mean(name) for name in ("preference", "pretraining")}, figures, rollout.waited)

    def _accumulate(self, pairs: Pairs, total: float, drawn: np.ndarray, optimise: Optimise, tally: Tally) -> None:
        """Add the gradient of the pairs' losses over ``total``; each is a mean over draws, with seeds ``drawn`` (n, draws)."""
        size = self.config.micro_batch or max(1, len(pairs))
        for seeds in drawn.T.tolist():
            for start in range(0, len(pairs), size):
                part = slice(start, start + size)
                with torch.no_grad():
                    reference = pair_errors(self.reference, pairs[part], seeds[part])
                policy = pair_errors(self.policy, pairs[part], seeds[part])
                loss = dpo_objective(policy, reference, self.config.beta)
                share = len(pairs[part]) / total / self.config.draws
                optimise.backward(share * loss)
                margin = dpo_margin(policy, reference).detach()
                agreement = (margin < 0).float().mean().item()
                tally.add(share, preference=loss.item(), margin=margin.mean().item(), agreement=agreement)


def _pairs(batch: Batch, rollout: Rollout, kept: torch.Tensor) -> Pairs:
    """Best and worst of every group that is ``kept`` (G,)."""
    chosen = [(lr, group) for lr, group, keep in zip(batch.lr, rollout.groups, kept.tolist(), strict=True) if keep]
    if not chosen:
        return Pairs(batch.lr[:0], batch.lr[:0], batch.lr[:0])
    best = [group.clean[group.scored.rewards.reward.argmax()] for _, group in chosen]
    worst = [group.clean[group.scored.rewards.reward.argmin()] for _, group in chosen]
    return Pairs(torch.stack([lr for lr, _ in chosen]), torch.stack(best), torch.stack(worst))
