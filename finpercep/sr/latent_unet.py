"""`latent-unet`: a latent UNet that sees the LR image beside its state, at the latent's own resolution.

Two published models: the Stable Diffusion x4 upscaler (text; the LR image slightly noised, and the UNet told how much) and LDM-SR
(no text; the LR image as it is). Both upscale by their autoencoder's factor, 4.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DDIMScheduler, LDMSuperResolutionPipeline, StableDiffusionUpscalePipeline
from torch import nn

from finpercep.errors import ConfigError, WeightsError
from finpercep.sr import autoencoder as ae
from finpercep.sr.noise_path import VariancePreserving
from finpercep.sr.pipeline_policy import LatentCondition, Parts, PipelinePolicy
from finpercep.sr.prompts import Captions, Prompts, Text
from finpercep.sr.settings import Options
from finpercep.sr.sources import fetched, load_from, load_pipeline, pipeline_class
from finpercep.sr.tiled import Tile

LR_NOISE_SEED = 0
"""The LR image's noise is the same for every image, so that its condition depends on the image alone."""


def ddim_scheduler(scheduler: Any, **changes: Any) -> DDIMScheduler:
    """The schedule of any Stable Diffusion scheduler as DDIM's; x̂0 is never clipped, and a sample ends at x̂0 itself."""
    adjusted: DDIMScheduler = DDIMScheduler.from_config(scheduler.config, clip_sample=False, thresholding=False, **changes)
    return adjusted


def halvings(unet: Any) -> int:
    """What the sides of a UNet's state must divide by."""
    return int(2 ** (len(unet.config.block_out_channels) - 1))


class LatentUNetPolicy(PipelinePolicy):
    """`SRPolicy` of both models; a condition's guide is the LR image in [−1, 1] as the UNet sees it, noise included."""

    name = "latent-unet"

    @classmethod
    def open(cls, source: str, options: Options) -> Parts:
        """See `PipelinePolicy`."""
        folder = fetched(source)
        kind = pipeline_class(folder)
        if kind == "LDMSuperResolutionPipeline":
            pipeline = load_pipeline(LDMSuperResolutionPipeline, folder, options.dtype)
            return Parts({"unet": pipeline.unet, "vae": pipeline.vqvae}, pipeline.scheduler)
        if kind != "StableDiffusionUpscalePipeline":
            raise WeightsError(f"{source}: expected StableDiffusionUpscalePipeline or LDMSuperResolutionPipeline, got {kind}")
        pipeline = load_pipeline(StableDiffusionUpscalePipeline, folder, options.dtype, **text_free_options())
        prompts = Prompts.of_stable_diffusion(pipeline)
        networks = {"unet": pipeline.unet, "vae": pipeline.vae}
        return Parts(networks, pipeline.scheduler, prompts, {"low_res_scheduler": pipeline.low_res_scheduler})

    @classmethod
    def build(cls, parts: Parts, options: Options, source: str, captions: Captions | None = None) -> Self:
        """See `PipelinePolicy`. Raises `ConfigError` when another ``scale`` than the autoencoder's is asked for."""
        scale = ae.downscaling(parts.networks["vae"])
        if options.scale != scale:
            raise ConfigError(f"{source}: scale must be {scale}, got {options.scale}")
        path = VariancePreserving(ddim_scheduler(parts.scheduler))
        return cls(parts, path, options, source=source, scale=scale, captions=captions)

    @property
    def lr_multiple(self) -> int:
        """The UNet halves its state."""
        return halvings(self.denoiser)

    @torch.no_grad()
    def condition(self, lr: torch.Tensor) -> LatentCondition:
        """See `SRPolicy`."""
        guide = 2 * lr - 1
        if (scheduler := self.extra.get("low_res_scheduler")) is not None:
            noise = torch.randn((1, *lr.shape[1:]), generator=torch.Generator().manual_seed(LR_NOISE_SEED)).to(lr)
            level = torch.tensor([self.options.lr_noise_level], device=lr.device)
            guide = scheduler.add_noise(guide, noise.expand_as(guide), level)
        text, negative = self.texts(lr)
        shape = (len(lr), ae.latent_channels(self.autoencoder), *lr.shape[-2:])
        return LatentCondition(shape, guide, text=text, negative=negative)

    def condition_of_tile(self, lr: torch.Tensor, tile: Tile) -> LatentCondition:
        """See `DiffusionPolicy`: the LR image's noise is the whole image's."""
        whole = self.condition(lr)
        return replace(whole, shape=(*whole.shape[:2], tile.height, tile.width), guide=tile.of(whole.guide, lr.shape[-2:]))  # type: ignore[arg-type]

    def evaluate(self, x: torch.Tensor, timestep: torch.Tensor, condition: LatentCondition, text: Text | None) -> torch.Tensor:
        """See `PipelinePolicy`."""
        words = {}
        if text is not None:
            labels = torch.full((len(x),), self.options.lr_noise_level, device=x.device)
            words = {"encoder_hidden_states": text.hidden, "class_labels": labels}
        out: torch.Tensor = self.denoiser(torch.cat([x, condition.guide], dim=1), timestep, **words).sample
        return out


def text_free_options() -> dict[str, None]:
    """Options of `from_pretrained` without what answers a false alarm with a black picture."""
    return {"safety_checker": None, "watermarker": None, "feature_extractor": None}


def load_network(loader: Any, source: str) -> nn.Module:
    """One network of its own, from a folder or a hub id."""
    folder: Path = fetched(source, single=True)
    network: nn.Module = load_from(loader, folder)
    return network
