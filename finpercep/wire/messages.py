"""The tensor half of the wire as data: a request to score and its response, validated whenever one is built.

Both ends build these same classes, so a message that breaks the contract is refused by its sender already.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from finpercep.errors import WireError
from finpercep.reward import RewardWeights
from finpercep.wire.reply import ModelId, Timing

PIXEL_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
"""dtypes an image may travel in. uint8 means value/255; floats lie in [0, 1]."""

REQUEST, RESPONSE = "score request", "score response"


def check_images(images: torch.Tensor | Sequence[torch.Tensor], stacked: str = "images", single: str = "image") -> None:
    """Require N×3×H×W, or a list of 3×H×W of any sizes; a wire dtype; finite; floats in [0, 1].

    Raises:
        WireError: names the tensor, what was expected and what was received.
    """
    if isinstance(images, torch.Tensor):
        _check_pixels(stacked, images, ("N", "3", "H", "W"))
        return
    if not images:
        raise WireError(REQUEST, stacked, "at least one image", "none")
    for index, image in enumerate(images):
        _check_pixels(f"{single}.{index}", image, ("3", "H", "W"))


def _check_pixels(name: str, tensor: torch.Tensor, axes: tuple[str, ...]) -> None:
    shape = tuple(tensor.shape)
    if tensor.dtype not in PIXEL_DTYPES:
        raise WireError(REQUEST, name, "dtype uint8, float16, bfloat16 or float32", str(tensor.dtype))
    if len(shape) != len(axes) or shape[-3] != 3 or 0 in shape:
        raise WireError(REQUEST, name, f"shape {'×'.join(axes)} without an empty axis", shape)
    if tensor.dtype == torch.uint8:
        return
    low, high = (float(bound) for bound in torch.aminmax(tensor.detach()))
    if not (low - low == 0 and high - high == 0):  # inf - inf and nan - nan are nan
        raise WireError(REQUEST, name, "finite values", "nan or inf")
    if low < 0 or high > 1:
        raise WireError(REQUEST, name, "values in [0, 1]", f"{low:.6g} … {high:.6g}")


@dataclass(frozen=True, eq=False)
class ScoreRequest:
    """Images to score, and how.

    Attributes:
        images: N×3×H×W, scored as one batch; or a tuple of 3×H×W, sizes may differ. RGB, dtype one of `PIXEL_DTYPES`.
        rung: name of the rung; None for the server's default.
        weights: weights of the fused reward R.
        grad: whether ∂R/∂image is wanted.
        map: whether the degradation maps are wanted.
        lr: the low-resolution pictures the images were made from, one for each, stacked or not as they like; for a rung that
            takes them.
    """

    images: torch.Tensor | tuple[torch.Tensor, ...]
    rung: str | None = None
    weights: RewardWeights = field(default_factory=RewardWeights)
    grad: bool = False
    map: bool = False
    lr: torch.Tensor | tuple[torch.Tensor, ...] | None = None

    def __post_init__(self) -> None:
        check_images(self.images)
        if self.lr is not None:
            check_images(self.lr, "lr", "lr")
            if len(self.lr) != len(self.images):
                raise WireError(REQUEST, "lr", f"one picture for each of the {len(self.images)} images", len(self.lr))

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class ScoreResponse:
    """What was asked for, by image. An image that failed is in ``errors`` and has NaN in every number.

    Attributes:
        score: float32 (N,) in [0, 1]; higher is better.
        reward: float32 (N,), the fused R; higher is better.
        max_degradation: float32 (N,) in [0, 1]; 0 for a rung without a map.
        mean_degradation: float32 (N,) in [0, 1]; 0 for a rung without a map.
        model: which model answered.
        timing: where the time went.
        maps: float32 N×H×W in [0, 1], 1 = degraded; a tuple of H×W (None where the image failed) when sizes differ or an image
            failed; None when not asked, or when the rung has no map.
        grads: float32 ∂R/∂image, N×3×H×W or a tuple, as ``maps``; with respect to pixels in [0, 1] whatever dtype they came in.
        errors: index of the image → why it has no result.
    """

    score: torch.Tensor
    reward: torch.Tensor
    max_degradation: torch.Tensor
    mean_degradation: torch.Tensor
    model: ModelId
    timing: Timing
    maps: torch.Tensor | tuple[torch.Tensor | None, ...] | None = None
    grads: torch.Tensor | tuple[torch.Tensor | None, ...] | None = None
    errors: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_errors()
        failed = [index in self.errors for index in range(len(self))]
        for name in ("score", "reward", "max_degradation", "mean_degradation"):
            self._check_numbers(name, getattr(self, name), failed, unit=name != "reward")
        self._check_stack("maps", self.maps, ("H", "W"))
        self._check_stack("grads", self.grads, ("3", "H", "W"))

    def __len__(self) -> int:
        return int(self.score.numel())

    def _check_errors(self) -> None:
        stray = [index for index in self.errors if not 0 <= index < len(self)]
        if stray:
            raise WireError(RESPONSE, "errors", f"image numbers below {len(self)}", stray[0])

    def _check_numbers(self, name: str, tensor: torch.Tensor, failed: list[bool], unit: bool) -> None:
        shape = tuple(tensor.shape)
        if tensor.dtype != torch.float32 or shape != (len(self),) or not shape[0]:
            raise WireError(RESPONSE, name, f"float32, shape ({max(1, len(self))},)", f"{tensor.dtype}, shape {shape}")
        numbers = tensor.tolist()
        if [math.isnan(number) for number in numbers] != failed:
            raise WireError(RESPONSE, name, "NaN for images with an error and for no others", numbers)
        low, high = (0, 1) if unit else (-sys.float_info.max, sys.float_info.max)
        if not all(low <= number <= high for number in numbers if not math.isnan(number)):
            raise WireError(RESPONSE, name, "numbers in [0, 1]" if unit else "finite numbers", numbers)

    def _check_stack(self, name: str, stack: torch.Tensor | Sequence[torch.Tensor | None] | None, axes: tuple[str, ...]) -> None:
        if stack is None:
            return
        if len(stack) != len(self):
            raise WireError(RESPONSE, name, f"{len(self)} tensors", len(stack))
        if len(self.errors) == len(self):
            raise WireError(RESPONSE, name, "none where every image failed", "some")
        if isinstance(stack, torch.Tensor) and self.errors:
            raise WireError(RESPONSE, name, "one tensor an image where an image failed", "one stacked tensor")
        for index, tensor in enumerate(stack):
            field_name = f"{name}[{index}]"
            if (tensor is None) != (index in self.errors):
                expected = "no tensor for an image with an error" if index in self.errors else "a tensor"
                raise WireError(RESPONSE, field_name, expected, "none" if tensor is None else "one")
            if tensor is not None:
                _check_plane(field_name, tensor, axes)


def _check_plane(name: str, tensor: torch.Tensor, axes: tuple[str, ...]) -> None:
    """A map (H×W, in [0, 1]) or a gradient (3×H×W) of one image."""
    shape = tuple(tensor.shape)
    if tensor.dtype != torch.float32 or len(shape) != len(axes) or 0 in shape or (len(axes) == 3 and shape[0] != 3):
        raise WireError(RESPONSE, name, f"float32, shape {'×'.join(axes)}", f"{tensor.dtype}, shape {shape}")
    low, high = (float(bound) for bound in torch.aminmax(tensor.detach()))
    if not (low - low == 0 and high - high == 0):
        raise WireError(RESPONSE, name, "finite values", "nan or inf")
    if len(axes) == 2 and (low < 0 or high > 1):
        raise WireError(RESPONSE, name, "values in [0, 1]", f"{low:.6g} … {high:.6g}")
