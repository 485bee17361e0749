"""Decoders of segmentation-models-pytorch by name: how each is built on an encoder, and which encoder it goes with.

All widths are here and come from `RewardModelConfig.decoder_channels`; the strides are `config.native_stride`. PAN is left out:
its pyramid halves f_N three times, and so takes no image below eight of f_N's strides (128 px), where this model takes 32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3Decoder, DeepLabV3PlusDecoder
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.linknet.decoder import LinknetDecoder
from segmentation_models_pytorch.decoders.manet.decoder import MAnetDecoder
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import nn

from finpercep.errors import ConfigError
from finpercep.reward_model.config import RewardModelConfig
from finpercep.reward_model.vit import TokenDecoder

ATROUS_RATES = (12, 24, 36)
ASPP_DROPOUT = 0.5
DROPOUT = 0.2
PAB_CHANNELS = 64
DPT_WIDENING = (1, 2, 4, 4, 4)
"""Channels of DPT's levels, finest first, over the width it fuses them at (the paper's ViT-B: 256, 512, 1024, 1024 over 256)."""


@dataclass(frozen=True)
class Body:
    """A decoder without its head: features → (N, ``channels``, h, w) at the decoder's native stride."""

    module: nn.Module
    channels: int


def build_body(config: RewardModelConfig, encoder_channels: Sequence[int], *, prefix_tokens: bool = False) -> Body | None:
    """The rung's decoder with fresh weights; None for a U-Net cut off before its first block.

    Args:
        config: the rung.
        encoder_channels: of the encoder's features, the image first; 0 where the encoder has nothing at that stride.
        prefix_tokens: the encoder is a ViT that hands out class or register tokens.

    Raises:
        ConfigError: the decoder cannot be built on this encoder.
    """
    needs_all = {"fpn": encoder_channels[-4:], "unetplusplus": encoder_channels[1:]}
    if 0 in needs_all.get(config.decoder, ()):
        raise ConfigError(
            f"decoder {config.decoder!r} needs features at every stride it reads, and {config.encoder!r} has none at stride 2; "
            "take another decoder, such as 'unet' or 'segformer'" + (", or encoder_depth 5" if config.decoder == "fpn" else "")
        )
    try:
        if config.decoder == "dpt":
            return _dpt(config, encoder_channels, prefix_tokens)
        return _BUILDERS[config.decoder](config, list(encoder_channels))
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ConfigError(
            f"decoder {config.decoder!r} with decoder_channels {config.decoder_channels} cannot be built on {config.encoder!r}: "
            f"{error}"
        ) from error


def _unet(config: RewardModelConfig, channels: list[int]) -> Body | None:
    widths = config.decoder_channels[: config.decoder_blocks]
    return Body(UnetDecoder(channels, widths, n_blocks=len(widths)), widths[-1]) if widths else None


def _unetplusplus(config: RewardModelConfig, channels: list[int]) -> Body:
    widths = config.decoder_channels[: config.decoder_blocks]
    return Body(UnetPlusPlusDecoder(channels, widths, n_blocks=len(widths)), widths[-1])


def _manet(config: RewardModelConfig, channels: list[int]) -> Body:
    widths = config.decoder_channels[: config.decoder_blocks]
    return Body(MAnetDecoder(channels, widths, n_blocks=len(widths), pab_channels=PAB_CHANNELS), widths[-1])


def _linknet(config: RewardModelConfig, channels: list[int]) -> Body:
    width = config.decoder_channels[-1]
    return Body(LinknetDecoder(channels, prefinal_channels=width, n_blocks=config.encoder_depth), width)


def _fpn(config: RewardModelConfig, channels: list[int]) -> Body:
    width = config.decoder_channels[0]
    if width < 64:
        raise ValueError("its 32 normalisation groups need at least 64 channels")  # one channel at one position has no variance
    return Body(FPNDecoder(channels, config.encoder_depth, width, width, DROPOUT), width)


def _upernet(config: RewardModelConfig, channels: list[int]) -> Body:
    width = config.decoder_channels[0]
    return Body(UPerNetDecoder(channels, config.encoder_depth, width), width)


def _segformer(config: RewardModelConfig, channels: list[int]) -> Body:
    width = config.decoder_channels[0]
    return Body(SegformerDecoder(channels, config.encoder_depth, width), width)


def _pspnet(config: RewardModelConfig, channels: list[int]) -> Body:
    width = config.decoder_channels[0]
    return Body(PSPDecoder(channels, out_channels=width, dropout=DROPOUT), width)


def _deeplabv3(config: RewardModelConfig, channels: list[int]) -> Body:
    width = config.decoder_channels[0]
    decoder = DeepLabV3Decoder(channels[-1], width, ATROUS_RATES, aspp_separable=False, aspp_dropout=ASPP_DROPOUT)
    return Body(decoder, width)


def _deeplabv3plus(config: RewardModelConfig, channels: list[int]) -> Body:
    width, depth = config.decoder_channels[0], config.encoder_depth
    decoder = DeepLabV3PlusDecoder(
        channels, depth, width, ATROUS_RATES, output_stride=16, aspp_separable=True, aspp_dropout=ASPP_DROPOUT
    )
    decoder.up = nn.UpsamplingBilinear2d(scale_factor=2 ** (depth - 2))  # smp dilates a deep encoder instead
    return Body(decoder, width)


def _dpt(config: RewardModelConfig, channels: Sequence[int], prefix_tokens: bool) -> Body:
    width, levels = config.decoder_channels[0], config.encoder_depth
    decoder = DPTDecoder(
        encoder_out_channels=channels[1:],
        encoder_output_strides=[config.deep_stride] * levels,
        encoder_has_prefix_tokens=prefix_tokens,
        readout="cat" if prefix_tokens else "ignore",
        intermediate_channels=[width * factor for factor in DPT_WIDENING[:levels]],
        fusion_channels=width,
    )
    return Body(TokenDecoder(decoder, levels), width)


_BUILDERS: dict[str, Callable[[RewardModelConfig, list[int]], Body | None]] = {
    "unet": _unet,
    "unetplusplus": _unetplusplus,
    "manet": _manet,
    "linknet": _linknet,
    "fpn": _fpn,
    "upernet": _upernet,
    "segformer": _segformer,
    "pspnet": _pspnet,
    "deeplabv3": _deeplabv3,
    "deeplabv3plus": _deeplabv3plus,
}
