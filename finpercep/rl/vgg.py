"""VGG19 features as RFSR's Gram term takes them (arXiv 2412.03268; method §6)."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.error import URLError

import torch
from torchvision.models import VGG19_Weights, vgg19

from finpercep.errors import WeightsError

LAYERS = {"conv1_2": 2, "conv2_2": 7, "conv3_4": 16, "conv4_4": 25, "conv5_4": 34}
"""Where the convolutions are in torchvision's ``vgg19().features``."""

LAYER_WEIGHTS = (0.1, 0.1, 1.0, 1.0, 1.0)
"""What each layer's Gram distance counts."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Vgg19Features:
    """`FeatureExtractor`: the outputs of `LAYERS`, before their activations; frozen.

    Args:
        layers: ``vgg19().features``; its activations are made to leave their inputs alone.
    """

    def __init__(self, layers: torch.nn.Sequential) -> None:
        self.layers = layers[: max(LAYERS.values()) + 1].requires_grad_(False).eval()
        for layer in self.layers:
            if isinstance(layer, torch.nn.ReLU):
                layer.inplace = False

    def __call__(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        """Features of N×3×H×W images in [0, 1], differentiable."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in (_MEAN, _STD))
        x, found = (images - mean) / std, []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in LAYERS.values():
                found.append(x)
        return found


def load_vgg19(device: torch.device | str) -> Vgg19Features:
    """VGG19 trained on ImageNet, as torchvision has it.

    Raises:
        WeightsError: the weights are not there and cannot be had.
    """
    try:
        model = vgg19(weights=VGG19_Weights.IMAGENET1K_V1)
    except (URLError, OSError, RuntimeError) as error:
        reason = f"torchvision's VGG19 weights cannot be had ({error}); go online once, or use another extractor of features"
        raise WeightsError(reason) from error
    return Vgg19Features(model.features.to(device))
