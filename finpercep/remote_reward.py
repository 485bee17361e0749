"""A served reward as a differentiable function: `RewardFn` over a `RewardClient`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from finpercep.errors import RewardError
from finpercep.reward import Rewards, RewardWeights
from finpercep.wire import ScoreResponse

if TYPE_CHECKING:
    from finpercep.client import RewardClient


class RemoteReward:
    """`RewardFn` of one served rung: values and ∂reward/∂images are those of in-process autograd."""

    def __init__(self, client: RewardClient, rung: str, weights: RewardWeights) -> None:
        self.client = client
        self.rung = rung
        self.weights = weights

    def __call__(self, images: torch.Tensor) -> Rewards:
        """Score ``images``, N×3×H×W float RGB in [0, 1]; gradients flow to them from ``reward`` alone.

        Raises:
            RewardError: the reward of any of the images cannot be had.
        """
        return Rewards(*_Served.apply(images, self))

    def fetch(self, images: torch.Tensor, grad: bool) -> ScoreResponse:
        """The server's response, every image of which has its numbers."""
        response = self.client.score_tensor(images, self.rung, self.weights, grad=grad)
        if response.errors:
            index, sentence = next(iter(response.errors.items()))
            raise RewardError(f"{self.client.url}: {len(response.errors)} of {len(images)} images, image {index}: {sentence}")
        if grad and (not isinstance(response.grads, torch.Tensor) or response.grads.shape != images.shape):
            raise RewardError(f"{self.client.url} sent no gradient of the images' shape {tuple(images.shape)}")
        return response


class _Served(torch.autograd.Function):
    """The reward as a node of the graph; its gradient came with its value, so going backward asks nobody."""

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, source: RemoteReward) -> tuple[torch.Tensor, ...]:
        response = source.fetch(images.detach(), grad=ctx.needs_input_grad[0])
        ctx.save_for_backward(response.grads)
        numbers = (response.reward, response.score, response.max_degradation, response.mean_degradation)
        reward, *monitored = (number.to(images.device) for number in numbers)
        ctx.mark_non_differentiable(*monitored)
        return (reward, *monitored)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, None]:
        (grads,) = ctx.saved_tensors
        return upstream[:, None, None, None] * grads.to(upstream.device), None
