"""Back-projection: makes an SR image agree with its LR image, so that only the invented detail is left to be wrong.

sr ← sr + up(lr − down(sr)), iterated (Irani & Peleg, 1991). Without it "compare with the input" would give most defects away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_synth.degradations import resize_image
from data_synth.images import FloatImage
from data_synth.schema.errors import FinpercepError


class BackProjectionError(FinpercepError):
    """A back-projection that cannot be done."""


@dataclass(frozen=True)
class BackProjection:
    """How often it is iterated; five times leave little of lr − down(sr)."""

    iterations: int

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise BackProjectionError(f"iterations must be at least 1, got {self.iterations}")


def back_project(sr: FloatImage, lr: FloatImage, projection: BackProjection) -> FloatImage:
    """Iterate towards down(sr) = lr, with anti-aliased bicubic resizing both ways.

    Args:
        sr: H×W×3 float32 in [0, 1].
        lr: h×w×3 float32 in [0, 1], smaller by a whole factor.
        projection: how often.

    Returns:
        The image, of ``sr``'s shape, float32 in [0, 1].
    """
    small, large = (lr.shape[0], lr.shape[1]), (sr.shape[0], sr.shape[1])
    for _ in range(projection.iterations):
        error = lr - resize_image(sr, small, "bicubic")
        sr = np.clip(sr + resize_image(error, large, "bicubic"), 0, 1)
    return sr.astype(np.float32, copy=False)
