"""What policies over diffusers pipelines have in common: which weights are trained, how they are stored, kept still and saved.

Either the networks' own weights are trained, or LoRA adapters on them. The reference of the first is a deep copy of what is
trained; that of the second shares the base weights, which nobody changes, and holds the adapters' weights as they were.
A policy and such a reference must not be used from two threads at once.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torch.nn import functional as F

from finpercep.errors import ConfigError
from finpercep.sr import autoencoder as ae
from finpercep.sr.diffusion import DiffusionPolicy
from finpercep.sr.lora import Lora, add_adapter, has_adapter, store_in
from finpercep.sr.noise_path import Generators, NoisePath
from finpercep.sr.policy import weights_of
from finpercep.sr.policy_folder import write_policy
from finpercep.sr.prompts import Captions, Prompts, Text
from finpercep.sr.settings import Options, Role

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTIONS = ("conv1", "conv2")


@dataclass(frozen=True)
class Parts:
    """What a pipeline is made of.

    Attributes:
        networks: the networks that sampling runs, under their names in the pipeline.
        scheduler: the sampler's scheduler.
        prompts: words, where the networks take them.
        extra: further schedulers, by name.
        replaced: names of the networks that are not the published ones, but a policy's own from its folder.
    """

    networks: Mapping[str, Any]
    scheduler: Any
    prompts: Prompts | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    replaced: frozenset[str] = frozenset()


@dataclass(frozen=True)
class LatentCondition:
    """What the networks are conditioned on.

    Attributes:
        shape: of a state, (N, C, h, w).
        guide: the LR image as the network sees it; each policy says how.
        latent: the upsampled LR image encoded, a state; None where no policy needs it.
        text: what is asked for.
        negative: what guidance pushes away from; None without guidance.
    """

    shape: tuple[int, ...]
    guide: torch.Tensor
    latent: torch.Tensor | None = None
    text: Text | None = None
    negative: Text | None = None


class PipelinePolicy(DiffusionPolicy):
    """`SRPolicy` over the networks of a diffusers pipeline.

    Args:
        parts: freshly loaded; their gradients, adapters and dtypes are set here.
        path: what its states are between clean and noise.
        options: all choices.
        source: what it was loaded from; it goes into ``policy.json``.
        scale: upscaling factor.
        captions: words for each image; without them the text encoders are let go.

    Raises:
        ConfigError: an option that this policy cannot have.
    """

    denoiser_name: ClassVar[str] = "unet"
    decoder_name: ClassVar[str] = "vae"
    lora_targets: ClassVar[tuple[str, ...]] = ATTENTION
    defaults: ClassVar[Options] = Options()

    def __init__(
        self, parts: Parts, path: NoisePath, options: Options, *, source: str, scale: int, captions: Captions | None = None
    ) -> None:
        self.options, self.source, self.captions = options, source, captions
        self.prompts, self.extra, self.replaced = parts.prompts, parts.extra, parts.replaced
        self._networks: dict[str, Any] = dict(parts.networks)
        self._pinned: tuple[list[nn.Parameter], list[torch.Tensor]] | None = None
        self.autoencoder = self._networks.get(self.decoder_name)
        self.latent_scale = ae.latent_scale(self.autoencoder)
        self._prepare_networks()
        super().__init__(path, options.sampler, scale)
        self.delivery = options.delivery
        if self.prompts is not None:
            self.prompts([options.prompt, options.negative_prompt], torch.device("cpu"))
            if captions is None:
                self.prompts.forget_encoders()

    # -- what a subclass says ---------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def open(cls, source: str, options: Options) -> Parts:
        """The parts of the model at ``source``. Raises `WeightsError` when there is none, or of another kind."""

    @classmethod
    @abstractmethod
    def build(cls, parts: Parts, options: Options, source: str, captions: Captions | None) -> Self:
        """The policy over them."""

    @abstractmethod
    def evaluate(self, x: torch.Tensor, timestep: torch.Tensor, condition: LatentCondition, text: Text | None) -> torch.Tensor:
        """The network's output under ``text``."""

    # -- networks ---------------------------------------------------------------------------------------------------

    def networks(self) -> Mapping[str, nn.Module]:
        """All that sampling runs, the denoiser first."""
        return self._networks

    @property
    def denoiser(self) -> Any:
        """The UNet or transformer."""
        return self._networks[self.denoiser_name]

    def network_of(self, role: Role) -> str | None:
        """Name of the network that plays ``role``; None where there is none."""
        name = {"denoiser": self.denoiser_name, "controlnet": "controlnet", "decoder": self.decoder_name}[role]
        return name if self._networks.get(name) is not None else None

    def _prepare_networks(self) -> None:
        options = self.options
        for network in self._networks.values():
            network.requires_grad_(False).eval()
            if options.gradient_checkpointing and network._supports_gradient_checkpointing:
                network.enable_gradient_checkpointing()
        roles = [role for role in options.trained if self.network_of(role) is not None]
        if not roles:
            raise ConfigError(f"{self.name} has none of the networks to be trained, {', '.join(options.trained)}")
        for role in roles:
            self._make_trainable(self._networks[str(self.network_of(role))], role)
        if options.precision != "float32" and options.lora_rank:
            store_in(self._half_networks(), self.options.dtype)

    def _make_trainable(self, network: Any, role: Role) -> None:
        if not self.options.lora_rank:
            parts = [network] if role != "decoder" else [network.decoder, network.post_quant_conv]
            for part in parts:
                if part is not None:
                    part.requires_grad_(True)
            return
        convolutional = role == "decoder" or not hasattr(network, "add_adapter")
        targets = self.options.lora_targets or ((*ATTENTION, *CONVOLUTIONS) if convolutional else self.lora_targets)
        lora = Lora(self.options.lora_rank, self.options.lora_alpha or self.options.lora_rank, targets)
        add_adapter(network, lora, within="decoder" if role == "decoder" else "")

    def _half_networks(self) -> list[Any]:
        """All but those that are saved in full, which keep every bit; and autoencoders overflow in float16."""
        in_full = {name for name, n in self._networks.items() if has_adapter(n) and not hasattr(n, "add_adapter")} | self.replaced
        networks = [n for name, n in self._networks.items() if name not in in_full]
        return [n for n in networks if n is not self.autoencoder or self.options.precision == "bfloat16"]

    @contextmanager
    def _computing(self, *, autoencoder: bool = False) -> Iterator[None]:
        """In the precision asked for; and, of a reference that shares weights, with the adapters as they were."""
        precision = self.options.precision
        half = precision != "float32" and not (autoencoder and precision == "float16")
        with ExitStack() as stack:
            if self._pinned is not None:
                stack.enter_context(torch.no_grad())
                stack.enter_context(self._pinned_weights())
            # no cache: it would remember weights that `weights_of` has exchanged meanwhile
            dtype = self.options.dtype if half else torch.bfloat16
            stack.enter_context(torch.autocast(self.device.type, dtype, enabled=half, cache_enabled=False))
            yield

    @contextmanager
    def _pinned_weights(self) -> Iterator[None]:
        assert self._pinned is not None
        parameters, pinned = self._pinned
        with weights_of(_Just(parameters), [tensor.to(self.device) for tensor in pinned]):  # type: ignore[arg-type]
            yield

    # -- images and latents -----------------------------------------------------------------------------------------

    def upsampled(self, lr: torch.Tensor) -> torch.Tensor:
        """Bicubic, N×3×H×W in [0, 1]."""
        return F.interpolate(lr, scale_factor=self.scale, mode="bicubic", align_corners=False).clamp(0, 1)

    @torch.no_grad()
    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """Images N×3×H×W in [0, 1] encoded."""
        with self._computing(autoencoder=True):
            return ae.encode(self.autoencoder, images, self.latent_scale)

    def encode(self, images: torch.Tensor, condition: LatentCondition) -> torch.Tensor:  # noqa: ARG002
        """See `SRPolicy`."""
        return self.latents(images)

    def decode(self, clean: torch.Tensor, condition: LatentCondition) -> torch.Tensor:  # noqa: ARG002
        """See `SRPolicy`."""
        with self._computing(autoencoder=True):
            return ae.decode(self.autoencoder, clean, self.latent_scale)

    def state_shape(self, condition: LatentCondition) -> tuple[int, ...]:
        """See `DiffusionPolicy`."""
        return condition.shape

    def texts(self, lr: torch.Tensor) -> tuple[Text | None, Text | None]:
        """What is asked for in each image, and what guidance pushes away from."""
        if self.prompts is None:
            return None, None
        asked = [self.options.prompt] * len(lr)
        if self.captions is not None:
            asked = [", ".join(filter(None, (caption, self.options.prompt))) for caption in self.captions(lr)]
        negative = [self.options.negative_prompt] * len(lr) if self.options.guidance > 1 else None
        return self.prompts(asked, lr.device), None if negative is None else self.prompts(negative, lr.device)

    # -- network ----------------------------------------------------------------------------------------------------

    def predict(self, x: torch.Tensor, timestep: torch.Tensor, condition: LatentCondition) -> torch.Tensor:
        """See `DiffusionPolicy`; classifier-free guidance (arXiv 2207.12598, eq. 6) where the condition has a negative text."""
        with self._computing():
            asked = self.evaluate(x, timestep, condition, condition.text).float()
            if condition.negative is None:
                return asked
            unwanted = self.evaluate(x, timestep, condition, condition.negative).float()
        return unwanted + self.options.guidance * (asked - unwanted)

    def denoising_errors(self, clean: torch.Tensor, condition: LatentCondition, generators: Generators) -> torch.Tensor:
        """See `SRPolicy`; never guided."""
        return super().denoising_errors(clean, replace(condition, negative=None), generators)

    # -- weights ----------------------------------------------------------------------------------------------------

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """See `DiffusionPolicy`; a reference has none."""
        return iter(()) if self._pinned is not None else super().named_parameters()

    def frozen_copy(self) -> Self:
        """See `SRPolicy`, and this module's docstring."""
        other = copy.copy(self)
        if self.options.lora_rank:
            parameters = self.parameters()
            other._pinned = self._pinned or (parameters, [parameter.detach().clone() for parameter in parameters])
        else:
            other._networks = {name: _still(network) for name, network in self._networks.items()}
            other.autoencoder = other._networks.get(self.decoder_name)
        return other

    def save_pretrained(self, folder: Path) -> None:
        """See `SRPolicy`: the trained networks or adapters, and where the rest came from."""
        with ExitStack() as stack:
            if self._pinned is not None:
                stack.enter_context(self._pinned_weights())
            write_policy(self, folder)


@dataclass(frozen=True)
class _Just:
    """The one question `weights_of` asks."""

    own: list[nn.Parameter]

    def parameters(self) -> list[nn.Parameter]:
        return self.own


def _still(network: nn.Module) -> nn.Module:
    """A deep copy of a network that is trained; one that is not, itself."""
    if not any(parameter.requires_grad for parameter in network.parameters()):
        return network
    return copy.deepcopy(network).requires_grad_(False)
