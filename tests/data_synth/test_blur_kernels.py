"""Blur kernels against closed forms: moments, limits of their formulas, frequency responses; and the drawn frequencies."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from scipy.special import j1

from data_synth.degradations.blur_kernels import (
    BELL_SHAPES,
    KERNEL_SIZES,
    BlurKernel,
    KernelConfig,
    SincConfig,
    convolve,
    kernel_array,
    sample_kernel,
    sample_sinc,
)
from data_synth.draws import DrawError

DRAWS = 4000
kernels = st.builds(
    BlurKernel,
    shape=st.sampled_from(["gaussian", "generalised", "plateau", "sinc"]),
    size=st.sampled_from(KERNEL_SIZES),
    sigma=st.tuples(st.floats(0.2, 3), st.floats(0.2, 3)),
    angle=st.floats(0, math.pi),
    beta=st.floats(0.5, 4),
    cutoff=st.floats(math.pi / 5, math.pi),
)


@given(kernels)
def test_every_kernel_sums_to_one_and_is_symmetric_about_its_centre(kernel):
    array = kernel_array(kernel)
    assert array.shape == (kernel.size, kernel.size)
    assert array.sum() == pytest.approx(1)
    assert np.allclose(array, array[::-1, ::-1], atol=1e-12)
    assert np.unravel_index(array.argmax(), array.shape) == (kernel.size // 2, kernel.size // 2)


@given(kernels, st.floats(0.2, 3))
def test_isotropic_kernels_do_not_depend_on_the_angle(kernel, sigma):
    isotropic = dataclasses.replace(kernel, sigma=(sigma, sigma))
    array = kernel_array(isotropic)
    assert np.allclose(array, array.T, atol=1e-9)
    assert np.allclose(array, kernel_array(dataclasses.replace(isotropic, angle=0.0)), atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 2, 2.5])
def test_a_gaussians_second_moments_are_its_covariance(angle):
    array = kernel_array(BlurKernel("gaussian", 21, sigma=(2.0, 1.0), angle=angle))
    y, x = np.mgrid[-10:11, -10:11]
    moments = [[(array * a * b).sum() for b in (x, y)] for a in (x, y)]
    axes = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    assert np.allclose(moments, axes @ np.diag([4.0, 1.0]) @ axes.T, atol=2e-3)


@pytest.mark.parametrize("sigma", [(1.0, 1.0), (2.5, 0.7)])
def test_the_generalised_gaussian_is_the_gaussian_at_beta_one(sigma):
    gaussian = BlurKernel("gaussian", 15, sigma=sigma, angle=0.8)
    assert np.array_equal(kernel_array(gaussian), kernel_array(dataclasses.replace(gaussian, shape="generalised")))


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize(("shape", "at_sigma"), [("generalised", math.exp(-0.5)), ("plateau", 0.5)])
def test_one_sigma_from_the_centre_a_bell_has_the_same_height_whatever_beta(shape, at_sigma, beta):
    array = kernel_array(BlurKernel(shape, 21, sigma=(3.0, 5.0), beta=beta))
    assert array[10, 13] / array[10, 10] == pytest.approx(at_sigma)
    assert array[15, 10] / array[10, 10] == pytest.approx(at_sigma)


def test_a_larger_beta_flattens_the_top():
    tops = [kernel_array(BlurKernel("plateau", 21, sigma=(4.0, 4.0), beta=beta)) for beta in (1.0, 2.0, 8.0)]
    ratios = [array[10, 12] / array[10, 10] for array in tops]
    assert ratios == sorted(ratios)
    assert ratios[-1] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("cutoff", [math.pi / 3, math.pi / 2, 2.2])
@pytest.mark.parametrize(("size", "ripple"), [(21, 0.17), (201, 0.03)])  # a narrow window ripples
def test_a_sinc_passes_below_its_cutoff_and_stops_above(cutoff, size, ripple):
    array = kernel_array(BlurKernel("sinc", size, cutoff=cutoff))
    padded = np.zeros((512, 512))
    padded[:size, :size] = array
    response = np.abs(np.fft.fft2(np.roll(padded, (-(size // 2), -(size // 2)), axis=(0, 1))))
    omega = 2 * np.pi * np.fft.fftfreq(512)
    radius = np.hypot(omega[:, None], omega)
    band = 0.35  # the transition a 21 px window leaves
    assert np.abs(response[radius < cutoff - band] - 1).max() < ripple
    assert response[radius > cutoff + band].max() < ripple
    assert response[np.abs(radius - cutoff) < 0.02].mean() == pytest.approx(0.5, abs=0.05)


def test_a_sincs_centre_is_the_limit_of_its_formula():
    array = kernel_array(BlurKernel("sinc", 7, cutoff=2.0))
    near = [2.0 * j1(2.0 * r) / (2 * math.pi * r) for r in (1e-4, 1.0)]
    assert array[3, 3] / array[3, 4] == pytest.approx(near[0] / near[1])


@pytest.mark.parametrize("height_width", [(40, 57), (9, 8), (2, 33), (1, 1)])
def test_convolution_agrees_with_the_direct_sum(height_width):
    image = np.random.default_rng(0).uniform(size=(*height_width, 3)).astype(np.float32)
    array = kernel_array(BlurKernel("gaussian", 21, sigma=(3.0, 1.0), angle=0.5))
    direct = ndimage.convolve(image.astype(np.float64), array[:, :, None], mode="mirror")
    blurred = convolve(image, array)
    assert blurred.dtype == np.float32
    assert np.allclose(blurred, direct, atol=2e-6)


def test_convolution_with_one_pixel_is_the_identity(crop):
    assert np.allclose(convolve(crop, np.ones((1, 1))), crop, atol=1e-6)


def test_a_blur_turns_with_its_angle():
    dot = np.zeros((33, 33, 3), dtype=np.float32)
    dot[16, 16] = 1
    wide = convolve(dot, kernel_array(BlurKernel("gaussian", 21, sigma=(3.0, 0.6), angle=0.0)))[..., 0]
    tall = convolve(dot, kernel_array(BlurKernel("gaussian", 21, sigma=(3.0, 0.6), angle=math.pi / 2)))[..., 0]
    assert wide[16, 20] > 10 * wide[20, 16]
    assert np.allclose(wide, tall.T, atol=1e-6)


def draw(config):
    rng = np.random.default_rng(5)
    return [sample_kernel(rng, config) for _ in range(DRAWS)]


def near(count, probability, draws=DRAWS):
    """Within four standard deviations of a binomial."""
    return abs(count - draws * probability) <= 4 * math.sqrt(draws * probability * (1 - probability))


def test_shapes_come_as_often_as_configured():
    config = KernelConfig()
    drawn = draw(config)
    counts = Counter("sinc" if k.shape == "sinc" else (k.shape, k.sigma[0] == k.sigma[1]) for k in drawn)
    assert near(counts["sinc"], config.sinc_probability)
    for bell, probability in zip(BELL_SHAPES, config.shape_probabilities, strict=True):
        isotropy, shape = bell.split()
        assert near(counts[shape, isotropy == "isotropic"], probability * (1 - config.sinc_probability)), bell


def test_sizes_are_equally_likely_and_ranges_are_kept():
    drawn = [kernel for kernel in draw(KernelConfig()) if kernel.shape != "sinc"]
    sizes = Counter(kernel.size for kernel in drawn)
    assert all(near(sizes[size], 1 / 8, len(drawn)) for size in KERNEL_SIZES)
    sigmas = np.array([kernel.sigma for kernel in drawn])
    assert sigmas.min() >= 0.2 and sigmas.max() <= 3.0
    assert sigmas.mean() == pytest.approx(1.6, abs=0.08)


def test_beta_is_below_one_in_half_of_the_draws():
    drawn = draw(KernelConfig(shape_probabilities=(0.0, 0.0, 0.25, 0.25, 0.25, 0.25), sinc_probability=0.0))
    generalised = [k.beta for k in drawn if k.shape == "generalised"]
    plateau = [k.beta for k in drawn if k.shape == "plateau"]
    assert near(sum(beta < 1 for beta in generalised), 0.5, len(generalised))
    assert 0.5 <= min(generalised) < 0.52 and 3.9 < max(generalised) <= 4
    assert near(sum(beta == 1 for beta in plateau), 0.5, len(plateau))
    assert max(plateau) <= 2


def test_a_beta_range_without_one_is_uniform():
    config = KernelConfig(shape_probabilities=(0.0, 0.0, 1.0, 0.0, 0.0, 0.0), sinc_probability=0.0, generalised_beta=(2.0, 4.0))
    assert np.mean([kernel.beta for kernel in draw(config)]) == pytest.approx(3, abs=0.05)


def test_only_large_sinc_kernels_draw_low_cutoffs():
    rng = np.random.default_rng(0)
    drawn = [sample_sinc(rng, SincConfig()) for _ in range(DRAWS)]
    small, large = ([k.cutoff for k in drawn if (k.size >= 13) is is_large] for is_large in (False, True))
    assert math.pi / 3 <= min(small) < math.pi / 3 + 0.02
    assert math.pi / 5 <= min(large) < math.pi / 5 + 0.02
    assert max(*small, *large) <= math.pi


def test_configurations_consume_the_same_draws():
    rngs = [np.random.default_rng(3), np.random.default_rng(3)]
    for rng, config in zip(rngs, (KernelConfig(), KernelConfig(sinc_probability=1.0)), strict=True):
        sample_kernel(rng, config)
    assert rngs[0].uniform() == rngs[1].uniform()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape_probabilities": (0.5, 0.5)}, "6 probabilities, got 2"),
        ({"shape_probabilities": (0.5, 0.5, 0.5, 0.0, 0.0, 0.0)}, "sum to 1"),
        ({"sinc_probability": 1.5}, "sinc_probability"),
        ({"sizes": (7, 8)}, "odd and positive, got \\(7, 8\\)"),
        ({"sizes": ()}, "odd and positive"),
        ({"sigma": (3.0, 0.2)}, "sigma must be finite"),
        ({"sigma": (0.0, 1.0)}, "sigma must lie in"),
        ({"generalised_beta": (0.0, 1.0)}, "generalised_beta"),
        ({"plateau_beta": (2.0, 1.0)}, "plateau_beta"),
    ],
)
def test_bad_configurations_are_refused(settings, message):
    with pytest.raises(DrawError, match=message):
        KernelConfig(**settings)


@pytest.mark.parametrize("settings", [{"sizes": (-3,)}, {"cutoff": (1.0, 4.0)}, {"large_cutoff": (0.0, 1.0)}])
def test_bad_sinc_configurations_are_refused(settings):
    with pytest.raises(DrawError):
        SincConfig(**settings)


@pytest.mark.parametrize("settings", [{"size": 8}, {"sigma": (0.0, 1.0)}, {"beta": 0.0}, {"cutoff": 7.0}])
def test_bad_kernels_are_refused(settings):
    with pytest.raises(DrawError):
        BlurKernel("gaussian", **{"size": 7, **settings})
