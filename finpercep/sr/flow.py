"""`flow`: a Stable Diffusion 3 transformer, flow matching, that sees the LR image in one of three ways (DiT4SR and its kin).

- a ControlNet sees the encoded LR image (`StableDiffusion3ControlNetPipeline`);
- channels: the encoded LR image is stacked under the state, in a transformer with twice the input channels;
- tokens: the encoded LR image stands beside the state, and attention looks across; for transformers trained so.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Pipeline,
)

from finpercep.errors import ConfigError, WeightsError
from finpercep.sr import autoencoder as ae
from finpercep.sr.latent_unet import load_network
from finpercep.sr.noise_path import FlowMatching
from finpercep.sr.pipeline_policy import ATTENTION, LatentCondition, Parts, PipelinePolicy
from finpercep.sr.prompts import Captions, Prompts, Text
from finpercep.sr.settings import Options
from finpercep.sr.sources import fetched, load_pipeline, pipeline_class

_TEXT_ATTENTION = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class FlowPolicy(PipelinePolicy):
    """`SRPolicy` of a Stable Diffusion 3 pipeline; a condition's guide is the encoded LR image as the network sees it."""

    name = "flow"
    denoiser_name = "transformer"
    lora_targets = (*ATTENTION, *_TEXT_ATTENTION)
    defaults: ClassVar[Options] = Options(steps=28)

    @classmethod
    def open(cls, source: str, options: Options) -> Parts:
        """BASE+CONTROLNET, or one folder of a ControlNet pipeline that holds both, or BASE alone for channels and tokens."""
        base, _, control = source.partition("+")
        folder = fetched(base)
        kind = pipeline_class(folder)
        if not kind.startswith("StableDiffusion3"):
            raise WeightsError(f"{source}: expected a Stable Diffusion 3 pipeline, got {kind}")
        more = {"controlnet": load_network(SD3ControlNetModel, control)} if control else {}
        steered = control or "ControlNet" in kind
        pipeline = load_pipeline(
            StableDiffusion3ControlNetPipeline if steered else StableDiffusion3Pipeline, folder, options.dtype, **more
        )
        networks = {"transformer": pipeline.transformer, "vae": pipeline.vae}
        networks |= {"controlnet": pipeline.controlnet} if steered else {}
        return Parts(networks, pipeline.scheduler, Prompts.of_stable_diffusion_3(pipeline))

    @classmethod
    def build(cls, parts: Parts, options: Options, source: str, captions: Captions | None = None) -> Self:
        """See `PipelinePolicy`.

        Raises:
            ConfigError: channels that do not fit the autoencoder's, or a schedule that depends on the image's size.
        """
        channels, given = ae.latent_channels(parts.networks["vae"]), parts.networks["transformer"].config.in_channels
        if given != channels and (given != 2 * channels or "controlnet" in parts.networks):
            raise ConfigError(
                f"{source}: the transformer must take {channels} channels, or {2 * channels} to see the LR image in them"
            )
        if parts.scheduler.config.use_dynamic_shifting:
            raise ConfigError(f"{source}: use_dynamic_shifting must be off in its scheduler: levels may not depend on the image")
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(parts.scheduler.config)
        return cls(parts, FlowMatching(scheduler), options, source=source, scale=options.scale, captions=captions)

    @property
    def control(self) -> Any:
        """The ControlNet, or None."""
        return self._networks.get("controlnet")

    @property
    def lr_multiple(self) -> int:
        """The autoencoder halves the upsampled image, and the transformer takes patches of it."""
        sides = ae.downscaling(self.autoencoder) * self.denoiser.config.patch_size
        return int(sides // math.gcd(sides, self.scale))

    @torch.no_grad()
    def condition(self, lr: torch.Tensor) -> LatentCondition:
        """See `SRPolicy`."""
        latent = self.latents(self.upsampled(lr))
        guide = latent
        if self.control is not None and self.control.config.force_zeros_for_pooled_projection:
            guide = latent + self.latent_scale.shift * self.latent_scale.factor  # such ControlNets never saw the shift
        text, negative = self.texts(lr)
        return LatentCondition(tuple(latent.shape), guide, text=text, negative=negative)

    def evaluate(self, x: torch.Tensor, timestep: torch.Tensor, condition: LatentCondition, text: Text | None) -> torch.Tensor:
        """See `PipelinePolicy`."""
        assert text is not None
        timesteps = timestep.expand(len(x))
        residuals = None if self.control is None else self._control(x, timesteps, condition, text)
        width = x.shape[-1]
        if self.control is None:
            stacked = self.denoiser.config.in_channels == 2 * x.shape[1]
            x = torch.cat([x, condition.guide], dim=1 if stacked else -1)
        out: torch.Tensor = self.denoiser(
            hidden_states=x,
            timestep=timesteps,
            encoder_hidden_states=text.hidden,
            pooled_projections=text.pooled,
            block_controlnet_hidden_states=residuals,
        ).sample
        return out[..., :width]

    def _control(self, x: torch.Tensor, timesteps: torch.Tensor, condition: LatentCondition, text: Text) -> list[torch.Tensor]:
        config = self.control.config
        pooled = text.pooled
        assert pooled is not None
        residuals: list[torch.Tensor] = self.control(
            hidden_states=x,
            timestep=timesteps,
            encoder_hidden_states=None if config.joint_attention_dim is None else text.hidden,
            pooled_projections=torch.zeros_like(pooled) if config.force_zeros_for_pooled_projection else pooled,
            controlnet_cond=condition.guide,
            conditioning_scale=self.options.control_scale,
            return_dict=False,
        )[0]
        return residuals
