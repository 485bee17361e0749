"""The packaged policy: a few-million-parameter x4 diffusion SR model in pixel space, small enough for a laptop CPU.

The diffusion state x is the residual between the photo and its bicubic upsampling, pixel-unshuffled by 2 and divided by its
standard deviation. A `UNet2DModel` predicts v from x_t beside the upsampled LR image (after SR3, arXiv 2104.07636).
Scheduler: DDIM with zero terminal SNR and trailing spacing (arXiv 2305.08891).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch.nn import functional as F

from data_synth.schema.errors import SchemaError
from data_synth.schema.pixels import write_atomically
from finpercep.errors import WeightsError
from finpercep.sr.diffusion import DiffusionPolicy
from finpercep.sr.noise_path import VariancePreserving
from finpercep.sr.transition import Sampler

FORMAT = "finpercep-tiny-sr"
FORMAT_VERSION = 1
SNAPSHOTS = "snapshots"
"""Folder, inside a trained policy's, of policies from early in the training."""

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


class TinyDiffusionSR(DiffusionPolicy):
    """`SRPolicy` of the packaged model. ``autocast`` runs the network in bfloat16, about twice as fast on recent CPUs.

    A condition is the bicubic upsampling of the LR images as N×12×H/2×W/2 in [−1, 1].
    """

    name = "tiny"

    def __init__(self, unet: UNet2DModel, scheduler: DDIMScheduler, config: TinyConfig, *, autocast: bool = False) -> None:
        self.unet, self.scheduler, self.autocast = unet, scheduler, autocast
        self.residual_std = config.residual_std
        super().__init__(VariancePreserving(scheduler), Sampler(config.num_steps, eta=config.eta), config.scale)

    @property
    def config(self) -> TinyConfig:
        """What `save_pretrained` writes beside the weights."""
        return TinyConfig(self.scale, self.residual_std, self.sampler.num_steps, self.sampler.eta)

    def networks(self) -> Mapping[str, torch.nn.Module]:
        """The denoiser."""
        return {"unet": self.unet}

    @property
    def lr_multiple(self) -> int:
        """The UNet halves twice, on unshuffled pixels."""
        return _UNSHUFFLE * _DOWN // self.scale

    def condition(self, lr: torch.Tensor) -> torch.Tensor:
        """Bicubic upsampling of ``lr`` (N×3×h×w in [0, 1]); ValueError unless the upsampled sides divide by 8."""
        upsampled = F.interpolate(lr, scale_factor=self.scale, mode="bicubic", align_corners=False)
        if upsampled.shape[-1] % (_UNSHUFFLE * _DOWN) or upsampled.shape[-2] % (_UNSHUFFLE * _DOWN):
            raise ValueError(f"SR image sides must be multiples of {_UNSHUFFLE * _DOWN}, got {tuple(upsampled.shape[-2:])}")
        return F.pixel_unshuffle(2 * upsampled - 1, _UNSHUFFLE)

    def encode(self, images: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """x0 of ``images``: their residual to the upsampled LR images."""
        return (F.pixel_unshuffle(2 * images - 1, _UNSHUFFLE) - condition) / (2 * self.residual_std)

    def decode(self, clean: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Images from x̂0; inverse of `encode` up to clipping."""
        image = F.pixel_shuffle(condition + 2 * self.residual_std * clean, _UNSHUFFLE)
        return ((image + 1) / 2).clamp(0, 1)

    def state_shape(self, condition: torch.Tensor) -> Sequence[int]:
        """A state is as large as its condition."""
        return condition.shape

    def predict(self, x: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """v, from the state beside its condition."""
        inputs = torch.cat([x, condition], dim=1)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            velocity: torch.Tensor = self.unet(inputs, timestep).sample
        return velocity.float()

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


def with_snapshots(name: str, folder: Path) -> dict[str, Path]:
    """Name → folder: the policy in ``folder`` as ``name``, and its snapshots as ``name@STEP``."""
    return {name: folder} | {f"{name}@{path.name}": path for path in sorted(folder.glob(f"{SNAPSHOTS}/*"))}


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
