"""The packaged policy: a few-million-parameter x4 diffusion SR model in pixel space, small enough for a laptop CPU.

The diffusion state x is the residual between the photo and its bicubic upsampling, pixel-unshuffled by 2 and divided by its
standard deviation. A `UNet2DModel` predicts v from x_t beside the upsampled LR image (after SR3, arXiv 2104.07636).
Scheduler: DDIM with zero terminal SNR and trailing spacing (arXiv 2305.08891).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DDIMScheduler, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from torch.nn import functional as F

from data_synth.schema.errors import SchemaError
from data_synth.schema.pixels import write_atomically
from finpercep.errors import WeightsError
from finpercep.sr.policy import Generators

FORMAT = "finpercep-tiny-sr"
FORMAT_VERSION = 1
_UNSHUFFLE = 2
_DOWN = 4  # the UNet halves twice


@dataclass(frozen=True)
class TinyConfig:
    """What, beside the weights, defines the model.

    Attributes:
        scale: upscaling factor.
        residual_std: standard deviation of (photo − bicubic) over the training photos, in [0, 1] units; divides the residual.
        num_steps: denoising steps of a sample.
        eta: DDIM's η: 0 deterministic, 1 as much fresh noise as DDPM.
    """

    scale: int = 4
    residual_std: float = 0.05
    num_steps: int = 4
    eta: float = 1.0


def build_unet(channels: tuple[int, ...] = (64, 96, 128), layers_per_block: int = 1) -> UNet2DModel:
    """The default denoiser, 3.5 M parameters; input is (x_t, upsampled LR), output v."""
    planes = 3 * _UNSHUFFLE**2
    return UNet2DModel(
        in_channels=2 * planes,
        out_channels=planes,
        layers_per_block=layers_per_block,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) * len(channels),
        up_block_types=("UpBlock2D",) * len(channels),
        norm_num_groups=16,
        add_attention=False,
    )


def build_scheduler() -> DDIMScheduler:
    """Cosine schedule, v-prediction, zero terminal SNR, trailing spacing."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )


