"""Diffusion SR through diffusers pipelines, from a folder or a hub id, with settings drawn from ranges.

Early-stopped, over-guided and over-noised samples are where diffusion artefacts live: the ranges reach into them on purpose.
Which pipeline a folder holds is read from its `model_index.json`. A safety checker in it is not loaded: it answers a false
alarm with a black picture, which would become a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from data_synth.device import device_mark, resolve_device
from data_synth.library_errors import first_line
from data_synth.sr_models.pipeline_files import fetched, files_digest, pipeline_class
from data_synth.sr_models.protocol import Span, SRCall, SRModelError

PROMPT = "a sharp, detailed photograph, high quality"
NEGATIVE_PROMPT = "blurry, noisy, low resolution, compression artefacts, painting, cartoon"
"""Guidance pushes from the second towards the first; without words to push between, it would do nothing."""

Runner = Callable[[Any, torch.Tensor, Mapping[str, float], torch.Generator], torch.Tensor]
"""(pipeline, padded input 1×3×h×w in [0, 1] on its device, settings, noise) → image 1×3×H×W in [0, 1]."""


@dataclass(frozen=True)
class PipelineKind:
    """How one pipeline class is used for SR.

    Attributes:
        loader: name of the diffusers class that loads it.
        settings: default ranges.
        run: one image.
        upsampled: the pipeline refines an image already brought to the output's size, so its scale is free.
        autoencoder: the component that decodes latents; its downscaling is the scale of pipelines that work at the input's size.
    """

    loader: str
    settings: Mapping[str, Span]
    run: Runner
    upsampled: bool = False
    autoencoder: str = "vae"


def _run_upscale(pipeline: Any, image: torch.Tensor, settings: Mapping[str, float], generator: torch.Generator) -> torch.Tensor:
    out: torch.Tensor = pipeline(
        prompt=PROMPT,
        negative_prompt=NEGATIVE_PROMPT,
        image=image,
        num_inference_steps=round(settings["steps"]),
        guidance_scale=settings["guidance"],
        noise_level=min(round(settings["noise_level"]), pipeline.config.max_noise_level),
        generator=generator,
        output_type="pt",
    ).images
    return out


def _run_latent(pipeline: Any, image: torch.Tensor, settings: Mapping[str, float], generator: torch.Generator) -> torch.Tensor:
    steps = round(settings["steps"])
    # this pipeline takes tensors as they are, in [−1, 1]
    call = {"num_inference_steps": steps, "eta": settings["eta"], "generator": generator, "output_type": "pt"}
    out: torch.Tensor = pipeline(2 * image - 1, **call).images
    return out


def _run_controlnet(
    pipeline: Any, image: torch.Tensor, settings: Mapping[str, float], generator: torch.Generator
) -> torch.Tensor:
    steps = round(settings["steps"])
    out: torch.Tensor = pipeline(
        prompt=PROMPT,
        negative_prompt=NEGATIVE_PROMPT,
        image=image,
        control_image=image,
        height=image.shape[-2],
        width=image.shape[-1],
        num_inference_steps=steps,
        strength=max(settings["strength"], (1 + 1e-6) / steps),  # at least one step is taken
        guidance_scale=settings["guidance"],
        controlnet_conditioning_scale=settings["control"],
        generator=generator,
        output_type="pt",
    ).images
    return out


_STEPS = Span(4, 40, "integer")
_GUIDANCE = Span(1, 15)
_CONTROLNET = PipelineKind(
    "StableDiffusionControlNetImg2ImgPipeline",
    {"steps": _STEPS, "guidance": _GUIDANCE, "strength": Span(0.2, 0.9), "control": Span(0.3, 1.2)},
    _run_controlnet,
    upsampled=True,
)
_UPSCALE_SETTINGS = {"steps": _STEPS, "guidance": _GUIDANCE, "noise_level": Span(0, 120, "integer")}
KINDS: Mapping[str, PipelineKind] = {
    "StableDiffusionUpscalePipeline": PipelineKind("StableDiffusionUpscalePipeline", _UPSCALE_SETTINGS, _run_upscale),
    "LDMSuperResolutionPipeline": PipelineKind(
        "LDMSuperResolutionPipeline", {"steps": _STEPS, "eta": Span(0, 1)}, _run_latent, autoencoder="vqvae"
    ),
    "StableDiffusionControlNetImg2ImgPipeline": _CONTROLNET,
    "StableDiffusionControlNetPipeline": _CONTROLNET,
}
"""By the `_class_name` of `model_index.json`."""


class PipelineSR:
    """`SRModel` over a diffusers pipeline. Make it with `load_pipeline`.

    Attributes:
        module: its denoiser; `perturbed.PerturbedSR` breaks it for the length of a call.
    """

    family = "diffusion"

    def __init__(
        self, pipeline: Any, kind: PipelineKind, *, name: str, version: str, scale: int, settings: Mapping[str, Span]
    ) -> None:
        self.name, self.version, self.scale, self.settings = name, version, scale, settings
        self.module: torch.nn.Module = pipeline.unet
        self._pipeline, self._run, self._upsampled = pipeline, kind.run, kind.upsampled
        halvings = 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
        factor = _downscaling(getattr(pipeline, kind.autoencoder))
        self._multiple = halvings * factor if kind.upsampled else max(halvings, factor)

    def covers(self, source_id: str) -> bool:  # noqa: ARG002
        """Any photo."""
        return True

    @torch.no_grad()
    def __call__(self, lr: torch.Tensor, calls: Sequence[SRCall]) -> torch.Tensor:
        """SR images of ``lr`` (N×3×h×w float32 in [0, 1]) on the CPU. One by one: nearly every call has settings of its own."""
        if len(calls) != len(lr):
            raise SRModelError(f"SR model {self.name}: expected one call an image, got {len(calls)} for {len(lr)} images")
        return torch.cat([self._one(image[None], call) for image, call in zip(lr, calls, strict=True)])

    def _one(self, lr: torch.Tensor, call: SRCall) -> torch.Tensor:
        height, width = lr.shape[-2] * self.scale, lr.shape[-1] * self.scale
        image = lr
        if self._upsampled:
            image = F.interpolate(lr, scale_factor=self.scale, mode="bicubic", align_corners=False)
        image = _padded(image.clamp(0, 1), self._multiple).to(self._pipeline.device)
        device = self._pipeline.device
        # some schedulers are not handed the generator (LDM's, with η > 0) and draw from the global one: seeded, then put back
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(call.seed)
            # a generator of the CPU: the same noise whatever the device
            out = self._run(self._pipeline, image, call.settings, torch.Generator().manual_seed(call.seed))
        return out.float().cpu()[..., :height, :width]


def load_pipeline(
    source: str, *, scale: int, name: str | None = None, ranges: Mapping[str, Span] | None = None, device: str = "auto"
) -> PipelineSR:
    """Load a diffusers SR pipeline; its version names the files' content, diffusers' version (schedulers are code) and a GPU.

    Args:
        source: a folder with a `model_index.json`, or a hub id. ``BASE+CONTROLNET`` joins a Stable Diffusion pipeline and
            a ControlNet (tile) model, each a folder or a hub id.
        scale: upscaling factor wanted; pipelines with a scale of their own must have this one.
        name: of the model; made of the last parts of ``source`` by default.
        ranges: ranges in place of the kind's defaults, by setting.
        device: ``auto``, ``cpu`` or ``cuda[:i]``.

    Raises:
        SRModelError: nothing there, no network, not a pipeline that does SR, another scale, or an unknown setting in ``ranges``.
        DeviceError: no such device on this machine.
    """
    base, _, control = source.partition("+")
    index = pipeline_class(base)
    kind = _CONTROLNET if control else KINDS.get(index)
    if kind is None or (control and not index.startswith("StableDiffusion")):
        raise SRModelError(
            f"{source}: expected a pipeline of class {', '.join(KINDS)} (or BASE+CONTROLNET of Stable Diffusion), got {index}"
        )
    if unknown := set(ranges or {}) - set(kind.settings):
        raise SRModelError(f"{source}: {index} has the settings {', '.join(kind.settings)}, got {', '.join(sorted(unknown))}")
    folders = [fetched(base), *([fetched(control, single=True)] if control else [])]
    where = resolve_device(device)
    pipeline = _load(kind, folders).to(where, torch.float32)
    own_scale = scale if kind.upsampled else _downscaling(getattr(pipeline, kind.autoencoder))
    if own_scale != scale:
        raise SRModelError(f"{source}: expected an x{scale} model, got {index} x{own_scale}; choose another pipeline")
    digest = files_digest(folders, salt=f"{PROMPT}\n{NEGATIVE_PROMPT}")
    return PipelineSR(
        pipeline,
        kind,
        name=name or "+".join(Path(part).name for part in (base, control) if part),
        version=f"{digest}+diffusers{metadata.version('diffusers')}{device_mark(where)}",
        scale=scale,
        settings={**kind.settings, **(ranges or {})},
    )


def _load(kind: PipelineKind, folders: Sequence[Path]) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise SRModelError("diffusion pipelines need diffusers and transformers: pip install 'finpercep[train]'") from error
    options: dict[str, Any] = {"local_files_only": True}
    if kind is not KINDS["LDMSuperResolutionPipeline"]:
        options |= {"safety_checker": None}
    if kind.upsampled:
        options |= {"requires_safety_checker": False}
    try:
        if len(folders) > 1:
            options["controlnet"] = diffusers.ControlNetModel.from_pretrained(folders[1], local_files_only=True)
        pipeline = getattr(diffusers, kind.loader).from_pretrained(folders[0], **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
        raise SRModelError(f"{folders[0]}: cannot be loaded as {kind.loader}: {first_line(error)}") from error
    pipeline.set_progress_bar_config(disable=True)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.requires_grad_(False).eval()
    return pipeline


def _downscaling(autoencoder: Any) -> int:
    return int(2 ** (len(autoencoder.config.block_out_channels) - 1))


def _padded(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """``image`` extended right and down to multiples of ``multiple``, by reflection where it is large enough for that."""
    bottom, right = -image.shape[-2] % multiple, -image.shape[-1] % multiple
    mode = "reflect" if bottom < image.shape[-2] and right < image.shape[-1] else "replicate"
    return F.pad(image, (0, right, 0, bottom), mode=mode) if bottom or right else image
