"""Architectures of the zoo: small generators that differ in body, upsampler and skip, and a patch discriminator.

Every generator takes LR images N×3×h×w (RGB in [0, 1]) and returns N×3×h·scale×w·scale, not clamped. Sizes come from
`GeneratorConfig` alone. Knows no losses, no data, no files.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from data_synth.zoo.errors import ZooError

Body = Literal["residual", "dense"]
Upsampler = Literal["pixel-shuffle", "nearest", "transposed"]
Skip = Literal["bicubic", "none"]

BODIES: tuple[Body, ...] = ("residual", "dense")
UPSAMPLERS: tuple[Upsampler, ...] = ("pixel-shuffle", "nearest", "transposed")
SKIPS: tuple[Skip, ...] = ("bicubic", "none")

_RESIDUAL_SCALE = 0.2  # RRDB's β (Wang et al., 2018, ESRGAN, §3.1)


@dataclass(frozen=True)
class GeneratorConfig:
    """Everything that defines a generator's shape.

    Attributes:
        body: ``residual``: EDSR blocks (Lim et al., 2017); ``dense``: densely connected blocks with scaled residuals (ESRGAN's).
        width: channels of the body.
        blocks: number of blocks.
        tail: channels at the output's resolution.
        upsampler: how each doubling is made. ``transposed`` has kernel 3 and stride 2, whose uneven overlap makes
            checkerboards (Odena et al., 2016).
        refine: convolutions at the output's resolution, before the last.
        noise: channels of Gaussian noise at the output's resolution, fed to the first of the ``refine`` convolutions: what a
            network can make texture of that the LR image does not hold, without falling back on a periodic pattern.
        skip: what the network's output is added to: the bicubic upsampling, or nothing.
        scale: upscaling factor, 2 or 4.
    """

    body: Body = "residual"
    width: int = 32
    blocks: int = 6
    tail: int = 16
    upsampler: Upsampler = "pixel-shuffle"
    refine: int = 0
    noise: int = 0
    skip: Skip = "bicubic"
    scale: int = 4

    def __post_init__(self) -> None:
        for name, allowed in (("body", BODIES), ("upsampler", UPSAMPLERS), ("skip", SKIPS), ("scale", (2, 4))):
            if getattr(self, name) not in allowed:
                raise ZooError(f"a generator's {name} must be one of {allowed}, got {getattr(self, name)!r}")
        if min(self.width, self.blocks, self.tail) < 1 or self.width % 2 or min(self.refine, self.noise) < 0:
            raise ZooError(f"width (even), blocks and tail must be positive, refine and noise not negative, got {self}")
        if self.noise and not self.refine:
            raise ZooError(f"noise enters through a refine convolution, got noise={self.noise} and refine=0; set refine=1")


class ResidualBlock(nn.Module):
    """conv, ReLU, conv, added to the input: EDSR's block without batch normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features N×width×h×w in and out."""
        return x + self.second(F.relu(self.first(x), inplace=True))


class DenseBlock(nn.Module):
    """Three convolutions, each of which sees all before it, added to the input at a fifth: a small RRDB."""

    def __init__(self, width: int) -> None:
        super().__init__()
        growth = width // 2
        self.first = nn.Conv2d(width, growth, 3, padding=1)
        self.second = nn.Conv2d(width + growth, growth, 3, padding=1)
        self.last = nn.Conv2d(width + 2 * growth, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features N×width×h×w in and out."""
        features = torch.cat([x, F.leaky_relu(self.first(x), 0.2, inplace=True)], dim=1)
        features = torch.cat([features, F.leaky_relu(self.second(features), 0.2, inplace=True)], dim=1)
        return x + _RESIDUAL_SCALE * self.last(features)


class Doubling(nn.Module):
    """Twice the height and width, ``width`` channels to ``tail``."""

    def __init__(self, upsampler: Upsampler, width: int, tail: int) -> None:
        super().__init__()
        self.upsampler = upsampler
        self.conv: nn.Module
        if upsampler == "transposed":
            self.conv = nn.ConvTranspose2d(width, tail, 3, stride=2, padding=1, output_padding=1)
        else:
            self.conv = nn.Conv2d(width, 4 * tail if upsampler == "pixel-shuffle" else tail, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """N×width×h×w → N×tail×2h×2w."""
        if self.upsampler == "pixel-shuffle":
            return F.leaky_relu(F.pixel_shuffle(self.conv(x), 2), 0.2, inplace=True)
        if self.upsampler == "nearest":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        return F.leaky_relu(self.conv(x), 0.2, inplace=True)


class Generator(nn.Module):
    """LR image to SR image: head, body, doublings, output convolution, plus the skip."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        block = ResidualBlock if config.body == "residual" else DenseBlock
        self.head = nn.Conv2d(3, config.width, 3, padding=1)
        self.body = nn.Sequential(*(block(config.width) for _ in range(config.blocks)))
        widths = [config.width] + [config.tail] * int(math.log2(config.scale))
        self.doublings = nn.Sequential(
            *(Doubling(config.upsampler, before, after) for before, after in itertools.pairwise(widths))
        )
        self.refine = nn.ModuleList(
            nn.Conv2d(config.tail + (config.noise if layer == 0 else 0), config.tail, 3, padding=1)
            for layer in range(config.refine)
        )
        # Behind transposed convolutions a 3×3 output layer would smooth away the checkerboard that they are here for.
        kernel = 1 if config.upsampler == "transposed" else 3
        self.output = nn.Conv2d(config.tail, 3, kernel, padding=kernel // 2)
        with torch.no_grad():
            self.output.weight.mul_(0.1)  # starts near its skip, from where a short training gets further

    def forward(self, lr: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """SR images N×3×h·scale×w·scale of ``lr`` (N×3×h×w in [0, 1]), not clamped.

        ``noise``: N×config.noise×h·scale×w·scale, standard normal; drawn from seed 0 unless given. Networks without noise
        ignore it.
        """
        features = self.head(2 * lr - 1)
        features = self.doublings(features + self.body(features))
        if self.config.noise:
            noise = seeded_noise(self.config, lr, [0] * len(lr)) if noise is None else noise
            features = torch.cat([features, noise.to(features)], dim=1)
        for layer in self.refine:
            features = F.leaky_relu(layer(features), 0.2, inplace=True)
        image = self.output(features).to(lr.dtype)  # under autocast: eight bits are too few to add a correction to
        if self.config.skip == "none":
            return image + 0.5  # starts at mid-grey
        return image + F.interpolate(lr, scale_factor=self.config.scale, mode="bicubic", align_corners=False)


def seeded_noise(config: GeneratorConfig, lr: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """Noise N×config.noise×h·scale×w·scale float32 for ``lr`` (N×3×h×w), drawn on the CPU; an image's from its seed alone."""
    shape = (config.noise, *(side * config.scale for side in lr.shape[-2:]))
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


class PatchDiscriminator(nn.Module):
    """Realness of every patch: spectrally normalised (Miyato et al., 2018) convolutions, three halvings, a map of logits."""

    def __init__(self, width: int = 32, kernel: int = 4) -> None:
        super().__init__()
        channels = [3, width, 2 * width, 3 * width]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            layers += [spectral_norm(nn.Conv2d(before, after, kernel, stride=2, padding=1)), nn.LeakyReLU(0.2)]
            layers += [spectral_norm(nn.Conv2d(after, after, 3, padding=1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(channels[-1], 1, 3, padding=1)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits N×1×H/8×W/8 of images N×3×H×W in [0, 1]."""
        return self.layers(2 * image - 1)


class RandomFeatures(nn.Module):
    """Features of a fixed random convolutional network: orthogonal filters, ReLU, halving; a perceptual loss without weights.

    Untrained filters carry texture statistics surprisingly well (Ustyuzhaninov et al., 2016, arXiv 1606.00021).
    """

    def __init__(self, seed: int = 0, channels: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList()
        for before, after in zip((3, *channels), channels, strict=False):
            layer = nn.Conv2d(before, after, 3, padding=1)
            nn.init.orthogonal_(layer.weight, gain=math.sqrt(2), generator=generator)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            self.layers.append(layer)
        self.requires_grad_(False)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Features of ``image`` (N×3×H×W in [0, 1]), one tensor a level, the first at full resolution."""
        features = []
        x = 2 * image - 1
        for layer in self.layers:
            x = F.relu(layer(x))
            features.append(x)
            x = F.avg_pool2d(x, 2)
        return features


def build_generator(config: GeneratorConfig, seed: int = 0) -> Generator:
    """A generator with initial weights that ``seed`` alone decides; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Generator(config)


def build_discriminator(width: int, kernel: int, seed: int = 0) -> PatchDiscriminator:
    """A discriminator with initial weights that ``seed`` alone decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PatchDiscriminator(width, kernel)


def count_parameters(module: nn.Module) -> int:
    """Number of weights."""
    return sum(parameter.numel() for parameter in module.parameters())