class TinyDiffusionSR:
    """`SRPolicy` of the packaged model. ``autocast`` runs the network in bfloat16, about twice as fast on recent CPUs."""

    name = "tiny"

    def __init__(self, unet: UNet2DModel, scheduler: DDIMScheduler, config: TinyConfig, *, autocast: bool = False) -> None:
        self.unet, self.scheduler, self.config, self.autocast = unet, scheduler, config, autocast
        self._schedule(config.num_steps)

    def _schedule(self, num_steps: int) -> None:
        self.scheduler.set_timesteps(num_steps)
        self._timesteps: list[int] = self.scheduler.timesteps.tolist()

    def with_steps(self, num_steps: int, eta: float | None = None) -> TinyDiffusionSR:
        """The same live network, sampled in another number of steps (and with another η)."""
        eta = self.config.eta if eta is None else eta
        config = TinyConfig(self.config.scale, self.config.residual_std, num_steps, eta)
        return TinyDiffusionSR(self.unet, self._own_scheduler(), config, autocast=self.autocast)

    def _own_scheduler(self) -> DDIMScheduler:
        """The same schedule as a new object, since a scheduler holds the timesteps of its policy."""
        return DDIMScheduler.from_config(self.scheduler.config)

    @property
    def scale(self) -> int:
        """Upscaling factor."""
        return self.config.scale

    @property
    def num_steps(self) -> int:
        """Number of denoising steps of one sample."""
        return self.config.num_steps

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.unet.parameters()).device

    # -- images ↔ diffusion state -----------------------------------------------------------------------------------

    def condition(self, lr: torch.Tensor) -> torch.Tensor:
        """Bicubic upsampling of ``lr`` (N×3×h×w in [0, 1]) as N×12×H/2×W/2 in [−1, 1]; ValueError unless H, W divide by 8."""
        upsampled = F.interpolate(lr, scale_factor=self.scale, mode="bicubic", align_corners=False)
        if upsampled.shape[-1] % (_UNSHUFFLE * _DOWN) or upsampled.shape[-2] % (_UNSHUFFLE * _DOWN):
            raise ValueError(f"SR image sides must be multiples of {_UNSHUFFLE * _DOWN}, got {tuple(upsampled.shape[-2:])}")
        return F.pixel_unshuffle(2 * upsampled - 1, _UNSHUFFLE)

    def residual(self, hr: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """The clean diffusion state x0 of ``hr`` (N×3×H×W in [0, 1])."""
        return (F.pixel_unshuffle(2 * hr - 1, _UNSHUFFLE) - condition) / (2 * self.config.residual_std)

    def decode(self, clean: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Image N×3×H×W in [0, 1] from x̂0; inverse of `residual` up to clipping."""
        image = F.pixel_shuffle(condition + 2 * self.config.residual_std * clean, _UNSHUFFLE)
        return ((image + 1) / 2).clamp(0, 1)

    # -- diffusion --------------------------------------------------------------------------------------------------

    def initial_state(self, condition: torch.Tensor, generators: Generators) -> torch.Tensor:
        """Pure noise: terminal SNR is zero."""
        return randn_tensor(condition.shape, generator=list(generators), device=condition.device, dtype=condition.dtype)

    def _velocity(self, x: torch.Tensor, timesteps: torch.Tensor | int, condition: torch.Tensor) -> torch.Tensor:
        inputs = torch.cat([x, condition], dim=1)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            velocity: torch.Tensor = self.unet(inputs, timesteps).sample
        return velocity.float()

    def _alpha(self, index: int) -> torch.Tensor:
        """ᾱ before step ``index``; 1 after the last step."""
        if index == self.num_steps:
            return torch.ones((), device=self.device)
        return self.scheduler.alphas_cumprod[self._timesteps[index]].to(self.device)

    def predict_clean(self, x: torch.Tensor, index: int, condition: torch.Tensor) -> torch.Tensor:
        """x̂0 = √ᾱ_t·x_t − √(1−ᾱ_t)·v(x_t, t)   (arXiv 2202.00512, Appendix D)."""
        alpha = self._alpha(index)
        return alpha.sqrt() * x - (1 - alpha).sqrt() * self._velocity(x, self._timesteps[index], condition)

    def step(self, x: torch.Tensor, index: int, condition: torch.Tensor, generators: Generators) -> torch.Tensor:
        """One DDIM step (arXiv 2010.02502, eq. 12 and 16) with the config's η; the last step adds no noise.

        Written out because `DDIMScheduler.step` takes the root of a rounding error below 0 where ᾱ_t = 0 and η = 1.
        """
        alpha, previous = self._alpha(index), self._alpha(index + 1)
        velocity = self._velocity(x, self._timesteps[index], condition)
        clean = alpha.sqrt() * x - (1 - alpha).sqrt() * velocity
        epsilon = alpha.sqrt() * velocity + (1 - alpha).sqrt() * x
        sigma = self.config.eta * ((1 - previous) / (1 - alpha) * (1 - alpha / previous)).clamp_min(0).sqrt()
        direction = (1 - previous - sigma**2).clamp_min(0).sqrt()
        noise = randn_tensor(x.shape, generator=list(generators), device=x.device, dtype=x.dtype)
        return previous.sqrt() * clean + direction * epsilon + sigma * noise

    def denoising_loss(self, hr: torch.Tensor, lr: torch.Tensor, generators: Generators) -> torch.Tensor:
        """Mean ‖v_θ(x_t, t) − v‖² at one uniformly drawn timestep an image."""
        condition = self.condition(lr)
        clean = self.residual(hr, condition)
        noise = randn_tensor(clean.shape, generator=list(generators), device=clean.device, dtype=clean.dtype)
        total = self.scheduler.config.num_train_timesteps
        timesteps = torch.cat([torch.randint(total, (1,), generator=g) for g in generators]).to(clean.device)
        noisy = self.scheduler.add_noise(clean, noise, timesteps)
        target = self.scheduler.get_velocity(clean, noise, timesteps)
        return F.mse_loss(self._velocity(noisy, timesteps, condition), target)

    @torch.no_grad()
    def sample(self, lr: torch.Tensor, generators: Generators, *, initial_noise: float = 1.0) -> torch.Tensor:
        """SR images N×3×4h×4w in [0, 1] for any LR size (padded to even sides inside).

        ``initial_noise`` scales the noise it starts from; 1 is right, anything else a fault (grain, or detail missing).
        """
        height, width = lr.shape[-2:]
        period = _UNSHUFFLE * _DOWN // self.scale
        padded = F.pad(lr, (0, -width % period, 0, -height % period), mode="replicate")
        condition = self.condition(padded.to(self.device))
        x = initial_noise * self.initial_state(condition, generators)
        for index in range(self.num_steps):
            x = self.step(x, index, condition, generators)
        return self.decode(x, condition)[..., : height * self.scale, : width * self.scale]

    # -- weights ----------------------------------------------------------------------------------------------------

    def parameters(self) -> Iterable[torch.nn.Parameter]:
        """All weights of the denoiser."""
        return self.unet.parameters()  # type: ignore[no-any-return]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The denoiser's weights."""
        return dict(self.unet.state_dict())

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Set the denoiser's weights; every name must match."""
        self.unet.load_state_dict(state)

    def frozen_copy(self) -> Self:
        """A deep copy without gradients, in eval mode."""
        unet = copy.deepcopy(self.unet).requires_grad_(False).eval()
        return type(self)(unet, self._own_scheduler(), self.config, autocast=self.autocast)

    def to(self, device: torch.device | str) -> Self:
        """Move the network; returns self."""
        self.unet.to(device)
        return self

    def save_pretrained(self, folder: Path, *, half: bool = False) -> None:
        """Write ``unet/`` and ``scheduler/`` as diffusers does, and ``policy.json`` last, which marks the folder complete."""
        (folder / "policy.json").unlink(missing_ok=True)
        unet = copy.deepcopy(self.unet).half() if half else self.unet
        unet.save_pretrained(folder / "unet", variant="fp16" if half else None)
        self.scheduler.save_pretrained(folder / "scheduler")
        record = {"format": FORMAT, "version": FORMAT_VERSION, "variant": "fp16" if half else None, **asdict(self.config)}
        write_atomically(folder / "policy.json", (json.dumps(record, indent=2) + "\n").encode())

    @classmethod
    def from_pretrained(cls, folder: Path, *, device: str | torch.device = "cpu", autocast: bool = False) -> Self:
        """Load what `save_pretrained` wrote, in float32.

        Raises:
            WeightsError: the folder is not there or lacks its parts.
            SchemaError: ``policy.json`` is not of this format and version.
        """
        record = _read_record(folder / "policy.json")
        variant = record.pop("variant")
        try:
            unet = UNet2DModel.from_pretrained(folder / "unet", variant=variant, torch_dtype=torch.float32, local_files_only=True)
            scheduler = DDIMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
        except (OSError, ValueError) as error:
            raise WeightsError(f"{folder}: the SR model's weights cannot be read: {error}") from error
        return cls(unet.to(device), scheduler, TinyConfig(**record), autocast=autocast)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise WeightsError(f"{path.parent}: expected an SR model folder with policy.json, found none") from error
    except json.JSONDecodeError as error:
        raise SchemaError(str(path), "(file)", "JSON", str(error)) from error
    for field, expected in (("format", FORMAT), ("version", FORMAT_VERSION)):
        if record.pop(field, None) != expected:
            raise SchemaError(str(path), field, repr(expected), "another value or none")
    known = {"variant", *TinyConfig.__dataclass_fields__}
    if set(record) != known:
        raise SchemaError(str(path), "(fields)", str(sorted(known)), sorted(record))
    return record
