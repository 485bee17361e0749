"""Pseudo quality: one number an image, 1 = identical to gt, for the global head. From a full-reference metric without weights.

Knows nothing about maps or masks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from data_synth.schema.errors import FinpercepError
from data_synth.schema.pixels import RGB8


class QualityError(FinpercepError):
    """Settings or a measurement that give no quality."""


@dataclass(frozen=True)
class QualityConfig:
    """Settings of `pseudo_quality`.

    Attributes:
        tau: GMSD at which quality has fallen to 1/e; with the default an x4 bicubic-like image lands near 0.3.
        batch_size: images measured at once.
    """

    tau: float = 0.1
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.tau <= 0 or self.batch_size < 1:
            raise QualityError(f"tau and batch_size must be positive, got {self.tau}, {self.batch_size}")


def pseudo_quality(images: Sequence[RGB8], references: Sequence[RGB8], config: QualityConfig) -> npt.NDArray[np.float32]:
    """exp(−GMSD/τ) of every image against its reference (Xue et al., 2013; pyiqa's implementation).

    Args:
        images: uint8 H×W×3 RGB, all of one size.
        references: one for each image, of its size.
        config: how distance becomes quality.

    Returns:
        float32, one in [0, 1] an image; exactly 1 for an image equal to its reference.

    Raises:
        QualityError: the metric came out non-finite.
    """
    import torch

    measured: list[float] = []
    for start in range(0, len(images), config.batch_size):
        chunk = slice(start, start + config.batch_size)
        batch, reference = (
            torch.from_numpy(np.stack(part[chunk])).permute(0, 3, 1, 2).float() / 255 for part in (images, references)
        )
        with torch.no_grad():
            measured.extend(_gmsd()(batch, reference).tolist())
    if not all(math.isfinite(value) for value in measured):
        raise QualityError(f"GMSD must be finite, got {measured}; the images are damaged or smaller than 8 px")
    return np.exp(-np.array(measured, dtype=np.float64) / config.tau).astype(np.float32)


@cache
def _gmsd() -> Any:
    import pyiqa  # seconds to import, so only when a quality is asked for

    return pyiqa.create_metric("gmsd", device="cpu")
