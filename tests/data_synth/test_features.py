"""Feature differences: the fast weight-free ones are the definition; dense ones show no patches; names resolve and say why."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from scipy import ndimage

from data_synth.features import loading
from data_synth.features.dense import DenseFeatures, choose_levels, usable_shifts
from data_synth.features.loading import FeatureSource, load_dense, parse_source
from data_synth.features.protocol import GroundTruthError
from data_synth.features.resolve import (
    ResolvedFeatures,
    default_gain,
    load_features,
    mean_difference,
    reference_faults,
    resolve_features,
)
from data_synth.features.weight_free import WEIGHT_FREE_VERSION, WeightFreeFeatures, blur
from data_synth.ground_truth import GroundTruthConfig, ground_truth_map, resolve_ground_truth


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pair_of(a, b):
    return torch.from_numpy(np.stack([a, b])).permute(0, 3, 1, 2).contiguous()


def gaussian(plane, sigma):
    return ndimage.gaussian_filter(plane, sigma, mode="nearest", radius=max(1, math.ceil(2.5 * sigma)))


# -- weight-free ----------------------------------------------------------------------------------------------------


def by_definition(a, b, config):
    """1 − cos of explicit unit feature vectors: eight half-waves a scale and a constant; two colours and a constant."""

    def unit(channels, constant):
        stacked = np.stack([*channels, np.full(a.shape[:2], constant)])
        return stacked / np.linalg.norm(stacked, axis=0)

    def features(image):
        image = image.astype(np.float64)
        luma = image @ [0.299, 0.587, 0.114]
        structure = []
        for scale in config.scales:
            smooth = np.pad(gaussian(luma, scale), 1, mode="edge")
            gx = scale / 2 * (smooth[1:-1, 2:] - smooth[1:-1, :-2])
            gy = scale / 2 * (smooth[2:, 1:-1] - smooth[:-2, 1:-1])
            for direction in (gx, gy, (gx + gy) / 2**0.5, (gx - gy) / 2**0.5):
                structure += [gaussian(np.maximum(sign * direction, 0), max(1.0, scale)) for sign in (1, -1)]
        red, green, blue = np.moveaxis(image, -1, 0)
        colours = [gaussian(plane, 1.5) for plane in ((red - green) / 2**0.5, (red + green - 2 * blue) / 6**0.5)]
        return unit(structure, config.constant), unit(colours, config.colour_constant)

    structure, colour = (1 - (f * g).sum(0) for f, g in zip(features(a), features(b), strict=True))
    return (1 - config.colour_share) * structure + config.colour_share * colour


def faults(image):
    rng = np.random.default_rng(0)
    return {
        "blur": ndimage.gaussian_filter(image, (2, 2, 0)),
        "noise": np.clip(image + rng.normal(0, 0.05, image.shape), 0, 1).astype(np.float32),
        "colour": np.ascontiguousarray(image[..., ::-1]),
        "elsewhere": np.ascontiguousarray(image[::-1]),
    }


def test_fast_sums_are_the_definition(crop):
    """Where nothing is halved, the six planes and three sums a scale give 1 − cos of the explicit vectors."""
    features = WeightFreeFeatures(scales=(0.8, 1.6))
    for broken in faults(crop).values():
        assert np.allclose(features(pair_of(crop, broken)), by_definition(crop, broken, features), atol=2e-5)


def test_halving_the_coarse_scale_changes_little(crop):
    features = WeightFreeFeatures()
    for broken in faults(crop).values():
        expected = by_definition(crop, broken, features)
        error = np.abs(features(pair_of(crop, broken)).numpy() - expected)
        assert error.mean() < 0.02 * expected.mean() + 1e-3
        assert np.quantile(error[8:-8, 8:-8], 0.99) < 0.03


@pytest.mark.parametrize("size", [(16, 16), (33, 47), (64, 31)])
def test_any_size_and_exactly_zero_for_equal_images(size, crop):
    image = crop[: size[0], : size[1]]
    difference = WeightFreeFeatures()(pair_of(image, image))
    assert difference.shape == size
    assert not difference.any()


def test_equal_parts_are_exactly_zero_beyond_reach(crop):
    broken = crop.copy()
    broken[:, 80:] = 0
    features = WeightFreeFeatures()
    difference = features(pair_of(crop, broken))
    assert not difference[:, : 80 - features.reach].any()
    assert difference[:, 80:].mean() > 0.1


@pytest.mark.parametrize("sigma", [0.8, 1.5, 3.2])
def test_blur_is_the_gaussian(sigma, crop):
    planes = torch.from_numpy(np.ascontiguousarray(np.moveaxis(crop, -1, 0)))
    expected = np.stack([gaussian(plane, sigma) for plane in planes.numpy()])
    assert np.allclose(blur(planes, sigma), expected, atol=1e-6)
    assert blur(planes, 0.0) is planes


# -- dense ----------------------------------------------------------------------------------------------------------


def small_dinov3(shifts):
    """A real DINOv3 architecture (rotary positions, registers), two blocks of it, random weights."""
    torch.manual_seed(0)
    network = timm.create_model(
        "vit_small_patch16_dinov3", num_classes=0, dynamic_img_size=True, depth=2, embed_dim=96, num_heads=3
    ).eval()
    half = (0.5, 0.5, 0.5)
    return DenseFeatures(network, (1,), (16,), normed=True, mean=half, std=half, shifts=shifts)


@pytest.fixture(scope="module")
def textured(china):
    """256×256 of roof tiles and leaves, and the same blurred under a wide smooth window."""
    image = np.ascontiguousarray(china[100:356, 100:356]).astype(np.float32) / 255
    y, x = np.mgrid[:256, :256] - 127.5
    window = np.exp(-(x**2 + y**2) / (2 * 60**2)).astype(np.float32)[..., None]
    return image, image + window * (ndimage.gaussian_filter(image, (2, 2, 0)) - image)


def patch_energy(difference):
    """Power at the patch frequency and its first harmonic, over that of frequencies nearby, along both axes."""
    taper = np.hanning(256)
    shares = []
    for plane in (difference, difference.T):
        spectrum = (np.abs(np.fft.rfft((plane - plane.mean()) * taper, axis=1)) ** 2).mean(0)
        shares += [spectrum[k] / spectrum[[k - 4, k - 3, k + 3, k + 4]].mean() for k in (16, 32)]
    return max(shares)


def patch_rhythm(difference):
    """How far bends of the map keep to one place in the patch, 0 (evenly spread) to 1, along both axes."""
    rhythms = []
    for plane in (difference, difference.T):
        bends = np.abs(np.diff(plane, 2, axis=1)).mean(0)[: 15 * 16].reshape(-1, 16).mean(0)
        rhythms.append(abs((bends * np.exp(2j * np.pi * np.arange(16) / 16)).sum()) / bends.sum())
    return max(rhythms)


def test_no_trace_of_the_patch_period(textured):
    """A single grid bends the map at the centres of its patches, shifted ones nowhere in particular."""
    one, four = (small_dinov3(shifts)(pair_of(*textured)).numpy() for shifts in (1, 4))
    assert patch_rhythm(one) > 0.9
    assert patch_rhythm(four) < 0.2
    assert patch_energy(four) < 0.5


def test_difference_moves_with_the_images(textured):
    """By a cell of 4 px the interior moves along; a single grid sees other patches and cannot follow."""

    def error(shifts):
        here, moved = (
            small_dinov3(shifts)(pair_of(*(np.roll(image, offset, (0, 1)) for image in textured))).numpy() for offset in (0, 4)
        )
        inner = (slice(40, -40), slice(40, -40))
        return np.abs(np.roll(here, 4, (0, 1)) - moved)[inner].max() / here[inner].max()

    assert error(4) < 0.25 * error(1)
    assert error(4) < 0.1


def test_dense_difference_is_zero_for_equal_images_and_local(crop):
    features = small_dinov3(2)
    assert not features(pair_of(crop, crop.copy())).any()
    broken = crop.copy()
    broken[64:96, 64:96] = ndimage.gaussian_filter(crop, (3, 3, 0))[64:96, 64:96]
    difference = features(pair_of(crop, broken)).numpy()
    assert np.unravel_index(difference.argmax(), difference.shape) in {(y, x) for y in range(60, 100) for x in range(60, 100)}
    assert difference[72:88, 72:88].mean() > 5 * difference[:40, :40].mean()


@pytest.mark.parametrize("size", [(100, 83), (33, 64)])
def test_sizes_that_are_no_multiple_of_the_patch(size, crop):
    image = crop[: size[0], : size[1]]
    difference = small_dinov3(4)(pair_of(image, image[::-1]))
    assert difference.shape == size
    assert torch.isfinite(difference).all()
    assert difference.min() > 0


def test_a_single_grid_is_the_tokens_cosine_difference_interpolated(crop):
    features = small_dinov3(1)
    pair = pair_of(crop, crop[::-1])
    padded = torch.nn.functional.pad((pair - 0.5) / 0.5, (0, 16, 0, 16), mode="reflect")
    with torch.no_grad():
        tokens = features.network.forward_features(padded)[:, features.network.num_prefix_tokens :]
    expected = (1 - torch.nn.functional.cosine_similarity(tokens[0], tokens[1], dim=-1)).view(1, 1, 11, 11)[..., :10, :10]
    expected = torch.nn.functional.interpolate(expected, scale_factor=16, mode="bilinear")[0, 0]
    assert torch.allclose(features(pair), expected, atol=1e-4)


def test_images_below_two_patches_are_refused(crop):
    with pytest.raises(GroundTruthError, match="at least 32 px"):
        small_dinov3(2)(pair_of(crop[:31], crop[:31]))


def test_broken_weights_are_an_error_not_a_number(crop):
    features = small_dinov3(1)
    torch.nn.init.constant_(features.network.patch_embed.proj.weight, float("nan"))
    with pytest.raises(GroundTruthError, match="finite"):
        features(pair_of(crop, crop[::-1]))


@pytest.mark.parametrize(("wanted", "patch", "usable"), [(4, 16, 4), (3, 16, 2), (4, 14, 2), (20, 16, 16), (1, 14, 1)])
def test_shifts_are_lowered_to_a_divisor_of_the_patch(wanted, patch, usable):
    assert usable_shifts(wanted, patch) == usable


def test_levels_of_transformers_and_pyramids():
    assert choose_levels([16] * 12) == (11,)
    assert choose_levels([2, 4, 8, 16, 32]) == (1, 2, 3)
    assert choose_levels([4, 8, 8, 16]) == (0, 2, 3)
    with pytest.raises(GroundTruthError, match="levels"):
        choose_levels([32, 64])


# -- from timm, by name ---------------------------------------------------------------------------------------------


def save_network(architecture, path):
    torch.manual_seed(0)
    state = timm.create_model(architecture, pretrained=False).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def saved_vit(tmp_path_factory):
    """Random weights of a small timm transformer, classifier included, as a safetensors file."""
    return save_network("test_vit", tmp_path_factory.mktemp("weights") / "model.safetensors")


def test_file_folder_and_second_copy_are_the_same_weights(saved_vit, crop):
    from_file, from_folder = (resolve_features(f"timm:test_vit@{path}", device="cpu") for path in (saved_vit, saved_vit.parent))
    assert from_file.version == from_folder.version
    assert len(from_file.version) == 16
    assert "test_vit on cpu" in from_file.reason
    assert "\n" not in from_file.reason
    other = save_network("test_vit2", saved_vit.parent / "other.safetensors")
    assert resolve_features(f"timm:test_vit2@{other}", device="cpu").version != from_file.version
    features = load_features(f"timm:test_vit@{saved_vit}", shifts=2, device="cpu")
    network = timm.create_model("test_vit", checkpoint_path=str(saved_vit), dynamic_img_size=True)
    own = dataclasses.replace(features, network=network.eval())
    pair = pair_of(crop, crop[::-1])
    assert torch.equal(features(pair), own(pair))


def test_networks_are_loaded_once_a_process(saved_vit):
    source = FeatureSource("test_vit", str(saved_vit))
    assert load_dense(source, shifts=1, device="cpu").network is load_dense(source, shifts=4, device="cpu").network


@pytest.mark.parametrize("architecture", ["test_convnext", "test_resnet"])
def test_convolutional_networks_are_compared_at_several_levels(architecture, tmp_path, textured):
    path = save_network(architecture, tmp_path / "cnn.safetensors")
    features = load_dense(FeatureSource(architecture, str(path)), shifts=4, device="cpu")
    assert features.reductions == (4, 8, 16)
    difference = features(pair_of(*textured)).numpy()
    assert difference.shape == (256, 256)
    assert difference[96:160, 96:160].mean() > 2 * difference[:16].mean() > 0
    assert patch_energy(difference) < 2
    assert patch_rhythm(difference) < 0.3
    assert not features(pair_of(textured[0], textured[0])).any()


def test_files_that_do_not_fit_are_refused(saved_vit, tmp_path):
    with pytest.raises(GroundTruthError, match=r"tensors are missing.*choose the model"):
        resolve_features(f"timm:test_vit3@{saved_vit}")
    (tmp_path / "text.safetensors").write_text("not weights")
    for missing in (tmp_path / "text.safetensors", tmp_path / "none.safetensors"):
        with pytest.raises(GroundTruthError, match="safetensors format expected"):
            resolve_features(f"dinov3@{missing}")


@pytest.mark.parametrize("architecture", ["mixer_s16_224", "test_maxvit"])
def test_networks_of_one_image_size_are_refused(architecture, tmp_path):
    path = save_network(architecture, tmp_path / "fixed.safetensors")
    with pytest.raises(GroundTruthError, match="images of any size"):
        resolve_features(f"timm:{architecture}@{path}", device="cpu")


def test_names():
    assert parse_source("dinov3") == FeatureSource("vit_small_patch16_dinov3", None)
    assert parse_source("dinov3:base@w.safetensors") == FeatureSource("vit_base_patch16_dinov3", "w.safetensors")
    assert parse_source("timm:resnet18@a@b.safetensors") == FeatureSource("resnet18", "a@b.safetensors")
    assert resolve_features("weight-free") == ResolvedFeatures(
        "weight-free", WEIGHT_FREE_VERSION, "weight-free features, as asked"
    )
    for size in loading.DINOV3_SIZES:
        assert timm.is_model(parse_source(f"dinov3:{size}").architecture)
    for unknown in ("vgg", "timm:no_such_model", "dinov3:giant", ""):
        with pytest.raises(GroundTruthError, match="features must be"):
            resolve_features(unknown)


@pytest.fixture
def hub_cache(monkeypatch, tmp_path):
    """An empty Hugging Face cache, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    loading._load.cache_clear()
    yield tmp_path
    loading._load.cache_clear()


