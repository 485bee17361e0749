"""The page's pure modules against the Python they must agree with."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import torch

from data_synth.schema.pixels import encode_png
from finpercep.heatmap import COLOURS, from_samples
from finpercep.regions import find_regions
from tests.fakes import photo

MAP = "new (await import('/web/map_png.js')).DegradationMap(argument.width, argument.height, argument.values)"
PLANTED = """(() => {
  const pixels = new ImageData(new Uint8ClampedArray(argument.data), argument.width, argument.height);
  return Array.from(m.planted(pixels, argument.defect).data);
})()"""


def test_the_colour_scale_is_that_of_the_overlays(tab):
    np.testing.assert_array_equal(tab.module("colours.js", "m.COLOURS"), COLOURS)


@pytest.mark.parametrize("shape", [(1, 1), (33, 47), (64, 5)])
@pytest.mark.parametrize("kind", ["noise", "slope", "photo"])
def test_maps_are_decoded_to_the_last_bit(tab, shape, kind):
    """Whatever filters the encoder chose for their rows."""
    rows, columns = np.indices(shape)
    samples = {
        "noise": np.random.default_rng(0).integers(0, 65536, shape),
        "slope": (rows * 251 + columns * 509) % 65536,
        "photo": photo(*shape)[:, :, 0].astype(np.int64) * 257,
    }[kind].astype(np.uint16)
    body = base64.b64encode(encode_png(samples)).decode()
    values = tab.module("map_png.js", "Array.from((await m.decodeMap(argument)).values)", body)
    np.testing.assert_array_equal(np.float32(values).reshape(shape), from_samples(samples))


@pytest.mark.parametrize("threshold", [0.6, 0.7, 0.8])
def test_regions_are_those_of_the_package(tab, threshold):
    coarse = torch.rand(1, 1, 15, 20, generator=torch.Generator().manual_seed(3))
    degradation = torch.nn.functional.interpolate(coarse, (90, 120), mode="bilinear")[0, 0].numpy()
    sent = {"width": 120, "height": 90, "values": degradation.ravel().tolist(), "threshold": threshold}
    found = tab.module("regions.js", f"m.findRegions({MAP}, argument.threshold)", sent)
    expected = find_regions(degradation.astype(np.float64), threshold)
    assert len(expected) > 2
    assert [(tuple(region["box"]), region["area"]) for region in found] == [(region.box, region.area) for region in expected]
    for one, other in zip(found, expected, strict=True):
        assert (one["mean"], one["peak"]) == pytest.approx((other.mean, other.peak), abs=1e-6)


@pytest.mark.parametrize("kind", ["ringing", "painterly", "checkerboard", "blocks", "noise"])
def test_a_defect_changes_its_place_alone_and_always_alike(tab, kind):
    pixels = np.dstack([photo(60, 80), np.full((60, 80), 255, np.uint8)])
    defect = {"kind": kind, "x": 70, "y": 30, "radius": 16}  # over the edge
    sent = {"data": pixels.ravel().tolist(), "width": 80, "height": 60, "defect": defect}
    out, again = (np.uint8(tab.module("defects.js", PLANTED, sent)).reshape(pixels.shape) for _ in range(2))
    np.testing.assert_array_equal(out, again)
    rows, columns = np.indices((60, 80))
    inside = np.hypot(columns - 70, rows - 30) < 16
    np.testing.assert_array_equal(out[~inside], pixels[~inside])
    np.testing.assert_array_equal(out[..., 3], 255)
    assert (out[inside] != pixels[inside]).any(axis=-1).mean() > 0.8


def test_a_flat_place_stays_flat_where_the_fault_is_one_of_texture(tab):
    """Smoothing and sharpening have nothing to do where nothing changes."""
    flat = np.full((40, 40, 4), 255, np.uint8)
    flat[..., :3] = (90, 120, 200)
    for kind in ("ringing", "painterly", "blocks"):
        sent = {
            "data": flat.ravel().tolist(),
            "width": 40,
            "height": 40,
            "defect": {"kind": kind, "x": 20, "y": 20, "radius": 12},
        }
        np.testing.assert_array_equal(np.uint8(tab.module("defects.js", PLANTED, sent)).reshape(flat.shape), flat)
