"""Codec round trips: Pillow's own, and drawn as often as configured."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image

from data_synth.degradations.codecs import Codec, CodecConfig, compress, jpeg_round_trip, sample_codec, webp_round_trip
from data_synth.draws import DrawError


@pytest.mark.parametrize("pillow_format", ["jpeg", "webp"])
@pytest.mark.parametrize("quality", [1, 40, 95])
def test_round_trips_are_pillows_own(pillow_format, quality, chelsea):
    pixels = chelsea[:97, :130]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, pillow_format, quality=quality)
    decoded = np.asarray(Image.open(buffer).convert("RGB"))
    result = compress(pixels.astype(np.float32) / 255, Codec(pillow_format, quality))
    assert result.dtype == np.float32
    assert np.array_equal(np.rint(result * 255), decoded)
    assert not np.array_equal(decoded, pixels)


@pytest.mark.parametrize("round_trip", [jpeg_round_trip, webp_round_trip])
def test_lower_quality_is_worse(round_trip, crop):
    errors = [float(np.abs(round_trip(crop, quality) - crop).mean()) for quality in (95, 60, 20, 5)]
    assert errors == sorted(errors)
    assert errors[0] > 0


@pytest.mark.parametrize("round_trip", [jpeg_round_trip, webp_round_trip])
def test_overshoot_is_clipped(round_trip, crop):
    assert np.array_equal(round_trip(crop * 3 - 1, 80), round_trip(np.clip(crop * 3 - 1, 0, 1), 80))


def test_draws_follow_the_configuration():
    config = CodecConfig(probability=0.6, webp_share=0.25, jpeg_quality=(50, 53), webp_quality=(70, 71))
    rng = np.random.default_rng(0)
    drawn = [sample_codec(rng, config) for _ in range(4000)]
    present = [codec for codec in drawn if codec is not None]
    webp = [codec for codec in present if codec.format == "webp"]
    assert abs(len(present) - 2400) < 4 * math.sqrt(4000 * 0.6 * 0.4)
    assert abs(len(webp) - 0.25 * len(present)) < 4 * math.sqrt(len(present) * 0.25 * 0.75)
    assert {codec.quality for codec in webp} == {70, 71}
    assert {codec.quality for codec in present if codec.format == "jpeg"} == {50, 51, 52, 53}


@pytest.mark.parametrize(
    "settings",
    [
        {"probability": 1.01},
        {"webp_share": -1.0},
        {"jpeg_quality": (95, 30)},
        {"jpeg_quality": (0, 30)},
        {"webp_quality": (30, 101)},
    ],
)
def test_bad_configurations_are_refused(settings):
    with pytest.raises(DrawError, match=next(iter(settings))):
        CodecConfig(**settings)


@pytest.mark.parametrize("quality", [0, 101])
def test_bad_qualities_are_refused(quality):
    with pytest.raises(DrawError, match=f"1 … 100, got {quality}"):
        Codec("jpeg", quality)
