"""Float images, as the effects of this package take and give them, and their 8-bit form, as pictures are stored."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_synth.schema.pixels import RGB8

FloatImage = npt.NDArray[np.float32]
"""H×W×3 float32 RGB in [0, 1]."""


def to_8bit(image: FloatImage) -> RGB8:
    """Nearest of the 256 levels; values outside [0, 1] are clipped. H×W×3 float32 → H×W×3 uint8."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def to_float(image: RGB8) -> FloatImage:
    """H×W×3 uint8 → float32 in [0, 1], in steps of 1/255; `to_8bit` gives the same bytes back."""
    return image.astype(np.float32) / np.float32(255)
