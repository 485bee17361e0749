"""SR networks that never learnt: bicubic upsampling plus what a random shallow network makes of its detail. Endless new faults.

In the spirit of RandConv (Xu et al. 2021, arXiv 2007.13003), turned from inputs to outputs: each call has a network of its own,
architecture and weights drawn from the call. So that it looks like an SR fault rather than garbage, the network sees
the detail at unit contrast and adds a residual without low frequencies, of given strength, mostly where the image has detail.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from data_synth.device import device_mark, resolve_device
from data_synth.sr_models.low_band import low_band
from data_synth.sr_models.protocol import Span, SRCall, SRModelError

VERSION = "1"
"""Raise it whenever a change of this file changes an output."""

Nonlinearity = Callable[[torch.Tensor], torch.Tensor]
NONLINEARITIES: tuple[Nonlinearity, ...] = (
    F.relu,
    torch.tanh,
    torch.sin,
    torch.abs,
    lambda x: F.leaky_relu(x, 0.2),
    lambda x: torch.exp(-x * x),
)

SETTINGS: Mapping[str, Span] = {
    "depth": Span(1, 4, "integer"),  # layers
    "width": Span(4, 24, "log"),  # channels; narrower where the kernels are large, see _affordable
    "reach": Span(1, 3, "integer"),  # kernels are 2·reach + 1 px wide
    "nonlinearity": Span(0, len(NONLINEARITIES) - 1, "integer"),
    "gain": Span(0.7, 4, "log"),  # of each layer; large: the nonlinearity bites
    "grid": Span(0, 1, "integer"),  # 0: the output's pixels; 1: LR pixels, then a pixel shuffle (period-`scale` patterns)
    "coarse": Span(0, 1, "integer"),  # 1: the residual is smoothed to blotches
    "strength": Span(0.01, 0.09, "log"),  # RMS of the residual, in [0, 1] units; less in images of little contrast
    "chroma": Span(0, 0.7),  # share of the residual's colour that is kept
    "focus": Span(0.3, 1),  # 0: as strong everywhere; 1: proportional to local contrast
    "kept_detail": Span(0.3, 1.5),  # share of the bicubic image's own detail that is kept; above 1 sharpens
}
_COST = 1000
"""Most multiplications per output pixel and layer."""
_FLOOR = 0.02
"""Contrast, in [0, 1] units, below which detail is taken for noise and not amplified."""


class RandomNetworkSR:
    """`SRModel` of one random network a call."""

    family = "random"
    settings = SETTINGS

    def __init__(self, scale: int, *, name: str = "random", device: str = "auto") -> None:
        if scale < 2:
            raise SRModelError(f"scale must be at least 2, got {scale}")
        self.scale, self.name = scale, name
        self._device = resolve_device(device)
        self.version = VERSION + device_mark(self._device)

    def covers(self, source_id: str) -> bool:  # noqa: ARG002
        """Any photo."""
        return True

    @torch.no_grad()
    def __call__(self, lr: torch.Tensor, calls: Sequence[SRCall]) -> torch.Tensor:
        """SR images of ``lr`` (N×3×h×w float32 in [0, 1]) on the CPU, in [0, 1]."""
        if len(calls) != len(lr):
            raise SRModelError(f"SR model {self.name}: expected one call an image, got {len(calls)} for {len(lr)} images")
        images = lr.to(self._device)
        made = [self._one(image[None], call) for image, call in zip(images, calls, strict=True)]
        return torch.cat(made).cpu()

    def _one(self, lr: torch.Tensor, call: SRCall) -> torch.Tensor:
        s = call.settings
        up = F.interpolate(lr, scale_factor=self.scale, mode="bicubic", align_corners=False)
        low = low_band(up, 2 * self.scale)
        detail = up - low
        contrast = low_band(detail.square().mean(1, keepdim=True), 2 * self.scale).clamp_min(0).sqrt()
        network = random_network(s, call.seed, scale=self.scale if round(s["grid"]) else 1)
        residual = network(detail / (contrast + _FLOOR))
        if round(s["coarse"]):
            residual = low_band(residual, self.scale)
        residual = residual - low_band(residual, 4 * self.scale)
        grey = residual.mean(1, keepdim=True)
        residual = grey + s["chroma"] * (residual - grey)
        residual = residual * (s["focus"] * contrast / contrast.mean().clamp_min(1e-6) + 1 - s["focus"])
        strength = (1.5 * contrast.mean() + 0.01).clamp_max(
            s["strength"]
        )  # a residual far above the image's own detail is no SR fault
        residual = residual * (strength / residual.square().mean().sqrt().clamp_min(1e-6))
        return (low + s["kept_detail"] * detail + residual).clamp(0, 1)


@dataclass(frozen=True)
class RandomNetwork:
    """A plain convolutional network.

    Attributes:
        weights: of each layer, Cout×Cin×k×k; the last gives 3·scale² channels.
        nonlinearity: between layers.
        scale: 1, or the factor of the pixel unshuffle before the first layer and the shuffle after the last.
    """

    weights: tuple[torch.Tensor, ...]
    nonlinearity: Nonlinearity
    scale: int

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Residual 1×3×H×W of ``image`` 1×3×H×W; sides must be multiples of `scale`."""
        # the LR grid sees every pixel once: its own detail, at LR resolution
        x = F.avg_pool2d(image, self.scale) if self.scale > 1 else image
        for index, weight in enumerate(self.weights):
            margin = weight.shape[-1] // 2
            x = F.conv2d(F.pad(x, (margin,) * 4, mode="replicate"), weight.to(x))
            if index < len(self.weights) - 1:
                x = self.nonlinearity(x)
                x = x - x.mean((2, 3), keepdim=True)
        return F.pixel_shuffle(x, self.scale) if self.scale > 1 else x


def random_network(settings: Mapping[str, float], seed: int, *, scale: int) -> RandomNetwork:
    """The network that ``settings`` (see `SETTINGS`) and ``seed`` stand for."""
    depth, kernel = round(settings["depth"]), 2 * round(settings["reach"]) + 1
    width = _affordable(round(settings["width"]), kernel, scale)
    channels = [3, *[width] * depth, 3 * scale**2]
    generator = torch.Generator().manual_seed(seed)
    weights = []
    for c_in, c_out in itertools.pairwise(channels):
        weight = torch.randn(c_out, c_in, kernel, kernel, generator=generator)
        weights.append(weight * (settings["gain"] / math.sqrt(c_in * kernel**2)))
    return RandomNetwork(tuple(weights), NONLINEARITIES[round(settings["nonlinearity"])], scale)


def _affordable(width: int, kernel: int, scale: int) -> int:
    """``width``, or the widest layer that keeps within `_COST`."""
    return max(2, min(width, int(math.sqrt(_COST * scale**2) / kernel)))
