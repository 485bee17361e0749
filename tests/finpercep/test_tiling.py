"""Large pictures: tiled equals untiled, seams included, and memory stays bounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finpercep.predictor import Predictor, as_image, load_predictor, load_predictors, packaged_model_folder
from finpercep.tiling import BAND, map_in_bands, tiles

PACKAGED = sorted(path.parent.name for path in packaged_model_folder().glob("*/config.json"))
GIB = 1024**3


def picture(height, width, seed=0):
    """Patches of flat colour and of noise: a map with strong edges, some of them across seams."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (-(-height // 40), -(-width // 40), 3)).repeat(40, axis=0).repeat(40, axis=1)[:height, :width]
    noisy = rng.random((height, width)) < np.linspace(0, 1, width)
    return np.where(noisy[..., None], rng.integers(0, 256, pixels.shape), pixels).astype(np.uint8)


def tiled_and_whole(predictor, pixels, tile):
    small = Predictor(predictor.model, name="small", rung=predictor.rung, digest="", tile=tile, untiled=0)
    return small.score_one(as_image(pixels)), predictor.score_one(as_image(pixels))


@pytest.fixture(scope="module")
def finest(small_ladder):
    return list(load_predictors(small_ladder).values())[-1]


@settings(max_examples=12, deadline=None)
@given(st.integers(32, 420), st.integers(32, 420), st.sampled_from([64, 96, 128, 256]), st.integers(0, 99))
def test_tiled_equals_untiled_at_any_size(finest, height, width, tile, seed):
    tiled, whole = tiled_and_whole(finest, picture(height, width, seed), tile)
    assert tiled.map.shape == (1, height, width)
    assert (tiled.map - whole.map).abs().max() <= 1e-5
    assert (tiled.score - whole.score).abs().max() <= 1e-5


@pytest.mark.parametrize("rung", PACKAGED)
def test_tiled_equals_untiled_for_every_packaged_rung(rung):
    """The promise: a map that differs by at most 1e-3 anywhere, the seams among it, and a score by at most 0.01."""
    tiled, whole = tiled_and_whole(load_predictor(packaged_model_folder(), rung), picture(517, 700), 256)
    assert (tiled.score - whole.score).abs().max() <= 0.01
    if whole.map is not None:
        assert (tiled.map - whole.map).abs().max() <= 1e-3


@given(st.integers(1, 5 * BAND), st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_map_drawn_in_bands_is_the_map(finest, height, width, seed):
    stride, deep = finest.model.config.map_stride, finest.model.config.deep_stride
    rows, columns = (-(-side // deep) * deep // stride for side in (height, width))
    logits = torch.randn(1, rows, columns, generator=torch.Generator().manual_seed(seed))
    expected = finest.model.upsample_logits(logits, (height, width)).sigmoid()
    assert (map_in_bands(finest.model, logits, (height, width)) - expected).abs().max() <= 1e-6


def test_tiles_cover_every_pixel_once():
    for height, width in [(1, 1), (127, 129), (300, 1000), (4000, 6000)]:
        covered = np.zeros((height, width), dtype=np.uint8)
        for (top, bottom, left, right), (c_top, c_bottom, c_left, c_right) in tiles(height, width, 128, 64):
            covered[top:bottom, left:right] += 1
            assert c_top <= top < bottom <= c_bottom and c_left <= left < right <= c_right
            assert c_top % 64 == 0 and c_left % 64 == 0
        assert (covered == 1).all()


FORTY_EIGHT_MEGAPIXELS = """
import json
from pathlib import Path
import numpy as np, torch
from torch import nn
from torch.nn import functional as F
from finpercep.predictor import Predictor, load_predictor, packaged_model_folder

class Encoder(nn.Module):
    def forward(self, images):
        return [images, F.avg_pool2d(images, stride).mean(1, keepdim=True).repeat(1, channels, 1, 1)]

class Decoder(nn.Module):
    def forward(self, features):
        return 2 * F.avg_pool2d(features[0][:, :3], map_stride).mean(1)

def memory(field):
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

torch.set_num_threads(1)
model = load_predictor(packaged_model_folder()).model
stride, map_stride = model.config.deep_stride, model.config.map_stride
channels = model.features(torch.zeros(1, 3, 64, 64))[-1].shape[1]
model.encoder, model.map_decoder = Encoder(), Decoder()
predictor = Predictor(model, name="cheap", rung="RM", digest="")
predictor.assess(np.zeros((64, 64, 3), dtype=np.uint8))
before = memory("VmRSS")
pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8).repeat(100, axis=0).repeat(100, axis=1)
seen = predictor.assess(pixels)
above = memory("VmHWM") - before  # not getrusage: a child's peak there starts at what its parent held
print(json.dumps({"above": above, "shape": seen.map.shape, "score": seen.score, "regions": len(seen.regions)}))
"""
"""A stand-in network, because the real one takes a minute; all that is as large as the picture is as large as the real one's:
pixels, f_N, coarse logits, map, regions. What a tile takes is the same for every picture (`benchmarks/rm_speed.py` has both)."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_48_megapixels_take_less_than_2_gib_above_the_model():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-c", FORTY_EIGHT_MEGAPIXELS]
    done = subprocess.run(run, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["shape"] == [6000, 8000]
    assert np.isfinite(got["score"]) and got["regions"] > 0
    assert got["above"] < 1.5 * GIB  # and a tile's activations, a few hundred MiB
