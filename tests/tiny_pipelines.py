"""Real diffusers pipelines with tiny random networks, built here and never downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    LDMSuperResolutionPipeline,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from finpercep.sr.residual_scheduler import ResidualShiftScheduler
from finpercep.sr.residual_shift import save_residual_shift

WIDTH = 16
"""Of text embeddings."""
DOWN = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "block_out_channels": (8, 16)}
SHAPE = {"cross_attention_dim": WIDTH, "attention_head_dim": 4, "norm_num_groups": 4, "layers_per_block": 1}


def text_parts(folder: Path, *, projection: bool = False) -> tuple[CLIPTokenizer, Any]:
    """A CLIP text encoder over single characters."""
    characters = "abcdefghijklmnopqrstuvwxyz,"
    words = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        projection_dim=WIDTH,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=1,
    )
    return tokenizer, (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


@torch.no_grad()
def vae(levels: int, **more: Any) -> AutoencoderKL:
    """Encodes all but without variance, so that diffusers' own random encoding gives the same latents."""
    model = AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4,
        norm_num_groups=4,
        **more,
    )
    last = model.quant_conv if model.quant_conv is not None else model.encoder.conv_out
    last.weight[4:], last.bias[4:] = 0, -30
    return model


def vq() -> VQModel:
    return VQModel(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=3,
        norm_num_groups=4,
        num_vq_embeddings=16,
    )


def unet(in_channels: int, **more: Any) -> UNet2DConditionModel:
    up = {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
    return UNet2DConditionModel(in_channels=in_channels, out_channels=4, **DOWN, **up, **SHAPE, **more)


def plain_unet() -> UNet2DModel:
    """LR and state in, state out; the middle attends."""
    return UNet2DModel(
        in_channels=6,
        out_channels=3,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        attention_head_dim=4,
        layers_per_block=1,
        norm_num_groups=4,
    )


def ddim(prediction_type: str) -> DDIMScheduler:
    """As Stable Diffusion's, but for its last step, which here ends at x̂0."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


@torch.no_grad()
def awake(module: torch.nn.Module) -> Any:
    """An untrained ControlNet or transformer is silent: its last layers start at zero."""
    for parameter in module.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def upscaler(root: Path) -> StableDiffusionUpscalePipeline:
    tokenizer, text_encoder = text_parts(root)
    return StableDiffusionUpscalePipeline(
        vae=vae(3, scaling_factor=0.08333),
        unet=unet(7, num_class_embeds=1000),
        low_res_scheduler=DDPMScheduler(),
        scheduler=ddim("v_prediction"),
        tokenizer=tokenizer,
        text_encoder=text_encoder,
    )


def ldm(root: Path) -> LDMSuperResolutionPipeline:
    return LDMSuperResolutionPipeline(vqvae=vq(), unet=plain_unet(), scheduler=ddim("epsilon"))


def controlnet(root: Path) -> StableDiffusionControlNetImg2ImgPipeline:
    tokenizer, text_encoder = text_parts(root)
    control = ControlNetModel(conditioning_embedding_out_channels=(4, 4, 4, 8), **DOWN, **SHAPE)
    return StableDiffusionControlNetImg2ImgPipeline(
        vae=vae(4, scaling_factor=0.18215),
        unet=unet(4),
        controlnet=awake(control),
        scheduler=ddim("epsilon"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
    )


def stable_diffusion(root: Path) -> StableDiffusionPipeline:
    tokenizer, text_encoder = text_parts(root)
    return StableDiffusionPipeline(
        vae=vae(4, scaling_factor=0.18215),
        unet=unet(4),
        scheduler=ddim("epsilon"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
    )


def transformer(in_channels: int = 4, **more: Any) -> SD3Transformer2DModel:
    shape: dict[str, Any] = {"sample_size": 16, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2}
    widths = {"joint_attention_dim": 2 * WIDTH, "caption_projection_dim": 16, "pooled_projection_dim": 2 * WIDTH}
    return awake(SD3Transformer2DModel(in_channels=in_channels, out_channels=4, pos_embed_max_size=32, **shape, **widths, **more))


def _sd3_parts(root: Path, channels: int, *, words: bool) -> dict[str, Any]:
    first = text_parts(root, projection=True) if words else (None, None)
    second = text_parts(root, projection=True) if words else (None, None)
    return {
        "transformer": transformer(channels),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": vae(4, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        "tokenizer": first[0],
        "text_encoder": first[1],
        "tokenizer_2": second[0],
        "text_encoder_2": second[1],
        "tokenizer_3": None,
        "text_encoder_3": None,
    }


def flow_controlnet(root: Path) -> StableDiffusion3ControlNetPipeline:
    """With words; the ControlNet is told the pooled text."""
    parts = _sd3_parts(root, 4, words=True)
    config = parts["transformer"].config
    shared = ("sample_size", "in_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim")
    shared += ("caption_projection_dim", "pooled_projection_dim", "out_channels", "pos_embed_max_size")
    more = {"num_layers": 1, "force_zeros_for_pooled_projection": False}
    control = SD3ControlNetModel(**{name: config[name] for name in shared}, **more)
    return StableDiffusion3ControlNetPipeline(controlnet=awake(control), **parts)


def flow_channels(root: Path) -> StableDiffusion3Pipeline:
    """Wordless; the transformer takes the LR latent as further channels."""
    return StableDiffusion3Pipeline(**_sd3_parts(root, 8, words=False))


def flow_tokens(root: Path) -> StableDiffusion3Pipeline:
    """Wordless; the transformer takes the LR latent as further tokens."""
    return StableDiffusion3Pipeline(**_sd3_parts(root, 4, words=False))


class _ResidualShiftFolder:
    def __init__(self, autoencoder: Any) -> None:
        self.autoencoder = autoencoder

    def save_pretrained(self, folder: Path) -> None:
        save_residual_shift(folder, plain_unet(), ResidualShiftScheduler(), self.autoencoder)


def residual_latent(root: Path) -> _ResidualShiftFolder:
    return _ResidualShiftFolder(vq())


def residual_pixel(root: Path) -> _ResidualShiftFolder:
    return _ResidualShiftFolder(None)


PIPELINES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "upscaler": ("latent-unet", upscaler),
    "ldm": ("latent-unet", ldm),
    "controlnet": ("controlnet", controlnet),
    "one-step": ("one-step", stable_diffusion),
    "flow-controlnet": ("flow", flow_controlnet),
    "flow-channels": ("flow", flow_channels),
    "flow-tokens": ("flow", flow_tokens),
    "residual-latent": ("residual-shift", residual_latent),
    "residual-pixel": ("residual-shift", residual_pixel),
}
"""Name → kind of policy, and what builds its published weights."""


def save_pipelines(root: Path) -> dict[str, str]:
    """Save one of each below ``root``. Returns the names that `load_policy` takes."""
    torch.manual_seed(0)
    names = {}
    for name, (kind, build) in PIPELINES.items():
        scratch = root / f"{name}-text"
        scratch.mkdir()
        build(scratch).save_pretrained(root / name)
        names[name] = f"{kind}:{root / name}"
    return names
