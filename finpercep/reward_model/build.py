"""The one place where a reward model is assembled from its config."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import segmentation_models_pytorch as smp
import torch

from finpercep.errors import ConfigError, WeightsError
from finpercep.reward_model.config import RewardModelConfig
from finpercep.reward_model.lr_evidence import EVIDENCE_PLANES
from finpercep.reward_model.map_decoder import MapDecoder
from finpercep.reward_model.model import FinPercepRM
from finpercep.reward_model.score_head import ScoreHead


def build_reward_model(config: RewardModelConfig, *, pretrained_encoder: bool = False) -> FinPercepRM:
    """Assemble a rung with fresh weights (or timm's pretrained encoder, which may need a download).

    Raises:
        ConfigError: no such encoder.
        WeightsError: pretrained encoder weights were asked for and cannot be had.
    """
    encoder = _build_encoder(config, pretrained=pretrained_encoder)
    channels = list(encoder.out_channels)
    decoder = None if config.map_stride is None else MapDecoder(channels, config.decoder_channels[: config.decoder_blocks])
    head = ScoreHead(channels[-1], config.modulation, config.head_hidden)
    return FinPercepRM(config, encoder, decoder, head)


def _build_encoder(config: RewardModelConfig, *, pretrained: bool) -> Any:
    channels = 3 + (EVIDENCE_PLANES if config.lr_input else 0)
    try:
        return smp.encoders.get_encoder(
            config.encoder, in_channels=channels, depth=config.encoder_depth, weights="imagenet" if pretrained else None
        )
    except (KeyError, RuntimeError) as error:
        raise ConfigError(f"encoder {config.encoder!r} is not one segmentation-models-pytorch knows: {error}") from error
    except OSError as error:
        raise WeightsError(
            f"weights of {config.encoder!r} could not be downloaded; train from scratch instead: {error}"
        ) from error


def with_encoder_statistics(config: RewardModelConfig) -> RewardModelConfig:
    """``config`` with the input normalisation of its encoder's data config."""
    encoder = _build_encoder(config, pretrained=False)
    data = getattr(getattr(encoder, "model", None), "default_cfg", None) or {}
    return replace(config, mean=tuple(data.get("mean", config.mean)), std=tuple(data.get("std", config.std)))


def inherit_weights(model: FinPercepRM, parent: FinPercepRM) -> int:
    """Start ``model`` from ``parent``, the rung before: every tensor of the same name and shape is copied. Returns how many."""
    theirs = parent.state_dict()
    shared: dict[str, torch.Tensor] = {
        name: theirs[name] for name, tensor in model.state_dict().items() if name in theirs and theirs[name].shape == tensor.shape
    }
    model.load_state_dict(shared, strict=False)
    return len(shared)
