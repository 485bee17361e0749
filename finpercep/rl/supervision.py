"""The pretraining loss beside a fine-tuning objective: it holds the model to what photos look like."""

from __future__ import annotations

import numpy as np

from finpercep.rl.algorithm import Batch, Optimise
from finpercep.sr.policy import SRPolicy, seeded_generators


def add_pretraining(
    policy: SRPolicy, batch: Batch, weight: float, rng: np.random.Generator, optimise: Optimise, micro_batch: int | None = None
) -> float:
    """Add the gradient of weight · mean denoising error of the batch's photos, ``micro_batch`` photos at a time.

    Returns:
        The weighted loss; 0 without any computation, and without a draw from ``rng``, where the weight is 0.
    """
    if not weight:
        return 0.0
    total, count = 0.0, len(batch.hr)
    seeds = batch.seeds(rng)
    size = micro_batch or count
    for start in range(0, count, size):
        part = slice(start, start + size)
        condition = policy.condition(batch.lr[part])
        clean = policy.encode(batch.hr[part], condition)
        loss = weight * policy.denoising_errors(clean, condition, seeded_generators(seeds[part])).sum() / count
        optimise.backward(loss)
        total += loss.item()
    return total
