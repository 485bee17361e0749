"""M = sigmoid(Decoder({f_i})): the U-Net decoder of segmentation-models-pytorch, cut off at the rung's stride."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import nn


class MapDecoder(nn.Module):
    """Features → map logits at the rung's stride.

    With more blocks the map gets finer; the first blocks keep their names and shapes from rung to rung, so that a rung starts
    from the weights of the one before.
    """

    def __init__(self, encoder_channels: Sequence[int], decoder_channels: Sequence[int]) -> None:
        super().__init__()
        blocks = len(decoder_channels)
        self.unet = UnetDecoder(encoder_channels, decoder_channels, n_blocks=blocks) if blocks else None
        self.to_logits = nn.Conv2d(decoder_channels[-1] if blocks else encoder_channels[-1], 1, kernel_size=3, padding=1)

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """``features``: the encoder's, input resolution first. Returns logits (N, h, w) at the rung's stride."""
        decoded = features[-1] if self.unet is None else self.unet(list(features))
        logits: torch.Tensor = self.to_logits(decoded)
        return logits[:, 0]
