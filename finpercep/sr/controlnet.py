"""`controlnet`: a Stable Diffusion UNet steered by a ControlNet that sees the upsampled LR image (as SeeSR, PASD and DiffBIR).

Sampling starts from the upsampled LR image, encoded and noised to the first step's level: with pure noise there the model would
meet a signal at t_max that it was never trained without (arXiv 2305.08891).
"""

from __future__ import annotations

import math
from typing import Self

import torch
from diffusers import ControlNetModel, StableDiffusionControlNetImg2ImgPipeline

from finpercep.errors import WeightsError
from finpercep.sr import autoencoder as ae
from finpercep.sr.latent_unet import ddim_scheduler, halvings, load_network
from finpercep.sr.noise_path import VariancePreserving
from finpercep.sr.pipeline_policy import LatentCondition, Parts, PipelinePolicy
from finpercep.sr.prompts import Captions, Prompts, Text
from finpercep.sr.settings import Options
from finpercep.sr.sources import fetched, load_pipeline, pipeline_class


class LatentStartPolicy(PipelinePolicy):
    """A policy over a latent UNet whose conditions hold the encoded upsampled LR image; the guide is that image in [0, 1]."""

    @property
    def lr_multiple(self) -> int:
        """The autoencoder and the UNet halve the upsampled image."""
        sides = ae.downscaling(self.autoencoder) * halvings(self.denoiser)
        return sides // math.gcd(sides, self.scale)

    @torch.no_grad()
    def condition(self, lr: torch.Tensor) -> LatentCondition:
        """See `SRPolicy`."""
        upsampled = self.upsampled(lr)
        latent = self.latents(upsampled)
        text, negative = self.texts(lr)
        return LatentCondition(tuple(latent.shape), upsampled, latent, text, negative)


class ControlNetPolicy(LatentStartPolicy):
    """`SRPolicy` of a Stable Diffusion pipeline and a ControlNet."""

    name = "controlnet"

    @classmethod
    def open(cls, source: str, options: Options) -> Parts:
        """BASE+CONTROLNET, or one folder of a ControlNet pipeline that holds both."""
        base, _, control = source.partition("+")
        folder = fetched(base)
        kind = pipeline_class(folder)
        if not kind.startswith("StableDiffusion") or not (control or "ControlNet" in kind):
            raise WeightsError(f"{source}: expected a StableDiffusionControlNet pipeline, or BASE+CONTROLNET, got {kind} alone")
        more = {"controlnet": load_network(ControlNetModel, control)} if control else {}
        pipeline = load_pipeline(
            StableDiffusionControlNetImg2ImgPipeline,
            folder,
            options.dtype,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **more,
        )
        networks = {"unet": pipeline.unet, "controlnet": pipeline.controlnet, "vae": pipeline.vae}
        return Parts(networks, pipeline.scheduler, Prompts.of_stable_diffusion(pipeline))

    @classmethod
    def build(cls, parts: Parts, options: Options, source: str, captions: Captions | None = None) -> Self:
        """See `PipelinePolicy`."""
        path = VariancePreserving(ddim_scheduler(parts.scheduler))
        return cls(parts, path, options, source=source, scale=options.scale, captions=captions)

    def start(self, condition: LatentCondition, noise: torch.Tensor) -> torch.Tensor:
        """See `DiffusionPolicy`: the encoded LR image at the first step's level."""
        assert condition.latent is not None
        return self.path.add_noise(condition.latent, noise, self.levels[0].to(noise.device), None)

    def evaluate(self, x: torch.Tensor, timestep: torch.Tensor, condition: LatentCondition, text: Text | None) -> torch.Tensor:
        """See `PipelinePolicy`."""
        assert text is not None
        down, middle = self._networks["controlnet"](
            x,
            timestep,
            encoder_hidden_states=text.hidden,
            controlnet_cond=condition.guide,
            conditioning_scale=self.options.control_scale,
            return_dict=False,
        )
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        out: torch.Tensor = self.denoiser(x, timestep, encoder_hidden_states=text.hidden, **residuals).sample
        return out
