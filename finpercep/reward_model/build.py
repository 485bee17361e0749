"""The one place where a reward model is assembled from its config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import segmentation_models_pytorch as smp
import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional as F

from finpercep.errors import ConfigError, WeightsError
from finpercep.reward_model.config import RewardModelConfig, native_stride
from finpercep.reward_model.decoders import build_body
from finpercep.reward_model.hub import HUB_ERRORS, one_line
from finpercep.reward_model.lr_evidence import EVIDENCE_PLANES
from finpercep.reward_model.map_decoder import MapDecoder, PooledMapDecoder
from finpercep.reward_model.model import FinPercepRM
from finpercep.reward_model.score_head import ScoreHead
from finpercep.reward_model.vit import ViTEncoder

_LOADING_ERRORS: tuple[type[Exception], ...] = (*HUB_ERRORS, RuntimeError, KeyError, SafetensorError, UnpicklingError)


def build_reward_model(config: RewardModelConfig, *, pretrained_encoder: bool | str | Path = False) -> FinPercepRM:
    """Assemble a rung with fresh weights.

    Args:
        config: the rung.
        pretrained_encoder: start the encoder from its published weights (timm's or smp's, downloaded on first use), or from a
            file of them in timm's format (``tu-…`` encoders); without either, from fresh ones.

    Raises:
        ConfigError: no such encoder, or the decoder cannot be built on it.
        WeightsError: pretrained encoder weights were asked for and cannot be had.
    """
    encoder = _pretrained_encoder(config, pretrained_encoder) if pretrained_encoder else _encoder(config)
    channels = list(encoder.out_channels)
    head = ScoreHead(channels[-1], config.modulation, config.head_hidden)
    return FinPercepRM(config, encoder, _map_decoder(config, encoder), head)


def _map_decoder(config: RewardModelConfig, encoder: Any) -> nn.Module | None:
    if config.map_stride is None:
        return None
    channels = list(encoder.out_channels)
    body = build_body(config, channels, prefix_tokens=getattr(encoder, "has_prefix_tokens", False))
    if config.decoder == "unet":
        return MapDecoder(body.module, body.channels) if body else MapDecoder(None, channels[-1])
    assert body is not None
    pool = config.map_stride // native_stride(config.decoder, config.encoder_depth)
    return PooledMapDecoder(body.module, body.channels, pool)


def _encoder(config: RewardModelConfig) -> Any:
    """The encoder with fresh weights."""
    try:
        return _create_encoder(config)
    except (KeyError, RuntimeError, ValueError, TypeError, AssertionError) as error:
        which = "a timm ViT (tu-…)" if config.decoder == "dpt" else "one segmentation-models-pytorch knows"
        raise ConfigError(
            f"encoder {config.encoder!r} with depth {config.encoder_depth} and decoder {config.decoder!r} must be {which}; "
            f"ViTs go with decoder 'dpt', others with the rest: {one_line(error)}"
        ) from error


def _input_planes(config: RewardModelConfig) -> int:
    return 3 + (EVIDENCE_PLANES if config.lr_input else 0)


def _create_encoder(config: RewardModelConfig, *, weights: str | bool | None = None, **timm_options: Any) -> Any:
    if config.decoder != "dpt":
        return smp.encoders.get_encoder(
            config.encoder, in_channels=_input_planes(config), depth=config.encoder_depth, weights=weights, **timm_options
        )
    if not config.encoder.startswith("tu-"):
        raise ValueError("its name does not begin with tu-")
    return ViTEncoder(
        config.encoder.removeprefix("tu-"),
        depth=config.encoder_depth,
        patch=config.deep_stride,
        in_channels=_input_planes(config),
        pretrained=weights is not None,
        **timm_options,
    )


def _pretrained_encoder(config: RewardModelConfig, source: bool | str | Path) -> Any:
    """The encoder with published weights; its kernels begin at 0 for the planes beside RGB, which those have never seen."""
    of_rgb = _pretrained_rgb_encoder(replace(config, lr_input=False), source)
    if not config.lr_input:
        return of_rgb
    encoder = _encoder(config)
    theirs = of_rgb.state_dict()
    for name, tensor in encoder.state_dict().items():
        known = theirs[name]
        is_first = tensor.shape != known.shape
        tensor.copy_(F.pad(known, (0, 0, 0, 0, 0, EVIDENCE_PLANES)) if is_first else known)
    return encoder


def _pretrained_rgb_encoder(config: RewardModelConfig, source: bool | str | Path) -> Any:
    with torch.random.fork_rng(devices=[]):  # so that the second encoder begins with the weights of this one
        fresh = _encoder(config)  # a name that does not exist is the config's fault, whatever goes wrong after it the weights'
    timm_options: dict[str, Any] = {}
    if source is not True:
        if not config.encoder.startswith("tu-"):
            raise ConfigError(f"encoder weights from a file are for timm's encoders (tu-…), got encoder {config.encoder!r}")
        if not Path(str(source)).is_file():
            raise WeightsError(f"{source}: expected a file with weights of {config.encoder!r}, found none; check the path")
        timm_options = {"pretrained_cfg_overlay": {"file": str(source)}}
    try:
        encoder = _create_encoder(config, weights=config.encoder.startswith("tu-") or "imagenet", **timm_options)
    except _LOADING_ERRORS as error:
        if source is not True:
            raise WeightsError(f"{source}: not weights of {config.encoder!r}: {one_line(error)}") from error
        raise WeightsError(
            f"weights of {config.encoder!r} could not be downloaded; give a file of them or train from scratch: {one_line(error)}"
        ) from error
    if missing := _still_fresh(encoder, fresh):
        where = f"weights of {config.encoder!r}" if source is True else str(source)
        raise WeightsError(f"{where}: expected a tensor for each of {config.encoder!r}, found none for {', '.join(missing[:3])}")
    return encoder


def _still_fresh(encoder: nn.Module, fresh: nn.Module) -> list[str]:
    """Kernels and matrices that loading left at their random values: timm only logs what a file lacks."""
    before = dict(fresh.named_parameters())
    return [
        name
        for name, tensor in encoder.named_parameters()
        if name.endswith(".weight") and tensor.ndim > 1 and tensor.any() and torch.equal(tensor, before[name])
    ]


def with_encoder_statistics(config: RewardModelConfig) -> RewardModelConfig:
    """``config`` with the input normalisation of its encoder's data config."""
    encoder = _encoder(config)
    data = getattr(getattr(encoder, "model", None), "default_cfg", None) or {}
    return replace(config, mean=tuple(data.get("mean", config.mean)), std=tuple(data.get("std", config.std)))


def inherit_weights(model: FinPercepRM, parent: FinPercepRM) -> int:
    """Start ``model`` from ``parent``, the rung before: every tensor of the same name and shape is copied.

    A parent without LR input passes on its first kernel all the same; the planes beside RGB begin at 0.

    Returns:
        How many tensors were copied.

    Raises:
        ConfigError: the parent has another encoder.
    """
    theirs = parent.state_dict()
    shared: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        known = theirs.get(name)
        if known is not None and known.ndim == tensor.ndim == 4 and tensor.shape[1] - known.shape[1] == EVIDENCE_PLANES:
            known = F.pad(known, (0, 0, 0, 0, 0, EVIDENCE_PLANES))
        if known is not None and known.shape == tensor.shape:
            shared[name] = known
        elif name.startswith("encoder."):
            raise ConfigError(
                f"weights of encoder {parent.config.encoder!r} do not fit {model.config.encoder!r} ({name}); start from a ladder "
                "with the same encoder, or from scratch"
            )
    model.load_state_dict(shared, strict=False)
    return len(shared)
