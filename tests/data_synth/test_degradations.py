"""Blind degradation: identities, the order of its steps, exact replay, and the published probabilities."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from data_synth.degradations import (
    Degradation,
    DegradationConfig,
    DegradationError,
    FinalConfig,
    FinalStep,
    Stage,
    StageConfig,
    degrade,
    resize_image,
    sample_degradation,
)
from data_synth.degradations.blind import apply_final, apply_stage
from data_synth.degradations.blur_kernels import BlurKernel, convolve, kernel_array
from data_synth.degradations.codecs import Codec, jpeg_round_trip
from data_synth.degradations.noise import Noise, add_noise
from data_synth.degradations.resizing import Resize, ResizeConfig, ResizeStyle
from data_synth.draws import DrawError
from data_synth.schema.errors import FinpercepError

CONFIGS = {
    "blind": DegradationConfig(),
    "blind x2": DegradationConfig(scale=2),
    "blind x5": DegradationConfig(scale=5),
    "light": DegradationConfig.light(),
    "light x2": DegradationConfig.light(2),
}
AREA = ResizeStyle("area", antialias=False)
KEEP = Stage(blur=None, resize=Resize(1.0, AREA), noise=None, codec=None)
PLAIN = FinalStep(resize=AREA, sinc=None, codec=None, codec_first=False)
SINC = BlurKernel("sinc", 9, cutoff=1.5)


def draws(config, count=2000):
    rng = np.random.default_rng(11)
    return [sample_degradation(rng, config) for _ in range(count)]


def near(count, probability, total):
    """Within four standard deviations of a binomial."""
    return abs(count - total * probability) <= 4 * math.sqrt(total * probability * (1 - probability))


@pytest.mark.parametrize("name", CONFIGS)
def test_replay_is_exact_and_of_the_right_size(name, crop):
    config = CONFIGS[name]
    for seed in range(6):
        drawn = sample_degradation(np.random.default_rng(seed), config)
        assert drawn == sample_degradation(np.random.default_rng(seed), config)
        lr = degrade(crop, drawn)
        assert lr.shape == (160 // config.scale, 160 // config.scale, 3)
        assert lr.dtype == np.float32
        assert np.array_equal((np.rint(lr * 255) / 255).astype(np.float32), lr)
        assert 0 <= lr.min() < lr.max() <= 1
        assert np.array_equal(lr, degrade(crop, drawn))


@given(seed=st.integers(0, 2**32), name=st.sampled_from(sorted(CONFIGS)))
def test_json_gives_the_same_degradation_back(seed, name):
    drawn = sample_degradation(np.random.default_rng(seed), CONFIGS[name])
    adapter = TypeAdapter(Degradation)
    assert adapter.validate_json(json.dumps(dataclasses.asdict(drawn), allow_nan=False)) == drawn
    assert adapter.validate_json(adapter.dump_json(drawn)) == drawn


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_pixels_after_json_are_the_same(seed, crop):
    drawn = sample_degradation(np.random.default_rng(seed), DegradationConfig())
    again = TypeAdapter(Degradation).validate_json(json.dumps(dataclasses.asdict(drawn)))
    assert np.array_equal(degrade(crop, drawn), degrade(crop, again))


def test_a_recipe_with_an_impossible_number_is_refused():
    drawn = dataclasses.asdict(sample_degradation(np.random.default_rng(0), DegradationConfig()))
    drawn["stages"][0]["blur"]["size"] = 8
    with pytest.raises(ValueError, match="odd and positive, got"):
        TypeAdapter(Degradation).validate_json(json.dumps(drawn))


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_survive_json(name):
    adapter = TypeAdapter(DegradationConfig)
    assert adapter.validate_json(adapter.dump_json(CONFIGS[name])) == CONFIGS[name]


def test_no_step_and_no_reduction_is_the_identity(crop):
    assert np.array_equal(degrade(crop, Degradation(1, (), PLAIN)), crop)
    assert np.array_equal(degrade(crop, Degradation(1, (KEEP, KEEP), PLAIN)), crop)


@pytest.mark.parametrize("scale", [2, 4])
def test_a_plain_reduction_is_the_block_mean(scale, crop):
    blocks = crop.reshape(160 // scale, scale, 160 // scale, scale, 3).mean(axis=(1, 3))
    assert np.abs(degrade(crop, Degradation(scale, (), PLAIN)) - blocks).max() <= 0.5 / 255 + 1e-6


def test_a_stage_blurs_resizes_adds_noise_and_compresses_in_this_order(crop):
    stage = Stage(
        blur=BlurKernel("plateau", 11, sigma=(2.0, 1.0), angle=0.3, beta=1.5),
        resize=Resize(0.4, ResizeStyle("bicubic", antialias=False)),
        noise=Noise("poisson", 1.5, is_grey=True, seed=8),
        codec=Codec("jpeg", 40),
    )
    expected = convolve(crop, kernel_array(stage.blur))
    expected = resize_image(expected, (64, 64), "bicubic", antialias=False)
    expected = jpeg_round_trip(add_noise(expected, stage.noise), 40)
    assert np.array_equal(apply_stage(crop, stage, (160, 160)), expected)


def test_a_stages_size_is_relative_to_the_hr_image(crop):
    small = apply_stage(crop, dataclasses.replace(KEEP, resize=Resize(0.25, AREA)), (160, 160))
    assert apply_stage(small, dataclasses.replace(KEEP, resize=Resize(0.5, AREA)), (160, 160)).shape == (80, 80, 3)
    once = dataclasses.replace(KEEP, resize=Resize(0.6, ResizeStyle("bicubic", antialias=False)))
    assert np.array_equal(degrade(crop, Degradation(4, (once, once), PLAIN)), degrade(crop, Degradation(4, (once,), PLAIN)))


@pytest.mark.parametrize("codec_first", [True, False])
def test_the_final_codec_comes_before_the_resize_or_after_the_filter(codec_first, crop):
    final = FinalStep(AREA, SINC, Codec("jpeg", 35), codec_first)
    kernel = kernel_array(SINC)
    if codec_first:
        expected = convolve(resize_image(jpeg_round_trip(crop, 35), (40, 40), "area"), kernel)
    else:
        expected = jpeg_round_trip(convolve(resize_image(crop, (40, 40), "area"), kernel), 35)
    assert np.array_equal(apply_final(crop, final, (40, 40)), expected)
    other = apply_final(crop, dataclasses.replace(final, codec_first=not codec_first), (40, 40))
    assert not np.array_equal(expected, other)


def test_the_final_filter_rings():
    step = np.zeros((64, 64, 3), dtype=np.float32)
    step[:, 32:] = 0.5
    final = dataclasses.replace(PLAIN, sinc=SINC)
    row = apply_final(step, final, (32, 32))[16, :, 0]
    assert row.min() < -0.02
    assert row.max() > 0.52


def test_default_probabilities_are_the_published_ones():
    drawn = draws(DegradationConfig())
    total = len(drawn)
    first, second = ([d.stages[index] for d in drawn] for index in range(2))
    assert all(stage.blur and stage.noise and stage.codec for stage in first)
    assert all(stage.noise and stage.codec is None for stage in second)
    assert near(sum(stage.blur is not None for stage in second), 0.8, total)
    for stages in (first, second):
        assert near(sum(stage.noise.kind == "poisson" for stage in stages), 0.5, total)
        assert near(sum(stage.noise.is_grey for stage in stages), 0.4, total)
        blurs = [stage.blur for stage in stages if stage.blur]
        assert near(sum(blur.shape == "sinc" for blur in blurs), 0.1, len(blurs))
    for stages, unit, (up, down, keep) in ((first, 1, (0.2, 0.7, 0.1)), (second, 4, (0.3, 0.4, 0.3))):
        factors = np.array([stage.resize.factor * unit for stage in stages])
        assert near(int((factors > 1).sum()), up, total)
        assert near(int((factors < 1).sum()), down, total)
        assert near(int((factors == 1).sum()), keep, total)
    assert near(sum(d.final.sinc is not None for d in drawn), 0.8, total)
    assert near(sum(d.final.codec_first for d in drawn), 0.5, total)
    codecs = [d.final.codec for d in drawn] + [stage.codec for stage in first]
    assert near(sum(codec.format == "webp" for codec in codecs), 0.2, 2 * total)
    assert {codec.quality for codec in codecs} == set(range(30, 96))
    assert not any(d.final.resize.antialias for d in drawn)


def test_default_ranges_are_the_published_ones():
    drawn = draws(DegradationConfig())
    bells = [[d.stages[i].blur for d in drawn if d.stages[i].blur and d.stages[i].blur.shape != "sinc"] for i in range(2)]
    assert [round(max(max(bell.sigma) for bell in stage), 1) for stage in bells] == [3.0, 1.5]
    for index, sigma, scale in ((0, 30 / 255, 3.0), (1, 25 / 255, 2.5)):
        noises = [d.stages[index].noise for d in drawn]
        assert max(n.amount for n in noises if n.kind == "gaussian") == pytest.approx(sigma, rel=0.01)
        assert max(n.amount for n in noises if n.kind == "poisson") == pytest.approx(scale, rel=0.01)
    assert max(d.stages[0].resize.factor for d in drawn) == pytest.approx(1.5, abs=0.01)
    assert min(d.stages[0].resize.factor for d in drawn) == pytest.approx(0.15, abs=0.01)
    assert max(d.stages[1].resize.factor for d in drawn) == pytest.approx(1.2 / 4, abs=0.01)
    assert min(d.stages[1].resize.factor for d in drawn) == 0.5 / 4


@pytest.mark.parametrize("scale", [2, 4])
def test_light_is_a_slight_blur_and_noise_before_the_reduction_and_nothing_else(scale):
    drawn = draws(DegradationConfig.light(scale))
    total = len(drawn)
    assert all(len(d.stages) == 1 and d.scale == scale for d in drawn)
    stages = [d.stages[0] for d in drawn]
    assert all(stage.codec is None and stage.resize.factor == 1.0 for stage in stages)
    assert all(d.final.sinc is None and d.final.codec is None and d.final.resize.antialias for d in drawn)
    blurs = [stage.blur for stage in stages if stage.blur]
    noises = [stage.noise for stage in stages if stage.noise]
    assert near(len(blurs), 0.5, total) and near(len(noises), 0.5, total)
    sigmas = np.array([blur.sigma for blur in blurs])
    assert {blur.shape for blur in blurs} == {"gaussian"}
    assert sigmas.min() >= 0.2 and sigmas.max() <= 1.2
    assert abs(np.corrcoef(sigmas.T)[0, 1]) < 0.12  # either axis for itself
    assert {noise.kind for noise in noises} == {"gaussian"}
    assert min(n.amount for n in noises) >= 0.5 / 255 and max(n.amount for n in noises) <= 2 / 255
    assert near(sum(noise.is_grey for noise in noises), 0.4, len(noises))


def test_different_seeds_differ_and_light_is_nearer(crop):
    small = resize_image(crop, (40, 40), "area")

    def distances(config):
        drawn = (sample_degradation(np.random.default_rng(seed), config) for seed in range(8))
        return [float(np.abs(degrade(crop, one) - small).mean()) for one in drawn]

    blind, light = distances(DegradationConfig()), distances(DegradationConfig.light())
    assert len(set(blind)) == 8
    assert np.median(light) < np.median(blind)


def test_settings_leave_the_other_draws_alone():
    """Under one seed, two configurations differ only where their ranges do."""
    usual = sample_degradation(np.random.default_rng(3), DegradationConfig())
    no_blur = DegradationConfig(stages=tuple(dataclasses.replace(s, blur_probability=0.0) for s in DegradationConfig().stages))
    drawn = sample_degradation(np.random.default_rng(3), no_blur)
    assert all(stage.blur is None for stage in drawn.stages)
    assert drawn.final == usual.final
    assert [stage.noise for stage in drawn.stages] == [stage.noise for stage in usual.stages]


@pytest.mark.parametrize("side", [4, 8, 20])
def test_even_images_smaller_than_a_kernel_are_degraded(side, crop):
    for drawn in draws(DegradationConfig(), 30):
        assert degrade(crop[:side, :side], drawn).shape == (side // 4, side // 4, 3)


def test_rectangles_keep_their_shape(crop):
    for drawn in draws(DegradationConfig(scale=2), 10):
        assert degrade(crop[:60], drawn).shape == (30, 80, 3)


def test_the_input_is_left_alone(crop):
    before = crop.copy()
    for drawn in draws(DegradationConfig(), 10):
        degrade(crop, drawn)
    assert np.array_equal(crop, before)


def test_size_must_divide(crop):
    with pytest.raises(DegradationError, match=r"multiples of 4, got 160x158"):
        degrade(crop[:158], sample_degradation(np.random.default_rng(0), DegradationConfig()))


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 4), (0, 8, 3)])
def test_images_must_have_three_channels_and_pixels(shape):
    with pytest.raises(DegradationError, match="H×W×3, got"):
        degrade(np.zeros(shape, dtype=np.float32), Degradation(1, (), PLAIN))


@pytest.mark.parametrize(
    "build",
    [
        lambda: DegradationConfig(scale=0),
        lambda: DegradationConfig.light(-4),
        lambda: DegradationConfig(scale=2.5),
        lambda: Degradation(0, (), PLAIN),
        lambda: StageConfig(blur_probability=1.2),
        lambda: StageConfig(resize=ResizeConfig(probabilities=(0.2, 0.2, 0.2))),
        lambda: FinalConfig(sinc_probability=-0.1),
        lambda: FinalConfig(codec_first_probability=2.0),
    ],
)
def test_bad_configurations_are_refused(build):
    with pytest.raises(DrawError) as caught:
        build()
    assert isinstance(caught.value, FinpercepError)
    assert "got" in str(caught.value)
