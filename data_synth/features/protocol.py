"""What `ground_truth` asks of a feature extractor: the difference of two images, not the features. Knows no extractor."""

from __future__ import annotations

from typing import Protocol

import torch

from data_synth.schema.errors import FinpercepError


class GroundTruthError(FinpercepError):
    """Images that cannot be compared, settings that make no map, or features that cannot be had."""


class FeatureDifference(Protocol):
    """Diff_feat = 1 − cos(f, g) of one kind of features (method §3), brought to image resolution.

    An extractor returns the difference and not the features: dense ones would take hundreds of numbers a pixel.
    """

    @property
    def reach(self) -> int | None:
        """How many px around a pixel its value looks at; None: the whole image, so that no part may be cut out first."""
        ...

    def __call__(self, pair: torch.Tensor) -> torch.Tensor:
        """Difference of ``pair`` (2×3×H×W float32 RGB in [0, 1]): H×W float32 in [0, 2], exactly 0 for equal images."""
        ...
