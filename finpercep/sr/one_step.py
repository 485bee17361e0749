"""`one-step`: the encoded LR image is the state at t_max, and one evaluation of the UNet makes x̂0 (OSEDiff, arXiv 2406.08177).

Nothing is drawn: a sample is a function of the LR image, add_noise gives the same state whatever x0 is, and the supervised loss
is the squared error of x̂0. Differs from OSEDiff in that the autoencoder's encoder is never trained.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Self

import torch
from diffusers import StableDiffusionPipeline

from finpercep.errors import ConfigError, WeightsError
from finpercep.sr.controlnet import LatentStartPolicy
from finpercep.sr.latent_unet import ddim_scheduler
from finpercep.sr.noise_path import Generators, VariancePreserving
from finpercep.sr.pipeline_policy import LatentCondition, Parts
from finpercep.sr.prompts import Captions, Prompts, Text
from finpercep.sr.settings import Options
from finpercep.sr.sources import fetched, load_pipeline, pipeline_class
from finpercep.sr.transition import Sampler


class OneStepPolicy(LatentStartPolicy):
    """`SRPolicy` of a Stable Diffusion pipeline used in one step."""

    name = "one-step"
    draws_start: ClassVar[bool] = False
    defaults: ClassVar[Options] = Options(steps=1, trained=("denoiser",))

    @classmethod
    def open(cls, source: str, options: Options) -> Parts:
        """See `PipelinePolicy`."""
        folder = fetched(source)
        kind = pipeline_class(folder)
        if not kind.startswith("StableDiffusion"):
            raise WeightsError(f"{source}: expected a Stable Diffusion pipeline, got {kind}")
        quiet = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = load_pipeline(StableDiffusionPipeline, folder, options.dtype, **quiet)
        return Parts({"unet": pipeline.unet, "vae": pipeline.vae}, pipeline.scheduler, Prompts.of_stable_diffusion(pipeline))

    @classmethod
    def build(cls, parts: Parts, options: Options, source: str, captions: Captions | None = None) -> Self:
        """See `PipelinePolicy`."""
        path = VariancePreserving(ddim_scheduler(parts.scheduler, timestep_spacing="trailing"))  # its one step is t_max
        return cls(parts, path, options, source=source, scale=options.scale, captions=captions)

    def _set_sampler(self, sampler: Sampler) -> None:
        if sampler.num_steps != 1:
            raise ConfigError(f"{self.name} is sampled in 1 step, got {sampler.num_steps}")
        super()._set_sampler(sampler)

    def start(self, condition: LatentCondition, noise: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """See `DiffusionPolicy`: the encoded LR image, without noise."""
        assert condition.latent is not None
        return condition.latent

    def add_noise(
        self,
        clean: torch.Tensor,
        index: int,  # noqa: ARG002
        condition: LatentCondition,
        generators: Generators,  # noqa: ARG002
    ) -> torch.Tensor:
        """See `SRPolicy`: the one state there is, which depends on the LR image alone."""
        return self.start(condition, clean)

    def denoising_errors(
        self,
        clean: torch.Tensor,
        condition: LatentCondition,
        generators: Generators,  # noqa: ARG002
    ) -> torch.Tensor:
        """See `SRPolicy`: mean squared error of x̂0; nothing is drawn."""
        predicted = self.predict_clean(self.start(condition, clean), 0, replace(condition, negative=None))
        return ((predicted - clean) ** 2).flatten(1).mean(dim=1)

    def evaluate(self, x: torch.Tensor, timestep: torch.Tensor, condition: LatentCondition, text: Text | None) -> torch.Tensor:  # noqa: ARG002
        """See `PipelinePolicy`."""
        assert text is not None
        out: torch.Tensor = self.denoiser(x, timestep, encoder_hidden_states=text.hidden).sample
        return out
