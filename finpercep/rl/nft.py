"""DiffusionNFT: the forward process, pulled to good samples and pushed from bad ones (arXiv 2509.16117, §3).

No density is followed, so any sampler will do, deterministic ones too. The samples come from an old policy, a moving average of
the trained one; the trained velocity and the old one are mixed into a positive and a negative policy, and each is fitted to the
sample as far as it was good or bad. In x̂0 form: at a given state x̂0 is affine in the velocity (or in whatever the network puts
out), so the same mixtures hold for x̂0, and a difference of velocities is that of x̂0 divided by the noise level s, on flow paths
(x̂0 = x − s·v) and variance-preserving ones (x̂0 = a·x − s·v) alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch

from finpercep.reward import RewardFn
from finpercep.rl import ranges
from finpercep.rl.advantages import Spread, group_advantages
from finpercep.rl.algorithm import Batch, Optimise, Trainee, Update
from finpercep.rl.groups import GroupConfig, require_different_samples, sample_groups
from finpercep.rl.policy_gradient import Piece, own_advantages, pieces_of
from finpercep.rl.supervision import add_pretraining
from finpercep.rl.tally import Tally
from finpercep.sr.policy import seeded_generators, weights_of

FLOOR = 1e-5
"""Least distance a loss is divided by."""


@dataclass(frozen=True)
class NftConfig(GroupConfig):
    """Settings of DiffusionNFT, beside `GroupConfig`'s. The paper has K = 24, 10 steps, no classifier-free guidance.

    Attributes:
        beta: β, how far the positive and negative policies are from the old one; 0.1 (strong) to 1.
        train_share: share of the denoising levels at which each sample is fitted, drawn anew for each micro-batch.
        advantage_clip: |A| at which a sample is wholly good or bad; 5.
        spread: what an advantage is divided by; see `GrpoConfig`.
        reference_weight: weight of the squared distance of velocities to the frozen reference; 1e-4.
        old_rate: the old policy keeps min(``old_rate`` · updates, ``old_limit``) of itself at each update: first on-policy,
            then slower.
        old_limit: in [0, 1); 0.5.
    """

    name: ClassVar[str] = "nft"

    beta: float = 1.0
    train_share: float = 1.0
    advantage_clip: float = 5.0
    spread: Spread = "group"
    reference_weight: float = 1e-4
    old_rate: float = 0.001
    old_limit: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.share(self, "beta", "train_share")
        ranges.positive(self, "advantage_clip")
        ranges.at_least(self, 0, "reference_weight", "old_rate", "old_limit")
        ranges.one_of(self, "spread", "group", "batch")
        if self.old_limit >= 1:
            raise ranges.refusal(self, "old_limit", "lie in [0, 1)")

    def build(self, trainee: Trainee) -> Nft:
        """The algorithm. Raises `ConfigError` when the samples of a photo would all be the same."""
        return Nft(trainee, self)


def optimality(advantages: torch.Tensor, clip: float) -> torch.Tensor:
    """R = ½ + ½·clip(A / clip, ±1), in [0, 1]: how good a sample is."""
    return 0.5 + 0.5 * (advantages / clip).clamp(-1, 1)


def nft_objective(trained: torch.Tensor, old: torch.Tensor, clean: torch.Tensor, good: torch.Tensor, beta: float) -> torch.Tensor:
    """L = mean[ R·‖x̂0⁺ − x0‖² / (w⁺β) + (1 − R)·‖x̂0⁻ − x0‖² / (w⁻β) ], ‖·‖² a mean over dimensions.

    x̂0⁺ = βx̂0_θ + (1 − β)x̂0_old, x̂0⁻ = (1 + β)x̂0_old − βx̂0_θ, w± = stopgrad(mean|x̂0± − x0|), at least 1e-5.

    Args:
        trained: x̂0_θ, (n, C, h, w).
        old: x̂0_old at the same states.
        clean: x0, the samples.
        good: R of each, (n,) in [0, 1].
        beta: β in (0, 1].
    """
    old = old.detach()
    positive, negative = beta * trained + (1 - beta) * old, (1 + beta) * old - beta * trained
    terms = [_fitted(side, clean) for side in (positive, negative)]
    return ((good * terms[0] + (1 - good) * terms[1]) / beta).mean()


def _fitted(predicted: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    error = (predicted - clean).flatten(1)
    return error.square().mean(dim=1) / error.detach().abs().mean(dim=1).clamp_min(FLOOR)


def velocity_distance(trained: torch.Tensor, reference: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """mean‖v_θ − v_ref‖² from x̂0 of both at the same state and its noise level s: v_θ − v_ref = −(x̂0_θ − x̂0_ref) / s."""
    return ((trained - reference) / noise).square().mean()


class Nft:
    """`Algorithm`: DiffusionNFT. Remembers the old policy's weights and the number of updates."""

    def __init__(self, trainee: Trainee, config: NftConfig) -> None:
        self.config, self.world = config, trainee.world
        self.policy, self.reference = config.sampled(trainee.policy), config.sampled(trainee.reference)
        require_different_samples(self.policy, config)
        self.old = [parameter.detach().clone() for parameter in self.policy.parameters()]
        self.updates = 0

    def update(self, batch: Batch, reward: RewardFn, rng: np.random.Generator, optimise: Optimise) -> Update:
        """One optimiser step, and one of the old policy; none where nothing can be learned."""
        config = self.config
        with weights_of(self.policy, self.old):
            rollout = sample_groups(self.policy, batch, reward, rng, config)
        rewards = rollout.finite_rewards(self.world)
        advantages = partial(group_advantages, spread=config.spread, clip=config.advantage_clip)
        found = own_advantages(rollout, self.world, advantages)
        good = optimality(found.values, config.advantage_clip)
        pieces = pieces_of(rollout.groups, good, found.kept, config.parts(), batch.seeds(rng))
        total, tally = self.world.mean(sum(len(piece.trajectory) for piece in pieces)), Tally(self.world)
        for piece in pieces:
            self._accumulate(piece, len(piece.trajectory) / total, optimise, tally)
        pretraining = add_pretraining(self.policy, batch, config.pretraining_weight, rng, optimise, config.micro_batch)
        if total or config.pretraining_weight:
            optimise.step()
        self._move_old()
        losses = {"policy": tally.mean("policy"), "reference": tally.mean("reference"), "pretraining": pretraining}
        return Update(rewards, losses, found.dropped(self.world), rollout.waited)

    def _accumulate(self, piece: Piece, share: float, optimise: Optimise, tally: Tally) -> None:
        """Add ``share`` of the gradient of the mean loss over the drawn levels."""
        count = max(1, round(self.config.train_share * self.policy.num_steps))
        for index in sorted(piece.rng.choice(self.policy.num_steps, size=count, replace=False).tolist()):
            seeds = piece.rng.integers(2**31, size=len(piece.trajectory)).tolist()
            fitted, held = self._losses(piece, index, seeds)
            optimise.backward(share / count * (fitted + held))
            tally.add(share / count, policy=fitted.item(), reference=held.item())

    def _losses(self, piece: Piece, index: int, seeds: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The fit, and the weighted distance to the reference, with the samples noised to the level before ``index``."""
        policy, condition, clean = self.policy, piece.trajectory.condition, piece.trajectory.clean
        with torch.no_grad():
            x = policy.add_noise(clean, index, condition, seeded_generators(seeds))
            with weights_of(policy, self.old):
                old = policy.predict_clean(x, index, condition)
            reference = self.reference.predict_clean(x, index, condition) if self.config.reference_weight else None
        trained = policy.predict_clean(x, index, condition)
        fitted = nft_objective(trained, old, clean, piece.advantages, self.config.beta)
        if reference is None:
            return fitted, torch.zeros_like(fitted)
        noise = policy.levels[index].noise.to(trained.device)
        return fitted, self.config.reference_weight * velocity_distance(trained, reference, noise)

    @torch.no_grad()
    def _move_old(self) -> None:
        """θ_old ← d·θ_old + (1 − d)·θ."""
        self.updates += 1
        kept = min(self.config.old_rate * self.updates, self.config.old_limit)
        for old, parameter in zip(self.old, self.policy.parameters(), strict=True):
            old.lerp_(parameter.detach(), 1 - kept)

    def state_dict(self) -> dict[str, Any]:
        """The old policy and the number of updates."""
        return {"old": self.old, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set them."""
        self.updates = int(state["updates"])
        for own, stored in zip(self.old, state["old"], strict=True):
            own.copy_(stored)
