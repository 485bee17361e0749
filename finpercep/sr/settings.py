"""What can be chosen about a policy: how it is sampled, trained, stored, prompted and delivered."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import torch

from finpercep.errors import ConfigError
from finpercep.sr.colour import COLOURS, Colour
from finpercep.sr.transition import NoiseForm, Sampler

Role = Literal["denoiser", "controlnet", "decoder"]
Precision = Literal["float32", "bfloat16", "float16"]

ROLES: tuple[Role, ...] = ("denoiser", "controlnet", "decoder")
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")
PROMPT = "a sharp, detailed photograph, high quality"
NEGATIVE_PROMPT = "blurry, noisy, low resolution, compression artefacts, painting, cartoon"


@dataclass(frozen=True)
class Options:
    """All choices about a policy, made.

    Attributes:
        steps: denoising steps of one sample.
        noise: form of a step, see `Sampler`.
        eta: fresh noise of a step, see `Sampler`; 0 is deterministic.
        scale: upscaling factor, where the model leaves it free.
        trained: which networks are trained: the ``denoiser`` (UNet or transformer), the ``controlnet`` where there is one, the
            autoencoder's ``decoder``.
        lora_rank: rank of the LoRA adapters that are trained; 0 trains the networks' own weights.
        lora_alpha: the adapters' output is multiplied by alpha / rank; 0 stands for the rank.
        lora_targets: last parts of the names of the layers that get an adapter; none: the attention projections (and
            convolutions, in UNets that may have no attention).
        precision: of the arithmetic. Trained weights stay float32. Frozen ones are stored in it when adapters are trained, unless
            the policy's folder holds them in full. ``float16`` is for inference: gradients are not scaled.
        gradient_checkpointing: activations are computed again in the backward pass instead of being kept.
        guidance: classifier-free guidance; 1 is none, and what training wants.
        prompt: what is asked of every image; follows its caption where there are captions.
        negative_prompt: what guidance pushes away from.
        control_scale: factor of the ControlNet's output.
        lr_noise_level: timestep of the noise that `latent-unet` adds to the LR image, as its UNet is told.
        colour: colour correction of delivered images, see `finpercep.sr.colour`.
        tile: side in LR px of the tiles in which larger images are sampled; 0 samples all in one piece.
        overlap: LR px over which neighbouring tiles are blended.
    """

    steps: int = 20
    noise: NoiseForm = "ddim"
    eta: float = 0.0
    scale: int = 4
    trained: tuple[Role, ...] = ("denoiser", "controlnet")
    lora_rank: int = 16
    lora_alpha: float = 0.0
    lora_targets: tuple[str, ...] = ()
    precision: Precision = "float32"
    gradient_checkpointing: bool = False
    guidance: float = 1.0
    prompt: str = PROMPT
    negative_prompt: str = NEGATIVE_PROMPT
    control_scale: float = 1.0
    lr_noise_level: int = 20
    colour: Colour = "none"
    tile: int = 0
    overlap: int = 16

    def __post_init__(self) -> None:
        for name, allowed in (("precision", PRECISIONS), ("colour", COLOURS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not self.trained or set(self.trained) - set(ROLES):
            raise ConfigError(f"trained must name one or more of {', '.join(ROLES)}, got {', '.join(self.trained) or 'none'}")
        if self.scale < 1:
            raise ConfigError(f"scale must be at least 1, got {self.scale}")
        for name in ("lora_rank", "lora_alpha", "lr_noise_level", "tile", "overlap", "control_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be finite and >= 0, got {getattr(self, name)}")
        if not 1 <= self.guidance < math.inf:
            raise ConfigError(f"guidance must be finite and at least 1 (none), got {self.guidance}")
        if self.tile and self.overlap >= self.tile:
            raise ConfigError(f"overlap must be smaller than the tile, {self.tile} px, got {self.overlap}")

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        dtype: torch.dtype = getattr(torch, self.precision)
        return dtype

    @property
    def sampler(self) -> Sampler:
        """How it is sampled."""
        return Sampler(self.steps, self.noise, self.eta)

    @property
    def delivery(self) -> Delivery:
        """How `sample` hands images over."""
        return Delivery(self.tile, self.overlap, self.colour)


@dataclass(frozen=True)
class Delivery:
    """How sampled images are made and handed over: ``tile``, ``overlap`` and ``colour`` as in `Options`."""

    tile: int = 0
    overlap: int = 16
    colour: Colour = "none"


@dataclass(frozen=True)
class PolicySettings:
    """What a caller decides about a policy. None leaves it as the policy's folder records it, or else as its kind has it.

    Attributes: see `Options`.
    """

    steps: int | None = None
    noise: NoiseForm | None = None
    eta: float | None = None
    scale: int | None = None
    trained: tuple[Role, ...] | None = None
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_targets: tuple[str, ...] | None = None
    precision: Precision | None = None
    gradient_checkpointing: bool | None = None
    guidance: float | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    control_scale: float | None = None
    lr_noise_level: int | None = None
    colour: Colour | None = None
    tile: int | None = None
    overlap: int | None = None

    def said(self) -> dict[str, Any]:
        """What has been decided, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def over(self, kind: Options, recorded: PolicySettings | None = None) -> Options:
        """All choices: these, then what was recorded, then the kind's. Raises `ConfigError` on a bad value."""
        return Options(**{**asdict(kind), **(recorded.said() if recorded else {}), **self.said()})

    @classmethod
    def of(cls, record: dict[str, Any]) -> Self:
        """From JSON: lists become tuples. Raises TypeError on unknown names."""
        plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
        return cls(**plain)
