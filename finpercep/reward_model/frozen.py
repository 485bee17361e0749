"""The same function as a rung's in eval mode, with less work: what a predictor runs in place of the trained model.

Exact up to rounding (1e-5 on scores and maps, tested): a batch norm is folded into the convolution before it, and a convolution
of a feature map doubled by repetition is done at the smaller size. The trained model, its weights and digest stay as they are.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from typing import cast

import torch
from segmentation_models_pytorch.base.modules import Conv2dReLU
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock
from timm.layers.norm_act import BatchNormAct2d
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from finpercep.reward_model.model import FinPercepRM


def frozen_copy(model: FinPercepRM) -> FinPercepRM:
    """A copy of ``model``, which must be in eval mode, for scores and gradients to the image; not for training or saving.

    Shares nothing with ``model``.
    """
    return cast("FinPercepRM", _quicker(copy.deepcopy(model)).requires_grad_(False))


def _quicker(part: nn.Module) -> nn.Module:
    """``part``, or what replaces it; where it cannot be traced as a whole, child by child."""
    if isinstance(part, UnetDecoderBlock) and DoublingBlock.can_replace(part):
        return DoublingBlock(part)
    graph = _graph_of(part)
    if graph is not None:
        return _with_norms_folded(part, graph)
    for name, child in part.named_children():
        setattr(part, name, _quicker(child))
    return part


class _Tracer(fx.Tracer):
    """Steps over batch norms as a whole; timm's end in an activation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.BatchNorm2d) or super().is_leaf_module(m, module_qualified_name)


def _graph_of(part: nn.Module) -> fx.Graph | None:
    """What ``part`` computes from its one tensor; None if it takes more (optional ones are traced as given) or branches."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in part.modules()):
        return None
    if len(inspect.signature(part.forward).parameters) != 1:
        return None
    try:
        return _Tracer().trace(part)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError):
        return None


def _with_norms_folded(part: nn.Module, graph: fx.Graph) -> nn.Module:
    traced = fx.GraphModule(part, graph)
    modules = dict(traced.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        if calls[before.target] > 1 or calls[node.target] > 1:  # a part used at several places stands for all of them
            continue
        convolution, norm = modules[str(before.target)], modules[node.target]
        if type(convolution) is nn.Conv2d and isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            traced.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
            traced.set_submodule(node.target, _after(norm))
    return traced


def _after(norm: nn.BatchNorm2d) -> nn.Module:
    """What a batch norm does beside normalising: nothing, or timm's activation."""
    return nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()


class DoublingBlock(nn.Module):
    """A U-Net decoder block that never makes the doubled feature map.

    A 3×3 convolution of a map whose positions are repeated 2×2 sees at most 2×2 different values. For each of the four phases of
    the output it is a 2×2 convolution of the small map, with weights added up: 4/9 of the work, and no large map in memory.
    """

    def __init__(self, block: UnetDecoderBlock) -> None:
        super().__init__()
        first, self.activation = _convolution_and_activation(block.conv1)
        self.weight, self.bias = first.weight, first.bias
        self.phases = nn.Parameter(_weights_by_phase(first.weight.detach()))
        self.rest = nn.Sequential(*_convolution_and_activation(block.conv2), block.attention2)

    @staticmethod
    def can_replace(block: UnetDecoderBlock) -> bool:
        """Whether ``block`` doubles by repetition and convolves what it has doubled."""
        plain = block.interpolation_mode == "nearest" and isinstance(block.attention1.attention, nn.Identity)
        return plain and all(isinstance(conv[1], nn.BatchNorm2d | nn.Identity) for conv in (block.conv1, block.conv2))

    def forward(self, feature_map: torch.Tensor, height: int, width: int, skip_connection: torch.Tensor | None) -> torch.Tensor:
        """As the block it replaces: (N, C, h, w) and the skip (N, C', 2h, 2w) → (N, C'', 2h, 2w)."""
        channels, small = feature_map.shape[1], tuple(feature_map.shape[-2:])
        assert (height, width) == (2 * small[0], 2 * small[1])
        by_phase = F.conv2d(feature_map, self.phases[:, :channels], padding=1)
        summed = _interleaved(by_phase.unflatten(1, (2, 2, -1)))
        if skip_connection is not None and skip_connection.shape[1]:
            summed = summed + F.conv2d(skip_connection, self.weight[:, channels:], self.bias, padding=1)
        elif self.bias is not None:
            summed = summed + self.bias[:, None, None]
        out: torch.Tensor = self.rest(self.activation(summed))
        return out


def _convolution_and_activation(part: Conv2dReLU) -> tuple[nn.Conv2d, nn.Module]:
    convolution, norm, activation = part
    return (fuse_conv_bn_eval(convolution, norm) if isinstance(norm, nn.BatchNorm2d) else convolution), activation


def _weights_by_phase(weight: torch.Tensor) -> torch.Tensor:
    """Weights of a 3×3 convolution (O, C, 3, 3) → those on the small map for each phase of the doubled, (4·O, C, 2, 2).

    An even position of the doubled map has its left neighbour in the small position before, itself and its right neighbour in
    its own; an odd one has its left neighbour and itself in its own, its right neighbour in the small position after.
    """
    taps = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # phase, small position, tap
    return torch.einsum("aik,bjl,ockl->abocij", taps, taps, weight).flatten(0, 2)


def _interleaved(by_phase: torch.Tensor) -> torch.Tensor:
    """(N, 2, 2, C, h + 1, w + 1), the phases of rows and columns, to (N, C, 2h, 2w) in channels_last order."""
    height, width = (side - 1 for side in by_phase.shape[-2:])
    rows = []
    for a in range(2):
        columns = [by_phase[:, a, b, :, a : a + height, b : b + width].permute(0, 2, 3, 1) for b in range(2)]
        rows.append(torch.stack(columns, dim=3).flatten(2, 3))
    return torch.stack(rows, dim=2).flatten(1, 2).permute(0, 3, 1, 2)
