"""What all diffusion policies have in common: sampling, noising and scoring states, over a network and a `NoisePath`.

A subclass says how LR images condition its network, how images become states and back, what its network puts out, and how it is
saved. Everything an algorithm asks beyond that is here, once.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch.nn import functional as F

from finpercep.errors import ConfigError
from finpercep.sr.colour import corrected
from finpercep.sr.noise_path import FlowMatching, NoisePath
from finpercep.sr.policy import Condition, Generators
from finpercep.sr.settings import Delivery
from finpercep.sr.tiled import Tile, sample_in_tiles, tiles_of
from finpercep.sr.transition import FORMS, Sampler, StepState, Transition


class DiffusionPolicy(ABC):
    """`SRPolicy` over the networks of a subclass.

    Args:
        path: what its states are between clean and noise.
        sampler: how it is sampled.
        scale: upscaling factor.

    Attributes:
        draws_start: see `SRPolicy`.
        delivery: tiling and colour correction of `sample`; none, unless set.
    """

    name: ClassVar[str]
    draws_start: ClassVar[bool] = True
    delivery = Delivery()

    def __init__(self, path: NoisePath, sampler: Sampler, scale: int) -> None:
        self.path, self.scale = path, scale
        self._set_sampler(sampler)

    # -- what a subclass says ---------------------------------------------------------------------------------------

    @abstractmethod
    def networks(self) -> Mapping[str, torch.nn.Module]:
        """The live modules whose parameters may be trained, by name."""

    @abstractmethod
    def condition(self, lr: torch.Tensor) -> Condition:
        """See `SRPolicy`."""

    @abstractmethod
    def encode(self, images: torch.Tensor, condition: Condition) -> torch.Tensor:
        """See `SRPolicy`."""

    @abstractmethod
    def decode(self, clean: torch.Tensor, condition: Condition) -> torch.Tensor:
        """See `SRPolicy`."""

    @abstractmethod
    def predict(self, x: torch.Tensor, timestep: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The network's output, float32 of x's shape; ``timestep`` is () or (N,)."""

    @abstractmethod
    def state_shape(self, condition: Condition) -> Sequence[int]:
        """Shape of a state, (N, C, h, w)."""

    @abstractmethod
    def save_pretrained(self, folder: Path) -> None:
        """See `SRPolicy`."""

    @property
    def lr_multiple(self) -> int:
        """What the sides of an LR image must divide by; `sample` pads to it."""
        return 1

    def prior(self, condition: Condition) -> torch.Tensor | None:  # noqa: ARG002
        """Y of a path with a prior, a state; else None."""
        return None

    def start(self, condition: Condition, noise: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """X before step 0, given its noise. That noise itself here; policies that start from the LR image say so."""
        return noise

    def condition_of_tile(self, lr: torch.Tensor, tile: Tile) -> Condition:
        """`condition` of a tile of the LR images; a policy says more when a tile must know of the whole."""
        return self.condition(tile.of(lr, (lr.shape[-2], lr.shape[-1])))

    # -- what follows -----------------------------------------------------------------------------------------------

    @property
    def sampler(self) -> Sampler:
        """How it is sampled."""
        return self._sampler

    def with_sampler(self, sampler: Sampler) -> Self:
        """See `SRPolicy`."""
        other = copy.copy(self)
        other._set_sampler(sampler)
        return other

    def _set_sampler(self, sampler: Sampler) -> None:
        if sampler.noise != "ddim" and not isinstance(self.path, FlowMatching):
            raise ConfigError(f"noise {sampler.noise!r} is for flow matching; {self.name} takes ddim")
        self._sampler = sampler
        self.levels = self.path.levels(sampler.num_steps)

    def initial_state(self, condition: Condition, generators: Generators) -> torch.Tensor:
        """See `SRPolicy`."""
        return self.start(condition, self.noise(condition, generators))

    @property
    def num_steps(self) -> int:
        """Number of denoising steps of one sample."""
        return self._sampler.num_steps

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(next(iter(self.networks().values())).parameters()).device

    def noise(self, condition: Condition, generators: Generators) -> torch.Tensor:
        """ε of a state's shape."""
        return randn_tensor(tuple(self.state_shape(condition)), generator=list(generators), device=self.device)

    def add_noise(self, clean: torch.Tensor, index: int, condition: Condition, generators: Generators) -> torch.Tensor:
        """See `SRPolicy`."""
        noise = self.noise(condition, generators)
        return self.path.add_noise(clean, noise, self.levels[index].to(self.device), self.prior(condition))

    def predict_clean(self, x: torch.Tensor, index: int, condition: Condition) -> torch.Tensor:
        """See `SRPolicy`."""
        level = self.levels[index].to(x.device)
        return self.path.clean(x, self.predict(x, level.timestep, condition), level)

    def transition(self, x: torch.Tensor, index: int, condition: Condition) -> Transition:
        """See `SRPolicy`."""
        now, after = (level.to(x.device) for level in self.levels[index : index + 2])
        clean = self.predict_clean(x, index, condition)
        return FORMS[self._sampler.noise](StepState(self.path, x, clean, now, after, self.prior(condition)), self._sampler.eta)

    def step(self, x: torch.Tensor, index: int, condition: Condition, generators: Generators) -> torch.Tensor:
        """See `SRPolicy`."""
        return self.transition(x, index, condition).sample(generators)

    def denoising_errors(self, clean: torch.Tensor, condition: Condition, generators: Generators) -> torch.Tensor:
        """See `SRPolicy`."""
        noise = self.noise(condition, generators)
        level = self.path.draw(generators).to(self.device)
        noisy = self.path.add_noise(clean, noise, level, self.prior(condition))
        prediction = self.predict(noisy, level.timestep, condition)
        return F.mse_loss(prediction, self.path.target(clean, noise, level), reduction="none").flatten(1).mean(dim=1)

    @torch.no_grad()
    def sample(self, lr: torch.Tensor, generators: Generators, *, initial_noise: float = 1.0) -> torch.Tensor:
        """See `SRPolicy`; the LR image is padded to `lr_multiple` inside, and sampled in tiles where `delivery` says so.

        ``initial_noise`` scales the state it starts from; 1 is right, anything else a fault (grain, or detail missing).
        """
        height, width = lr.shape[-2:]
        lr = lr.to(self.device)
        padded = F.pad(lr, (0, -width % self.lr_multiple, 0, -height % self.lr_multiple), mode="replicate")
        size = (padded.shape[-2], padded.shape[-1])
        tiles = tiles_of(size, self.delivery.tile or max(size), self.delivery.overlap, self.lr_multiple)
        if len(tiles) > 1:
            images = sample_in_tiles(self, padded, generators, tiles, initial_noise)
        else:
            images = self._sample_whole(padded, generators, initial_noise)
        images = images[..., : height * self.scale, : width * self.scale]
        if self.delivery.colour == "none":
            return images
        upsampled = F.interpolate(lr, scale_factor=self.scale, mode="bicubic", align_corners=False).clamp(0, 1)
        return corrected(images, upsampled, self.delivery.colour)

    def _sample_whole(self, lr: torch.Tensor, generators: Generators, initial_noise: float) -> torch.Tensor:
        condition = self.condition(lr)
        x = initial_noise * self.initial_state(condition, generators)
        for index in range(self.num_steps):
            x = self.step(x, index, condition, generators)
        return self.decode(x, condition)

    # -- weights ----------------------------------------------------------------------------------------------------

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The trainable parameters, as NETWORK.NAME."""
        for network, module in self.networks().items():
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    yield f"{network}.{name}", parameter

    def parameters(self) -> list[torch.nn.Parameter]:
        """The trainable parameters."""
        return [parameter for _, parameter in self.named_parameters()]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The trainable weights."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """See `SRPolicy`. Raises `ConfigError` on another set of names."""
        own = dict(self.named_parameters())
        if set(own) != set(state):
            raise ConfigError(f"{self.name}: expected the weights of {len(own)} parameters, got {len(state)} of other names")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def frozen_copy(self) -> Self:
        """See `SRPolicy`: a deep copy in eval mode."""
        other = copy.deepcopy(self)
        for module in other.networks().values():
            module.requires_grad_(False).eval()
        return other

    def train(self, mode: bool = True) -> None:
        """Training or evaluation mode of every network."""
        for module in self.networks().values():
            module.train(mode)

    def to(self, device: torch.device | str) -> Self:
        """Move the networks; returns self."""
        for module in self.networks().values():
            module.to(device)
        return self
