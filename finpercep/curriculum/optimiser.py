"""How a run changes the policy's weights: AdamW on clipped gradients, and the moving average of what it does."""

from __future__ import annotations

import math
from typing import Any

import torch

from finpercep.errors import Diverged
from finpercep.rl.world import ALONE, World
from finpercep.sr.policy import SRPolicy


class PolicyOptimiser:
    """`Optimise` of a policy's trainable parameters.

    Args:
        policy: its parameters are changed in place.
        lr: AdamW's learning rate.
        max_grad_norm: gradients are clipped to this norm.
        ema: decay of the average of the weights over all steps, in [0, 1); 0 keeps none.
        world: the processes whose gradients are averaged.
    """

    def __init__(self, policy: SRPolicy, *, lr: float, max_grad_norm: float, ema: float, world: World = ALONE) -> None:
        self.parameters, self.world = list(policy.parameters()), world
        self.lr, self.max_grad_norm, self.decay = lr, max_grad_norm, ema
        self.adamw = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=0.0)
        self.average = [parameter.detach().clone() for parameter in self.parameters] if ema else None
        self.steps = 0
        self.grad_norms: list[float] = []

    def backward(self, loss: torch.Tensor) -> None:
        """See `Optimise`."""
        if not math.isfinite(loss.item()):
            raise Diverged(f"the loss is {loss.item()}; lower the learning rate (now {self.lr})")
        loss.backward()

    def step(self) -> None:
        """See `Optimise`; the norm before clipping is appended to ``grad_norms``."""
        self.world.average_gradients(self.parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
        if not math.isfinite(norm):
            raise Diverged(f"the gradient's norm is {norm}; lower the learning rate (now {self.lr})")
        self.adamw.step()
        self.adamw.zero_grad()
        self.grad_norms.append(norm)
        self.steps += 1
        if self.average is not None:
            decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
            with torch.no_grad():
                torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    def set_lr(self, lr: float) -> None:
        """The learning rate from now on."""
        self.lr = lr
        for group in self.adamw.param_groups:
            group["lr"] = lr

    def take_grad_norm(self) -> float:
        """Mean gradient norm of the steps since the last call; 0 when there was none."""
        norms, self.grad_norms = self.grad_norms, []
        return sum(norms) / len(norms) if norms else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the steps to come."""
        return {"adamw": self.adamw.state_dict(), "average": self.average, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.adamw.load_state_dict(state["adamw"])
        self.lr = float(self.adamw.param_groups[0]["lr"])
        self.steps = int(state["steps"])
        if self.average is not None:
            for own, stored in zip(self.average, state["average"], strict=True):
                own.copy_(stored)
