"""What a fine-tuning algorithm may ask of an SR model. Nothing else in the package knows which model it is.

A policy turns a low-resolution image into a high-resolution one in ``num_steps`` denoising steps; step index 0 is the
noisiest (method §6). ``x`` is the policy's own diffusion state: pixels, residuals or latents; x0 is a clean one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch

from finpercep.sr.noise_path import Generators, Level
from finpercep.sr.transition import Sampler, Transition

__all__ = [
    "Condition",
    "DrawPair",
    "Generators",
    "SRPolicy",
    "denoising_loss",
    "sample_images",
    "seeded_generators",
    "weights_of",
]

Condition = Any
"""What a policy made of the LR images; of N images, and the policy's own affair."""

DrawPair = Callable[[np.random.Generator], tuple[torch.Tensor, torch.Tensor]]
"""rng → a training pair (hr 3×H×W, lr 3×h×w), float32 in [0, 1]; the draw depends on the generator alone."""


class SRPolicy(Protocol):
    """A diffusion SR model seen through the questions fine-tuning asks."""

    @property
    def name(self) -> str:
        """Short name, for logs and recipes."""
        ...

    @property
    def scale(self) -> int:
        """Upscaling factor."""
        ...

    @property
    def lr_multiple(self) -> int:
        """What the sides of an LR image that is trained on must divide by; `sample` takes any."""
        ...

    @property
    def draws_start(self) -> bool:
        """Whether x before step 0 has noise, so that samples of one LR image differ where no step adds any."""
        ...

    @property
    def num_steps(self) -> int:
        """Number of denoising steps of one sample."""
        ...

    @property
    def levels(self) -> Sequence[Level]:
        """Signal and noise before each step, and clean after the last: ``num_steps`` + 1 of them."""
        ...

    @property
    def sampler(self) -> Sampler:
        """How it is sampled."""
        ...

    def with_sampler(self, sampler: Sampler) -> Self:
        """The same live network, sampled in another way. Raises `ConfigError` when it cannot be."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the network is; tensors handed in must be there."""
        ...

    def condition(self, lr: torch.Tensor) -> Condition:
        """Encode the LR images (N×3×h×w, [0, 1]) into what the network is conditioned on; no gradient."""
        ...

    def encode(self, images: torch.Tensor, condition: Condition) -> torch.Tensor:
        """x0 of images N×3×H×W in [0, 1]; no gradient."""
        ...

    def decode(self, clean: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Images N×3×H×W in [0, 1] from x̂0, differentiable."""
        ...

    def initial_state(self, condition: Condition, generators: Generators) -> torch.Tensor:
        """X before step 0."""
        ...

    def add_noise(self, clean: torch.Tensor, index: int, condition: Condition, generators: Generators) -> torch.Tensor:
        """X before step ``index``, drawn given that x0 is ``clean``."""
        ...

    def predict_clean(self, x: torch.Tensor, index: int, condition: Condition) -> torch.Tensor:
        """x̂0 from x before step ``index``: one network evaluation, differentiable in the parameters and in x."""
        ...

    def transition(self, x: torch.Tensor, index: int, condition: Condition) -> Transition:
        """Distribution of x after step ``index``: one network evaluation, differentiable in the parameters and in x."""
        ...

    def step(self, x: torch.Tensor, index: int, condition: Condition, generators: Generators) -> torch.Tensor:
        """X after step ``index``: a sample of `transition`."""
        ...

    def denoising_errors(self, clean: torch.Tensor, condition: Condition, generators: Generators) -> torch.Tensor:
        """The pretraining loss of each image, (N,): mean squared error of the network's output at a level drawn for it.

        Level and noise come from the image's generator alone: equal seeds give equal ones, whatever the weights.
        """
        ...

    def sample(self, lr: torch.Tensor, generators: Generators) -> torch.Tensor:
        """SR images N×3×H×W in [0, 1] for ``lr`` of any size on any device; no gradient."""
        ...

    def parameters(self) -> Iterable[torch.nn.Parameter]:
        """The trainable parameters, always in the same order."""
        ...

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Trainable weights by name."""
        ...

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Set the trainable weights; every name must match."""
        ...

    def frozen_copy(self) -> Self:
        """The reference: same weights now, not moving when this policy's do, without gradients."""
        ...

    def save_pretrained(self, folder: Path) -> None:
        """Write a folder that `load_policy` and plain diffusers read."""
        ...


def denoising_loss(policy: SRPolicy, hr: torch.Tensor, condition: Condition, generators: Generators) -> torch.Tensor:
    """The supervised pretraining loss on ground truth, a scalar."""
    return policy.denoising_errors(policy.encode(hr, condition), condition, generators).mean()


@contextmanager
def weights_of(policy: SRPolicy, weights: Sequence[torch.Tensor]) -> Iterator[None]:
    """Inside, the policy has ``weights`` (in its parameters' order) in place of its own; for evaluations without gradient."""
    parameters = list(policy.parameters())
    own = [parameter.data for parameter in parameters]
    try:
        for parameter, other in zip(parameters, weights, strict=True):
            parameter.data = other
        yield
    finally:
        for parameter, mine in zip(parameters, own, strict=True):
            parameter.data = mine


def sample_images(policy: SRPolicy, lr: torch.Tensor, seeds: Iterable[int], *, batch_size: int = 8) -> torch.Tensor:
    """`SRPolicy.sample` of many LR images, a few at a time; image i's noise comes from seed i alone."""
    generators = seeded_generators(seeds)
    starts = range(0, len(lr), batch_size)
    return torch.cat([policy.sample(lr[i : i + batch_size], generators[i : i + batch_size]) for i in starts])


def seeded_generators(seeds: Iterable[int]) -> list[torch.Generator]:
    """One generator for each seed, on the CPU, so that the noise is the same whatever the device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]
