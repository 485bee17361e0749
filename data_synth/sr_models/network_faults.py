"""Faults of a torch network that last for a `with` block: distorted weights, or distorted activations, of some of its layers.

A fault is drawn once (`draw_fault`) and may then be tried at several magnitudes: what a layer does is moved from the intact
(0) towards the distorted (1), or past it. Afterwards every weight is back bit for bit, whatever happened inside.
After DeepAugment (Hendrycks et al. 2021, arXiv 2006.16241). Knows nothing about images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

Distortion = Callable[[torch.Tensor, np.random.Generator], torch.Tensor]
"""Intact weights (Cout×Cin×…) or outputs of a layer (N×C×…) → fully distorted ones of the same shape."""


@dataclass(frozen=True)
class _WeightChange:
    """A layer's weight, as it was, and the way to its distortion."""

    weight: nn.Parameter
    original: torch.Tensor
    direction: torch.Tensor

    @contextmanager
    def at(self, magnitude: float) -> Iterator[None]:
        try:
            with torch.no_grad():
                self.weight.copy_(self.original + magnitude * self.direction)
            yield
        finally:
            with torch.no_grad():
                self.weight.copy_(self.original)


@dataclass(frozen=True)
class _OutputChange:
    """A layer whose output is distorted in the same way in every run: a diffusion sampler runs it many times."""

    layer: nn.Module
    distort: Distortion
    seed: int

    @contextmanager
    def at(self, magnitude: float) -> Iterator[None]:
        def hook(_layer: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return output + magnitude * (self.distort(output, np.random.default_rng(self.seed)) - output)

        handle = self.layer.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True)
class Fault:
    """A drawn fault of one network; see `draw_fault`."""

    changes: tuple[_WeightChange | _OutputChange, ...]

    @contextmanager
    def at(self, magnitude: float) -> Iterator[None]:
        """The network with this fault, for a `with` block. ``magnitude``: 0 intact, 1 fully distorted, more: beyond."""
        with ExitStack() as stack:
            for change in self.changes:
                stack.enter_context(change.at(magnitude))
            yield


def draw_fault(module: nn.Module, kind: str, rng: np.random.Generator) -> Fault:
    """Draw a fault of ``module``: which layers (a run of neighbours, from one to all) and how each is distorted.

    Args:
        module: a network of convolutions or linear layers, intact.
        kind: one of `NETWORK_FAULTS`.
        rng: decides the rest.
    """
    layers = _hit_layers(module, rng)
    if kind in OUTPUT_FAULTS:
        return Fault(tuple(_OutputChange(layer, OUTPUT_FAULTS[kind], int(rng.integers(2**63))) for layer in layers))
    changes = []
    for layer in layers:
        original = layer.weight.detach().clone()
        changes.append(_WeightChange(layer.weight, original, WEIGHT_FAULTS[kind](original, rng) - original))
    return Fault(tuple(changes))


