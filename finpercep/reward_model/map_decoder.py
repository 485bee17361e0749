"""M = sigmoid(Decoder({f_i})): a decoder of segmentation-models-pytorch, brought to the rung's stride.

The U-Net is cut off at that stride: a finer rung has more blocks. The others always run to their native stride, and their
features are averaged down to the rung's. Either way names and shapes of what two rungs share are the same, so that a rung
starts from the weights of the one before.

Inside, an image is padded by reflection to whole strides of f_N: whatever the decoder, its map is that of the image reflected by
hand to that size. More padding than that, or a part of the image instead of the whole, changes no more than the edge of U-Net's,
U-Net++'s, Linknet's and SegFormer's maps. The others look at the whole image, its padding included: FPN (GroupNorm), UPerNet,
PSPNet and DeepLab (global pooling), MAnet (attention over positions, and over channels), DPT (its encoder's attention).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


class MapDecoder(nn.Module):
    """Features → map logits at the rung's stride, by a U-Net with as many blocks as that takes."""

    def __init__(self, unet: nn.Module | None, channels: int) -> None:
        """``channels``: of what ``unet`` gives; of f_N when there is none."""
        super().__init__()
        self.unet = unet
        self.to_logits = nn.Conv2d(channels, 1, kernel_size=3, padding=1)

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """``features``: the encoder's, input resolution first. Returns logits (N, h, w) at the rung's stride."""
        decoded = features[-1] if self.unet is None else self.unet(list(features))
        logits: torch.Tensor = self.to_logits(decoded)
        return logits[:, 0]


class PooledMapDecoder(nn.Module):
    """Features → map logits at the rung's stride, by a decoder of a finer or equal native stride."""

    def __init__(self, body: nn.Module, channels: int, pool: int) -> None:
        """``channels``: of what ``body`` gives; ``pool``: the rung's stride over the body's."""
        super().__init__()
        self.body, self.pool = body, pool
        self.to_logits = nn.Conv2d(channels, 1, kernel_size=3, padding=1)

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """As `MapDecoder.forward`."""
        logits: torch.Tensor = self.to_logits(F.avg_pool2d(self.body(list(features)), self.pool))
        return logits[:, 0]
