"""Images to latents and back: diffusers' KL and VQ autoencoders, and none at all, behind one function each way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

Autoencoder = Any
"""`diffusers.AutoencoderKL` or `diffusers.VQModel`."""


@dataclass(frozen=True)
class LatentScale:
    """latent = (autoencoder's latent − shift)·factor."""

    factor: float = 1.0
    shift: float = 0.0


def latent_scale(autoencoder: Autoencoder | None) -> LatentScale:
    """As diffusers' pipelines scale them: KL latents as their config says, VQ latents not at all."""
    if autoencoder is None or not hasattr(autoencoder.config, "latents_mean"):
        return LatentScale()
    return LatentScale(float(autoencoder.config.scaling_factor), float(autoencoder.config.shift_factor or 0.0))


def downscaling(autoencoder: Autoencoder | None) -> int:
    """Image px along one latent position; 1 without an autoencoder."""
    return 1 if autoencoder is None else int(2 ** (len(autoencoder.config.block_out_channels) - 1))


def latent_channels(autoencoder: Autoencoder | None) -> int:
    """Channels of a latent."""
    return 3 if autoencoder is None else int(autoencoder.config.latent_channels)


def encode(autoencoder: Autoencoder | None, images: torch.Tensor, scale: LatentScale) -> torch.Tensor:
    """Latents of images N×3×H×W in [0, 1]; of a KL autoencoder the mean, so that equal images have equal latents."""
    pixels = 2 * images - 1
    if autoencoder is None:
        return pixels
    encoded = autoencoder.encode(pixels)
    latents: torch.Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    return (latents.float() - scale.shift) * scale.factor


def decode(autoencoder: Autoencoder | None, latents: torch.Tensor, scale: LatentScale) -> torch.Tensor:
    """Images N×3×H×W in [0, 1] of latents, differentiable (VQ: straight through the codebook)."""
    pixels = latents if autoencoder is None else autoencoder.decode(latents / scale.factor + scale.shift).sample
    return (pixels.float() / 2 + 0.5).clamp(0, 1)