def _hit_layers(module: nn.Module, rng: np.random.Generator) -> list[Any]:
    """A run of the layers that have weight matrices, in the order they were made; its length is log-uniform."""
    layers = [part for part in module.modules() if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
    if not layers:
        raise ValueError(f"{type(module).__name__} has no convolution or linear layer to perturb")
    length = min(len(layers), max(1, round(math.exp(rng.uniform(0, math.log(len(layers) + 0.5))))))
    first = int(rng.integers(len(layers) - length + 1))
    return layers[first : first + length]


def _noise(shape: tuple[int, ...], rng: np.random.Generator, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(like)


def _hit(shape: tuple[int, ...], share: float, rng: np.random.Generator, like: torch.Tensor) -> torch.Tensor:
    """True for about ``share`` of the entries."""
    return torch.from_numpy(rng.uniform(size=shape) < share).to(like.device)


def _channels(count: int, rng: np.random.Generator) -> list[int]:
    """Some of ``count`` channels, two at least where there are two: a share of 5 … 50 %."""
    size = min(count, max(2, round(rng.uniform(0.05, 0.5) * count)))
    return rng.permutation(count)[:size].tolist()  # type: ignore[no-any-return]


# -- of weights -----------------------------------------------------------------------------------------------------------


def weight_noise(weight: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Gaussian noise of the tensor's own standard deviation."""
    return weight + weight.std(correction=0) * _noise(tuple(weight.shape), rng, weight)


def dropped_channels(weight: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Some outputs no longer depend on the input."""
    out = weight.clone()
    out[_channels(len(weight), rng)] = 0
    return out


def swapped_channels(weight: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Some outputs in each other's place."""
    chosen = _channels(len(weight), rng)
    out = weight.clone()
    out[chosen] = weight[chosen[1:] + chosen[:1]]
    return out


def flipped_signs(weight: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A share of the weights with the other sign."""
    return torch.where(_hit(tuple(weight.shape), rng.uniform(0.05, 0.5), rng, weight), -weight, weight)


def zeroed_weights(weight: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A share of the weights absent."""
    return torch.where(_hit(tuple(weight.shape), rng.uniform(0.1, 0.8), rng, weight), torch.zeros_like(weight), weight)


def rescaled_weights(weight: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Every output louder or quieter by a factor of its own, up to 3."""
    factors = np.exp(math.log(3) * rng.uniform(-1, 1, size=len(weight))).astype(np.float32)
    return weight * torch.from_numpy(factors).to(weight).view(-1, *[1] * (weight.ndim - 1))


def turned_kernels(weight: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Some kernels mirrored or transposed: detail in the wrong direction. Of 1×1 kernels and matrices, inputs shift by one."""
    out = weight.clone()
    chosen = _channels(len(weight), rng)
    if weight.ndim == 4 and weight.shape[-1] > 1 and weight.shape[-1] == weight.shape[-2]:
        out[chosen] = (weight.flip(-1), weight.flip(-2), weight.transpose(-1, -2))[int(rng.integers(3))][chosen]
    else:
        out[chosen] = weight.roll(1, 1)[chosen]
    return out


# -- of activations -------------------------------------------------------------------------------------------------------


def activation_noise(output: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Noise of each channel's deviation: at every position, or smooth over a few of them."""
    shape = list(output.shape)
    cell = int(rng.integers(1, 4)) if output.ndim == 4 else 1
    if cell > 1:
        shape[-2:] = [-(-side // cell) for side in shape[-2:]]
    noise = _noise(tuple(shape), rng, output)
    if cell > 1:
        noise = nn.functional.interpolate(noise, output.shape[-2:], mode="bilinear")
    return output + _deviation(output) * noise


def bent_activations(output: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Another function of themselves: folded, saturated, wrapped or quantised."""
    unit = _deviation(output).clamp_min(1e-8)
    x = output / unit
    bent = (torch.abs, torch.tanh, lambda x: torch.sin(2 * x), torch.round)[int(rng.integers(4))]
    return unit * bent(x)


def _deviation(output: torch.Tensor) -> torch.Tensor:
    """Standard deviation of each channel of N×C×H×W over positions; of other tensors over everything."""
    return output.std((-2, -1), correction=0, keepdim=True) if output.ndim == 4 else output.std(correction=0)


WEIGHT_FAULTS: dict[str, Distortion] = {
    "weight_noise": weight_noise,
    "dropped_channels": dropped_channels,
    "swapped_channels": swapped_channels,
    "flipped_signs": flipped_signs,
    "zeroed_weights": zeroed_weights,
    "rescaled_weights": rescaled_weights,
    "turned_kernels": turned_kernels,
}
OUTPUT_FAULTS: dict[str, Distortion] = {"activation_noise": activation_noise, "bent_activations": bent_activations}
NETWORK_FAULTS: tuple[str, ...] = (*WEIGHT_FAULTS, *OUTPUT_FAULTS)
