"""The exponential moving average of a model's weights (Polyak & Juditsky 1992), which is judged and stored in their place."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class WeightAverage(Generic[M]):
    """A model whose weights follow another's: w̄ ← d·w̄ + (1 − d)·w after every update.

    The decay warms up, d = min(decay, (1 + n) / (10 + n)) after n updates, so that the start weighs little even in a short run.
    BatchNorm's running statistics are averaged with the weights: those of the last step belong to other weights than the average.
    Counters are copied.
    """

    def __init__(self, model: M, decay: float) -> None:
        self.module: M = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in ``model``, of the same architecture, after an optimiser step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        theirs = model.state_dict()
        for name, tensor in self.module.state_dict().items():
            if tensor.is_floating_point():
                tensor.lerp_(theirs[name], 1 - decay)
            else:
                tensor.copy_(theirs[name])
        self.updates += 1

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of the average on the CPU."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.module.state_dict().items()}

    def restore(self, weights: Mapping[str, torch.Tensor], updates: int) -> None:
        """Go on from what `weights` gave after so many updates."""
        self.module.load_state_dict(weights)
        self.updates = updates
