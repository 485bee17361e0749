"""How much memory does fine-tuning each kind of policy take, in full and by LoRA?

    python -m benchmarks.policy_memory

Computed, not measured: networks of the published sizes are built without memory (meta tensors) and made into policies as
`load_policy` makes them, then what each stores is counted. Weights are float32 where they are trained, bfloat16 where LoRA
leaves them frozen; each trained weight has a gradient and AdamW's two moments (float32); the reference is a copy of what is
trained. Activations, the loaded text encoders (let go once the prompt is encoded) and the reward are not included. Published
sizes are from the models' configuration files; Stable Diffusion's UNets (865.9 M, 473.4 M) come out as published, LDM-SR's is of
its shape and about right. The ResShift line takes LDM-SR's networks, since ResShift's own UNet is no diffusers class.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)

from benchmarks.report import print_table, write_result
from finpercep.sr.loading import policy_class
from finpercep.sr.pipeline_policy import Parts
from finpercep.sr.residual_scheduler import ResidualShiftScheduler

GB = 1e9
SD2 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
SD3 = {
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}


def autoencoder(levels: int, channels: int = 4, **more: Any) -> AutoencoderKL:
    """Stable Diffusion's, with ``levels`` − 1 halvings."""
    widths = (128, 256, 512, 512)[:levels]
    down, up = ("DownEncoderBlock2D",) * levels, ("UpDecoderBlock2D",) * levels
    return AutoencoderKL(
        block_out_channels=widths, layers_per_block=2, down_block_types=down, up_block_types=up, latent_channels=channels, **more
    )


def vector_quantised() -> VQModel:
    """LDM-SR's."""
    down, up = ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3
    return VQModel(
        block_out_channels=(128, 256, 512),
        down_block_types=down,
        up_block_types=up,
        layers_per_block=2,
        latent_channels=3,
        num_vq_embeddings=8192,
    )


def upscaler() -> Parts:
    """Stable Diffusion x4 upscaler."""
    unet = UNet2DConditionModel(
        in_channels=7,
        block_out_channels=(256, 512, 512, 1024),
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
        up_block_types=(*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
        attention_head_dim=8,
        cross_attention_dim=1024,
        only_cross_attention=(True, True, True, False),
        use_linear_projection=True,
        num_class_embeds=1000,
    )
    return Parts({"unet": unet, "vae": autoencoder(3)}, DDIMScheduler())


def ldm() -> Parts:
    """LDM-SR."""
    unet = UNet2DModel(
        in_channels=6,
        out_channels=3,
        block_out_channels=(160, 320, 320, 640),
        layers_per_block=2,
        down_block_types=("DownBlock2D", *("AttnDownBlock2D",) * 3),
        up_block_types=(*("AttnUpBlock2D",) * 3, "UpBlock2D"),
        attention_head_dim=32,
    )
    return Parts({"unet": unet, "vae": vector_quantised()}, DDIMScheduler())


def stable_diffusion_2() -> Parts:
    """Stable Diffusion 2 base."""
    return Parts({"unet": UNet2DConditionModel(**SD2), "vae": autoencoder(4)}, DDIMScheduler())


def controlnet() -> Parts:
    """Stable Diffusion 2 base and a ControlNet of its shape."""
    base = stable_diffusion_2()
    return replace(base, networks={**base.networks, "controlnet": ControlNetModel(**SD2)})


def flow() -> Parts:
    """Stable Diffusion 3 medium and a ControlNet of 6 layers."""
    networks = {
        "transformer": SD3Transformer2DModel(num_layers=24, **SD3),
        "controlnet": SD3ControlNetModel(num_layers=6, **SD3),
        "vae": autoencoder(4, 16, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609),
    }
    return Parts(networks, FlowMatchEulerDiscreteScheduler(shift=3.0))


def residual_shift() -> Parts:
    """LDM-SR's networks under another scheduler."""
    return replace(ldm(), scheduler=ResidualShiftScheduler())


MODELS: dict[str, tuple[str, Callable[[], Parts]]] = {
    "Stable Diffusion x4 upscaler": ("latent-unet", upscaler),
    "LDM-SR": ("latent-unet", ldm),
    "SD 2 base + ControlNet": ("controlnet", controlnet),
    "SD 3 medium + ControlNet (6 layers)": ("flow", flow),
    "SD 2 base": ("one-step", stable_diffusion_2),
    "LDM-SR's UNet, VQ f4": ("residual-shift", residual_shift),
}


@dataclass(frozen=True)
class Memory:
    """Of one way to train one model: parameters in millions, bytes in GB."""

    parameters: float
    trained: float
    weights: float
    gradients_and_moments: float
    reference: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients_and_moments + self.reference


def memory(kind: str, build: Callable[[], Parts], rank: int) -> Memory:
    """What a policy stores, counted on its parameters; ``rank`` 0 trains in full."""
    cls = policy_class(kind)
    with torch.device("meta"):
        parts = build()
        parameters = sum(p.numel() for network in parts.networks.values() for p in network.parameters())
    scheduler = type(parts.scheduler).from_config(parts.scheduler.config)  # its tensors are needed
    options = replace(cls.defaults, lora_rank=rank, precision="bfloat16")
    policy = cls.build(replace(parts, scheduler=scheduler), options, "published", None)
    trained = sum(p.numel() for p in policy.parameters())
    weights = sum(p.numel() * p.element_size() for network in policy.networks().values() for p in network.parameters())
    return Memory(parameters / 1e6, trained / 1e6, weights / GB, 12 * trained / GB, 4 * trained / GB)


def main() -> None:
    """Print the table and write the figures."""
    warnings.simplefilter("ignore")
    rows, figures = [], {}
    for model, (kind, build) in MODELS.items():
        for way, rank in (("full", 0), ("LoRA, rank 16", 16)):
            one = memory(kind, build, rank)
            cells = (one.weights, one.gradients_and_moments, one.reference, one.total)
            rows.append(
                [f"`{kind}`", model, way, f"{one.parameters:,.1f}", f"{one.trained:,.1f}", *(f"{cell:.1f}" for cell in cells)]
            )
            figures[f"{kind}: {model}, {way}"] = {**vars(one), "total": one.total}
    columns = [
        "kind",
        "networks",
        "trained how",
        "parameters, M",
        "trained, M",
        "weights",
        "gradients, moments",
        "reference",
        "all, GB",
    ]
    print_table(columns, rows)
    print(write_result("policy_memory", {"unit": "GB, parameters in millions", "lines": figures}))


if __name__ == "__main__":
    main()
