"""The learning-rate schedule of every supervised run. Pure."""

from __future__ import annotations

import math


def warmup_cosine(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 5 % of the steps, then cosine to a hundredth of the peak; ``step`` is 0-based."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
