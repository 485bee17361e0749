"""What a codec leaves."""

from __future__ import annotations

from data_synth.degradations import jpeg_round_trip
from data_synth.images import FloatImage


def blocking(image: FloatImage, *, quality: int) -> FloatImage:
    """Blocks of 8 px and mosquito noise: JPEG traces of the input that SR keeps or sharpens. JPEG round trip of ``quality``."""
    return jpeg_round_trip(image, quality)
