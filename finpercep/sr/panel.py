"""The panel: full-reference metrics on held-out photos that no reward contains, through pyiqa; none needs a download."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from finpercep.errors import MissingExtraError

PANEL = {"psnr": True, "fsim": True, "vsi": True, "gmsd": False}
"""Metric name → whether higher is better. PSNR is in dB; FSIM and VSI lie in [0, 1]; GMSD is 0 for identical images."""


@dataclass(frozen=True)
class PanelScores:
    """Metric name → float64 (N,), one value an image."""

    values: dict[str, torch.Tensor]

    def means(self) -> dict[str, float]:
        """Mean of every metric."""
        return {name: float(values.mean()) for name, values in self.values.items()}


@torch.no_grad()
def panel_scores(images: torch.Tensor, ground_truth: torch.Tensor) -> PanelScores:
    """Compare (N, 3, H, W) images in [0, 1] with their ground truth.

    Raises:
        MissingExtraError: pyiqa is not installed.
    """
    metrics = _metrics(images.device)
    return PanelScores({name: metric(images, ground_truth).flatten().double().cpu() for name, metric in metrics.items()})


@cache
def _metrics(device: torch.device) -> dict[str, Any]:
    """The panel on ``device``, built once: a monitored run asks again and again."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pyiqa's imports warn about themselves
            import pyiqa

            return {name: pyiqa.create_metric(name, device=device) for name in PANEL}
    except ModuleNotFoundError as error:
        raise MissingExtraError("pyiqa", "train") from error
