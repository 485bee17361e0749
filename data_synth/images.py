"""Float images and fields, as the effects of this package take and give them, and their 8-bit form, as pictures are stored."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_synth.schema.pixels import RGB8

FloatImage = npt.NDArray[np.float32]
"""H×W×3 float32 RGB in [0, 1]."""
Field = npt.NDArray[np.float32]
"""H×W float32."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in luma (ITU-R BT.601); they sum to 1."""


def luma(image: FloatImage) -> Field:
    """Luma of H×W×3 float32: H×W float32.

    Multiplied and added one by one: a matrix product would round differently from one kind of processor to another, and an
    effect that picks the strongest of something would then pick another.
    """
    red, green, blue = (np.float32(weight) * image[..., channel] for channel, weight in enumerate(LUMA))
    total: Field = red + green + blue
    return total


def to_8bit(image: FloatImage) -> RGB8:
    """Nearest of the 256 levels; values outside [0, 1] are clipped. H×W×3 float32 → H×W×3 uint8."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def to_float(image: RGB8) -> FloatImage:
    """H×W×3 uint8 → float32 in [0, 1], in steps of 1/255; `to_8bit` gives the same bytes back."""
    return image.astype(np.float32) / np.float32(255)
