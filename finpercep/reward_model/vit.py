"""Vision transformers as encoders, and DPT on top of them: what segmentation-models-pytorch's DPT does, for any image size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from segmentation_models_pytorch.encoders import TimmViTEncoder
from torch import nn
from torch.nn import functional as F


class ViTEncoder(TimmViTEncoder):
    """A timm ViT that takes any grid of patches and hands its features out as a list, as other encoders do.

    Every level has the patch's stride and went through the ViT's last normalisation, as its own head would see it. The
    classification head and blocks beyond the last level are removed.
    """

    def __init__(self, name: str, *, depth: int, patch: int, in_channels: int, pretrained: bool, **timm_options: Any) -> None:
        """As many levels as ``depth``, spread evenly over the blocks; a ``patch`` other than the name's resamples its weights."""
        settings = {"patch_size": patch, "dynamic_img_size": True, "num_classes": 0, **timm_options}
        super().__init__(name, depth=depth, in_channels=in_channels, pretrained=pretrained, **settings)
        self.model.prune_intermediate_layers(self._output_indices, prune_norm=False, prune_head=True)
        self.out_channels: list[int] = [in_channels, *(self.model.feature_info[i]["num_chs"] for i in self._output_indices)]

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The prefix tokens of each level (N, tokens, C), where there are any; the image; the maps (N, C, h, w), last f_N."""
        levels = self.model.forward_intermediates(
            image,
            indices=self._output_indices,
            norm=True,
            intermediates_only=True,
            return_prefix_tokens=self.has_prefix_tokens,
        )
        if not self.has_prefix_tokens:
            return [image, *levels]
        return [*(tokens for _, tokens in levels), image, *(maps for maps, _ in levels)]


class TokenDecoder(nn.Module):
    """smp's DPT decoder on a `ViTEncoder`'s list.

    DPT's coarsest level is half as fine as the patches. Where their number is odd, the last row or column is repeated before
    the decoder, and what it becomes is cut off behind it: an image need be padded to whole patches only.
    """

    def __init__(self, dpt: nn.Module, levels: int) -> None:
        super().__init__()
        self.dpt, self.levels = dpt, levels

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """``features``: as `ViTEncoder.forward` gives them. Returns (N, C, h, w) at stride 2."""
        maps = features[-self.levels :]
        tokens = list(features[: self.levels]) if len(features) > self.levels + 1 else [None] * self.levels
        height, width = maps[0].shape[-2:]
        even = [F.pad(level, (0, width % 2, 0, height % 2), mode="replicate") for level in maps]
        decoded: torch.Tensor = self.dpt(even, tokens)
        per_patch = decoded.shape[-2] // even[0].shape[-2]
        return decoded[..., : height * per_patch, : width * per_patch]