def test_weights_out_of_reach_give_one_line_that_says_what_to_do(hub_cache):
    with pytest.raises(GroundTruthError, match=r"could not be had .*; go online once, give a file .* weight-free") as error:
        resolve_features("dinov3")
    assert "\n" not in str(error.value)


def test_auto_never_downloads_and_takes_what_is_cached(hub_cache):
    assert resolve_features("auto") == ResolvedFeatures(
        "weight-free",
        WEIGHT_FREE_VERSION,
        "weight-free features, auto: no DINOv3 weights in the local cache (ask for dinov3 to download them)",
    )
    assert resolve_ground_truth(GroundTruthConfig(features="auto")).config == GroundTruthConfig(feature_gain=1.0)
    repository = hub_cache / "models--timm--vit_small_patch16_dinov3.lvd1689m"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    path = save_network("vit_small_patch16_dinov3", repository / "snapshots" / "abc" / "model.safetensors")
    found = resolve_features("auto", device="cpu")
    assert found.name == "dinov3:small"
    assert found.reason == (
        "vit_small_patch16_dinov3 on cpu, auto: its weights are in the local cache; without a GPU this takes seconds a sample"
    )
    assert found.version == resolve_features(f"dinov3@{path}", device="cpu").version


def test_measured_gain_puts_networks_on_the_weight_free_scale(saved_vit):
    """Measured with one grid; it holds with shifted grids."""
    name = f"timm:test_vit@{saved_vit}"
    pairs = reference_faults()[:1]
    expected = mean_difference(WeightFreeFeatures(), reference_faults())
    resolved = resolve_ground_truth(GroundTruthConfig(features=name, feature_device="cpu"))
    gain = resolved.config.feature_gain
    assert gain == default_gain(name, device="cpu") == float(f"{gain:.1e}")
    assert resolved.config.features == resolved.features.name == name
    one, two = (mean_difference(load_features(name, shifts=shifts, device="cpu"), pairs) for shifts in (1, 2))
    assert one == pytest.approx(two, rel=0.05)
    assert gain * mean_difference(load_features(name, shifts=1, device="cpu"), reference_faults()) == pytest.approx(
        expected, rel=0.06
    )
    assert default_gain("weight-free") == 1.0


