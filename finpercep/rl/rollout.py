"""Denoising without gradient, as far as an algorithm wants."""

from __future__ import annotations

import torch

from finpercep.sr.policy import Condition, Generators, SRPolicy


@torch.no_grad()
def denoise_to(policy: SRPolicy, index: int, condition: Condition, generators: Generators) -> torch.Tensor:
    """The state before step ``index``, from fresh noise."""
    x = policy.initial_state(condition, generators)
    for earlier in range(index):
        x = policy.step(x, earlier, condition, generators)
    return x
