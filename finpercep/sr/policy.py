"""What a fine-tuning algorithm may ask of an SR model. Nothing else in the package knows which model it is.

A policy turns a low-resolution image into a high-resolution one in ``num_steps`` denoising steps; step index 0 is the
noisiest (method §6). ``x`` is the policy's own diffusion state: pixels, residuals or latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch

Generators = Sequence[torch.Generator]
"""One generator an image, so that an image's noise does not depend on the batch it rides in."""


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
    def num_steps(self) -> int:
        """Number of denoising steps of one sample."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the network is; tensors handed in must be there."""
        ...

    def condition(self, lr: torch.Tensor) -> torch.Tensor:
        """Encode the LR images (N×3×h×w, [0, 1]) into what the network is conditioned on."""
        ...

    def initial_state(self, condition: torch.Tensor, generators: Generators) -> torch.Tensor:
        """X before step 0."""
        ...

    def step(self, x: torch.Tensor, index: int, condition: torch.Tensor, generators: Generators) -> torch.Tensor:
        """X after step ``index``."""
        ...

    def predict_clean(self, x: torch.Tensor, index: int, condition: torch.Tensor) -> torch.Tensor:
        """x̂0 from x before step ``index``: one network evaluation, differentiable in the parameters."""
        ...

    def decode(self, clean: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Image N×3×H×W in [0, 1] from x̂0."""
        ...

    def denoising_loss(self, hr: torch.Tensor, lr: torch.Tensor, generators: Generators) -> torch.Tensor:
        """The supervised pretraining loss on ground truth, a scalar."""
        ...

    def sample(self, lr: torch.Tensor, generators: Generators) -> torch.Tensor:
        """SR images N×3×H×W in [0, 1] for ``lr`` on any device; no gradient."""
        ...

    def parameters(self) -> Iterable[torch.nn.Parameter]:
        """The trainable parameters."""
        ...

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Trainable weights by name."""
        ...

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Set the trainable weights."""
        ...

    def frozen_copy(self) -> Self:
        """The reference: same weights now, sharing no live module with this policy, without gradients."""
        ...

    def save_pretrained(self, folder: Path) -> None:
        """Write a folder that `load_policy` and plain diffusers read."""
        ...


def sample_images(policy: SRPolicy, lr: torch.Tensor, seeds: Iterable[int], *, batch_size: int = 8) -> torch.Tensor:
    """`SRPolicy.sample` of many LR images, a few at a time; image i's noise comes from seed i alone."""
    generators = seeded_generators(seeds)
    starts = range(0, len(lr), batch_size)
    return torch.cat([policy.sample(lr[i : i + batch_size], generators[i : i + batch_size]) for i in starts])


def seeded_generators(seeds: Iterable[int]) -> list[torch.Generator]:
    """One generator for each seed, on the CPU, so that the noise is the same whatever the device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]
