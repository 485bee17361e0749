"""Degradation maps as pictures: a colour scale and an overlay. Pure functions on arrays.

The scale is inferno (Nathaniel Smith and Stéfan van der Walt, matplotlib, CC0): its lightness rises evenly, so that equal
steps of degradation look equal, in grey print and to colour-blind eyes too. matplotlib is no dependency of the base install,
so its 256 colours come from a polynomial of degree 6 fitted to them (Matt Zucker, shadertoy.com/view/WlfXRN, CC0).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from data_synth.schema.pixels import RGB8

Map = npt.NDArray[np.floating]

_INFERNO = np.array(
    [
        [0.0002189403691192265, 0.001651004631001012, -0.01948089843709184],
        [0.1065134194856116, 0.5639564367884091, 3.932712388889277],
        [11.60249308247187, -3.972853965665698, -15.9423941062914],
        [-41.70399613139459, 17.43639888205313, 44.35414519872813],
        [77.162935699427, -33.40235894210092, -81.80730925738993],
        [-71.31942824499214, 32.62606426397723, 73.20951985803202],
        [25.13112622477341, -12.24266895238567, -23.07032500287172],
    ]
)
"""Coefficients of t⁰ … t⁶ for red, green and blue in [0, 1]."""

_POWERS = np.linspace(0, 1, 256)[:, None] ** np.arange(7)[None, :]
COLOURS: RGB8 = np.rint(np.clip(_POWERS @ _INFERNO, 0, 1) * 255).astype(np.uint8)
"""256 colours, uint8 (256, 3) RGB: black at degradation 0, through purple and orange to pale yellow at 1."""


def heat_colours(degradation_map: Map) -> RGB8:
    """The map as colours.

    Args:
        degradation_map: H×W, in [0, 1], 1 = degraded.

    Returns:
        uint8 H×W×3, RGB.
    """
    return COLOURS[np.rint(np.clip(degradation_map, 0, 1) * 255).astype(np.intp)]


def overlay(pixels: RGB8, degradation_map: Map, opacity: float = 0.75) -> RGB8:
    """The map laid over its picture: a greyed picture where it is clean, glowing where it is degraded.

    The picture loses its own colours so that only the map's remain, and a colour's share grows with the square root of
    the degradation: a clean picture stays readable and a faint defect is still seen.

    Args:
        pixels: uint8 H×W×3, RGB.
        degradation_map: H×W, the same size, in [0, 1].
        opacity: share of the map's colour at degradation 1, in [0, 1].

    Returns:
        uint8 H×W×3, RGB.
    """
    if pixels.shape[:2] != degradation_map.shape:
        raise ValueError(f"map and picture must have one size, got {degradation_map.shape} and {pixels.shape[:2]}")
    out = np.empty_like(pixels)
    for rows in _bands(len(pixels)):
        grey = pixels[rows] @ np.array([0.299, 0.587, 0.114])
        share = opacity * np.sqrt(np.clip(degradation_map[rows], 0, 1))[:, :, None]
        out[rows] = np.rint((1 - share) * grey[:, :, None] + share * heat_colours(degradation_map[rows]))
    return out


def _bands(height: int, rows: int = 256) -> Iterator[slice]:
    """Bands of rows: at 48 megapixels, float64 copies of a whole picture would take gigabytes."""
    for first in range(0, height, rows):
        yield slice(first, first + rows)


def map_samples(degradation_map: Map) -> npt.NDArray[np.uint16]:
    """The map as 16-bit grey samples, uint16 H×W: 65535 = 1.0. `from_samples` is the inverse, to 1/131070."""
    samples = np.empty(degradation_map.shape, dtype=np.uint16)
    for rows in _bands(len(degradation_map)):
        samples[rows] = np.rint(np.clip(degradation_map[rows], 0, 1).astype(np.float64) * 65535)
    return samples


def from_samples(samples: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """16-bit grey samples as a map, float32 H×W in [0, 1]."""
    return (samples.astype(np.float64) / 65535).astype(np.float32)