def test_map_from_dense_features(saved_vit, crop):
    name = f"timm:test_vit@{saved_vit}"
    config = GroundTruthConfig(features=name, alpha=0.0, feature_gain=5.0, feature_shifts=2, feature_device="cpu", floor=0.0)
    mask = np.zeros((160, 160), dtype=np.float32)
    mask[40:100, 50:120] = 1
    syn = np.where(mask[..., None] > 0, ndimage.gaussian_filter(crop, (3, 3, 0)), crop)
    degradation = ground_truth_map(crop, syn, mask, config)
    whole = load_features(name, shifts=2, device="cpu")(pair_of(crop, syn)).numpy()
    assert np.allclose(degradation, np.where(mask > 0, np.clip(5.0 * whole / 0.3, 0, 1), 0), atol=1e-6)
    assert degradation[60:80, 70:100].mean() > 0.05
    assert not ground_truth_map(crop, crop.copy(), mask, config).any()


def test_pixels_alone_need_no_weights(crop):
    config = GroundTruthConfig(alpha=1.0, features="timm:resnet18@nowhere.safetensors")
    mask = np.ones((160, 160), dtype=np.float32)
    assert np.array_equal(
        ground_truth_map(crop, 1 - crop, mask, config), ground_truth_map(crop, 1 - crop, mask, GroundTruthConfig(alpha=1.0))
    )
