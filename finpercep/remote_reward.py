"""A served reward as a differentiable function: `RewardFn` over a `RewardClient`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.autograd.function import once_differentiable

from finpercep.errors import RewardError
from finpercep.reward import RewardFn, Rewards, RewardWeights
from finpercep.wire import ScoreResponse

if TYPE_CHECKING:
    from finpercep.client import RewardClient


class RemoteReward:
    """`RewardFn` of one served rung: values and ∂reward/∂images are those of in-process autograd.

    Args:
        client: asks the server.
        rung: which.
        weights: of the reward.
        failures: "raise" an error where an image has no reward, or give it "nan" in every number, and a gradient of 0.
        takes_lr: whether the rung can be shown LR pictures.
    """

    def __init__(
        self,
        client: RewardClient,
        rung: str,
        weights: RewardWeights,
        failures: Literal["raise", "nan"] = "raise",
        *,
        takes_lr: bool = False,
    ) -> None:
        self.client, self.rung, self.weights, self.failures, self.takes_lr = client, rung, weights, failures, takes_lr

    def beside(self, lr: torch.Tensor) -> RewardFn:
        """See `LRRewardFn`."""
        return _Beside(self, lr) if self.takes_lr else self

    def __call__(self, images: torch.Tensor, lr: torch.Tensor | None = None) -> Rewards:
        """Score ``images``, N×3×H×W float RGB in [0, 1]; gradients flow to them from ``reward`` alone.

        Args:
            images: to score.
            lr: N×3×h×w, the same kind, the low-resolution pictures they were made from, for a rung that takes them.

        Raises:
            RewardError: the reward of any of the images cannot be had, unless ``failures`` is "nan"; or that of all of them.
        """
        return Rewards(*_Served.apply(images, lr, self))

    def with_map(self, images: torch.Tensor, lr: torch.Tensor | None = None) -> tuple[Rewards, torch.Tensor | None]:
        """See `MapRewardFn`; raises as a call does."""
        response = self._ask(images.detach(), lr, map=True)
        numbers = (response.reward, response.score, response.max_degradation, response.mean_degradation)
        reward, score, worst, mean = (number.to(images.device) for number in numbers)
        rewards = Rewards(reward, score, worst, mean)
        if response.maps is None:
            return rewards, None
        unknown = torch.full(images.shape[-2:], math.nan)
        return rewards, torch.stack([unknown if one is None else one for one in response.maps]).to(images.device)

    def _ask(self, images: torch.Tensor, lr: torch.Tensor | None, *, grad: bool = False, map: bool = False) -> ScoreResponse:
        low = None if lr is None else lr.detach()
        response = self.client.score_tensor(images, self.rung, self.weights, grad=grad, map=map, lr=low)
        if response.errors and (self.failures == "raise" or len(response.errors) == len(images)):
            index, sentence = next(iter(response.errors.items()))
            raise RewardError(f"{self.client.url}: {len(response.errors)} of {len(images)} images, image {index}: {sentence}")
        return response

    def fetch(self, images: torch.Tensor, lr: torch.Tensor | None, grad: bool) -> tuple[ScoreResponse, torch.Tensor | None]:
        """The server's response, and the gradient of all images if it was asked for."""
        response = self._ask(images, lr, grad=grad)
        if not grad:
            return response, None
        grads = [None] * len(images) if response.grads is None else list(response.grads)
        nothing = torch.zeros(images.shape[1:])
        full = [nothing if index in response.errors else one for index, one in enumerate(grads)]
        if any(one is None or one.shape != images.shape[1:] for one in full):
            raise RewardError(f"{self.client.url} sent no gradient of the images' shape {tuple(images.shape)}")
        return response, torch.stack([one for one in full if one is not None])


@dataclass(frozen=True)
class _Beside:
    """A remote reward that is shown the same LR pictures each time."""

    reward: RemoteReward
    lr: torch.Tensor

    def __call__(self, images: torch.Tensor) -> Rewards:
        """See `RewardFn`."""
        return self.reward(images, self.lr)

    def with_map(self, images: torch.Tensor) -> tuple[Rewards, torch.Tensor | None]:
        """See `MapRewardFn`."""
        return self.reward.with_map(images, self.lr)


class _Served(torch.autograd.Function):
    """The reward as a node of the graph; its gradient came with its value, so going backward asks nobody."""

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, lr: torch.Tensor | None, source: RemoteReward) -> tuple[torch.Tensor, ...]:
        response, grads = source.fetch(images.detach(), lr, grad=ctx.needs_input_grad[0])
        ctx.save_for_backward(grads)
        numbers = (response.reward, response.score, response.max_degradation, response.mean_degradation)
        reward, *monitored = (number.to(images.device) for number in numbers)
        ctx.mark_non_differentiable(*monitored)
        return (reward, *monitored)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grads,) = ctx.saved_tensors
        return upstream[:, None, None, None] * grads.to(upstream.device), None, None
