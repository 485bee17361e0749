"""Denoising without gradient, as far as an algorithm wants, and what it keeps of the way."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch

from finpercep.sr.policy import Condition, Generators, SRPolicy

MIN_NOISE = 0.01
"""Least noise that can be seen in states of unit variance."""


@dataclass(frozen=True)
class StoredStep:
    """One step as it was taken.

    Attributes:
        before: the state (n, C, h, w).
        after: the state that was drawn.
        log_prob: its log-density at every position then, (n, h, w) float32; see `Transition.log_prob`.
    """

    before: torch.Tensor
    after: torch.Tensor
    log_prob: torch.Tensor


@dataclass(frozen=True)
class Trajectory:
    """Samples that were denoised together, and must be evaluated together again: then the policy's ratio is exactly 1 at first.

    Attributes:
        condition: of the n samples.
        clean: x0 they ended at, (n, C, h, w).
        steps: what is stored of the steps, by index.
    """

    condition: Condition
    clean: torch.Tensor
    steps: Mapping[int, StoredStep]

    def __len__(self) -> int:
        return len(self.clean)


def stochastic_indices(policy: SRPolicy) -> Sequence[int]:
    """The steps to which the policy's sampler adds noise; only these have a density.

    A ``ddim`` step adds at most η times the noise level it ends at. Where that is below `MIN_NOISE`, as before the last step of
    few on diffusers' flow schedule, the step decides nothing, yet its log-density's gradient goes with 1/std and would drown
    that of all other steps; it counts as deterministic.
    """
    sampler = policy.sampler
    after = [float(level.noise) for level in policy.levels[1:]]
    added = [sampler.eta * (noise if sampler.noise == "ddim" else float(noise > 0)) for noise in after]
    return [index for index, most in enumerate(added) if most > (MIN_NOISE if sampler.noise == "ddim" else 0)]


@torch.no_grad()
def denoise_to(policy: SRPolicy, index: int, condition: Condition, generators: Generators) -> torch.Tensor:
    """The state before step ``index``, from fresh noise."""
    x = policy.initial_state(condition, generators)
    for earlier in range(index):
        x = policy.step(x, earlier, condition, generators)
    return x


@torch.no_grad()
def sample_trajectory(
    policy: SRPolicy, condition: Condition, start: torch.Tensor, generators: Generators, stored: Container[int]
) -> Trajectory:
    """All steps from ``start``, keeping those of the indices in ``stored``."""
    x, steps = start, {}
    for index in range(policy.num_steps):
        transition = policy.transition(x, index, condition)
        after = transition.sample(generators)
        if index in stored:
            steps[index] = StoredStep(x, after, transition.log_prob(after))
        x = after
    return Trajectory(condition, x, steps)
