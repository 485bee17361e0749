"""Rewards that are one number: a quality metric of pyiqa, ImageReward, or anybody's function. Each is a ladder of one rung."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from finpercep.errors import ConfigError, RewardError, WeightsError
from finpercep.reward import RewardFn, Rewards, RewardWeights

Metric = Callable[[torch.Tensor], torch.Tensor]
"""Images (N, 3, H, W) float32 RGB in [0, 1] → (N,), higher is better; differentiable where gradients are wanted."""


class MetricReward:
    """`RewardFn` of a metric: R and S are its number, and there is no map."""

    def __init__(self, name: str, metric: Metric) -> None:
        self.name, self.metric = name, metric

    def __call__(self, images: torch.Tensor) -> Rewards:
        """Score ``images``. Raises `RewardError` when the metric gives something else than a tensor of finite numbers, N."""
        values: object = self.metric(images)
        if not isinstance(values, torch.Tensor):
            raise RewardError(f"{self.name}: expected a tensor with one number an image, got {type(values).__name__}")
        if values.numel() != len(images):
            raise RewardError(f"{self.name}: expected one number an image, got shape {tuple(values.shape)} for {len(images)}")
        values = values.reshape(len(images)).float()
        if not values.isfinite().all():
            raise RewardError(f"{self.name}: the reward is not finite")
        zero = torch.zeros_like(values, requires_grad=False)
        return Rewards(values, values.detach(), zero, zero)


class MetricSource:
    """`RewardSource` of one metric; its only rung has the metric's name."""

    def __init__(self, name: str, metric: Metric) -> None:
        self._reward = MetricReward(name, metric)

    def rungs(self) -> Sequence[str]:
        """The metric's name."""
        return (self._reward.name,)

    def has_map(self, rung: str) -> bool:  # noqa: ARG002
        """Never."""
        return False

    def reward_fn(self, rung: str, weights: RewardWeights) -> RewardFn:  # noqa: ARG002
        """The metric, whatever the weights: it is one number."""
        return self._reward


def pyiqa_metric(name: str, device: torch.device | str = "cpu") -> Metric:
    """A no-reference metric of pyiqa, turned so that higher is better.

    Raises:
        MissingExtraError: pyiqa is not installed.
        WeightsError: there is no such metric, or its weights cannot be had.
    """
    from finpercep.training.iqa_metrics import create_metric

    metric = create_metric(name, device, as_loss=True)
    sign = -1.0 if metric.lower_better else 1.0
    # images are quantised nowhere: what leaves [0, 1] by rounding would be refused by some metrics
    return lambda images: sign * metric(images.to(device).clamp(0, 1)).to(images.device)


def python_metric(target: str) -> Metric:
    """The function ``MODULE:NAME``, imported, from the current folder too. Raises `ConfigError` when there is none."""
    module, _, name = target.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # last, so that it hides nothing
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"python:{target}: expected MODULE:FUNCTION that can be imported: {error}") from error
    if not callable(found):
        raise ConfigError(f"python:{target}: expected a function of a batch of images, got {type(found).__name__}")
    metric: Metric = found
    return metric


IMAGE_REWARD_SIDE = 224
IMAGE_REWARD_MEAN, IMAGE_REWARD_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""What ImageReward's BLIP encoder is shown (arXiv 2304.05977)."""


def image_reward(prompt: str, device: torch.device | str = "cpu") -> Metric:
    """ImageReward-v1.0 for one prompt, differentiable (the ``ImageReward`` package, arXiv 2304.05977).

    Raises:
        ConfigError: the package is not installed.
        WeightsError: its weights cannot be had.
    """
    try:
        package: Any = importlib.import_module("ImageReward")
    except ImportError as error:
        raise ConfigError("the reward imagereward needs a package of its own: pip install image-reward") from error
    try:
        model = package.load("ImageReward-v1.0", device=str(device))
    except Exception as error:  # downloads and damaged files raise many unrelated types
        raise WeightsError(f"the weights of ImageReward could not be had ({error}); go online once, or leave it out") from error
    model.requires_grad_(False).eval()
    words = model.blip.tokenizer([prompt], padding="max_length", truncation=True, max_length=35, return_tensors="pt").to(device)
    mean, std = (torch.tensor(values, device=device)[None, :, None, None] for values in (IMAGE_REWARD_MEAN, IMAGE_REWARD_STD))

    def metric(images: torch.Tensor) -> torch.Tensor:
        side = (IMAGE_REWARD_SIDE, IMAGE_REWARD_SIDE)
        small = torch.nn.functional.interpolate(images.to(device), side, mode="bicubic", antialias=True).clamp(0, 1)
        ids, mask = (words[key].expand(len(images), -1) for key in ("input_ids", "attention_mask"))
        scores: torch.Tensor = model.score_gard(ids, mask, (small - mean) / std)
        return scores.flatten().to(images.device)

    return metric
