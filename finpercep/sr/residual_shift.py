"""`residual-shift`: few steps from the LR image to the clean one (ResShift, arXiv 2307.12348), in pixels or in latents.

A folder holds ``unet/`` (`UNet2DModel`; sees the state and the upsampled LR state stacked, predicts x0), ``scheduler/``
(`ResidualShiftScheduler`), and for latents ``vqvae/`` (`VQModel`) or ``vae/`` (`AutoencoderKL`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import AutoencoderKL, UNet2DModel, VQModel

from finpercep.errors import ConfigError, WeightsError
from finpercep.sr import autoencoder as ae
from finpercep.sr.controlnet import LatentStartPolicy
from finpercep.sr.pipeline_policy import LatentCondition, Parts
from finpercep.sr.prompts import Captions, Text
from finpercep.sr.residual_scheduler import ResidualShift, ResidualShiftScheduler
from finpercep.sr.settings import Options
from finpercep.sr.sources import fetched, load_from


class ResidualShiftPolicy(LatentStartPolicy):
    """`SRPolicy` of a ResShift model; a condition's latent is y."""

    name = "residual-shift"
    defaults: ClassVar[Options] = Options(steps=4, eta=1.0, trained=("denoiser",), lora_rank=0)

    @classmethod
    def open(cls, source: str, options: Options) -> Parts:  # noqa: ARG003
        """See `PipelinePolicy`."""
        folder = fetched(source)
        if not (folder / "unet").is_dir():
            raise WeightsError(f"{source}: expected a folder with unet/ and scheduler/, and vqvae/ or vae/ for latents")
        networks: dict[str, Any] = {"unet": load_from(UNet2DModel, folder / "unet")}
        for name, loader in (("vqvae", VQModel), ("vae", AutoencoderKL)):
            if (folder / name).is_dir():
                networks["vae"] = load_from(loader, folder / name)
        return Parts(networks, load_from(ResidualShiftScheduler, folder / "scheduler"))

    @classmethod
    def build(cls, parts: Parts, options: Options, source: str, captions: Captions | None = None) -> Self:
        """See `PipelinePolicy`. Raises `ConfigError` when the UNet does not take two states."""
        channels, given = ae.latent_channels(parts.networks.get("vae")), parts.networks["unet"].config.in_channels
        if given != 2 * channels:
            raise ConfigError(f"{source}: the UNet must take {2 * channels} channels, state and LR state, got {given}")
        return cls(parts, ResidualShift(parts.scheduler), options, source=source, scale=options.scale, captions=captions)

    def prior(self, condition: LatentCondition) -> torch.Tensor | None:
        """See `DiffusionPolicy`: the upsampled LR image as a state."""
        return condition.latent

    def start(self, condition: LatentCondition, noise: torch.Tensor) -> torch.Tensor:
        """See `DiffusionPolicy`: y and noise."""
        assert condition.latent is not None
        return self.path.add_noise(condition.latent, noise, self.levels[0].to(noise.device), condition.latent)

    def evaluate(self, x: torch.Tensor, timestep: torch.Tensor, condition: LatentCondition, text: Text | None) -> torch.Tensor:  # noqa: ARG002
        """See `PipelinePolicy`."""
        assert condition.latent is not None and isinstance(self.path, ResidualShift)
        scaled = self.path.scheduler.scale_model_input(x, timestep)
        out: torch.Tensor = self.denoiser(torch.cat([scaled, condition.latent], dim=1), timestep).sample
        return out


def save_residual_shift(folder: Path, unet: UNet2DModel, scheduler: ResidualShiftScheduler, autoencoder: Any = None) -> None:
    """Write a folder that ``residual-shift:FOLDER`` names."""
    unet.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    if autoencoder is not None:
        autoencoder.save_pretrained(folder / ("vqvae" if isinstance(autoencoder, VQModel) else "vae"))
