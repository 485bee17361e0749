"""Pseudo quality: 1 for the original, falling with damage, about 0.3 for bicubic upsampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from data_synth import quality
from data_synth.photos import sample_photos
from data_synth.quality import QualityConfig, QualityError, pseudo_quality, resolve_quality


def to_8bit(image):
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def bicubic(image, side):
    """8-bit image reduced to side×side and back."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.BICUBIC).resize(image.shape[1::-1], Image.BICUBIC))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_original_is_exactly_one_and_damage_lowers_it(crop):
    gt = to_8bit(crop)
    damaged = [bicubic(gt, side) for side in (120, 80, 40, 20)]
    measured = pseudo_quality([gt, *damaged], [gt] * 5, QualityConfig())
    assert measured.dtype == np.float32
    assert measured[0] == 1.0
    assert sorted(measured, reverse=True) == list(measured)
    assert len(set(measured.tolist())) == 5


def test_bicubic_x4_lands_near_three_tenths():
    crops = [photo.read()[100:260, 100:260] for photo in sample_photos()]
    up = [bicubic(crop, 40) for crop in crops]
    assert 0.2 < np.mean(pseudo_quality(up, crops, QualityConfig())) < 0.45


def test_an_image_does_not_depend_on_its_batch(crop):
    gt = to_8bit(crop)
    others = [to_8bit(crop * factor) for factor in (0.9, 0.5, 0.7)]
    alone = [pseudo_quality([other], [gt], QualityConfig())[0] for other in others]
    together = pseudo_quality(others, [gt] * 3, QualityConfig(batch_size=2))
    assert np.allclose(alone, together, atol=1e-6)


def test_gmsd_by_its_formula(crop):
    """Xue et al., 2013, eq. 2–5: halved luma, Prewitt gradients, deviation of their similarity, here in NumPy."""
    gt = to_8bit(crop)
    images = [gt, bicubic(gt, 80)]

    def gradient(image):
        luma = np.rint(image @ [0.299, 0.587, 0.114])
        halved = np.pad(luma.reshape(80, 2, 80, 2).mean((1, 3)), 1)
        columns = halved[:, 2:] - halved[:, :-2]
        rows = halved[2:] - halved[:-2]
        gx = (columns[2:] + columns[1:-1] + columns[:-2]) / 3
        gy = (rows[:, 2:] + rows[:, 1:-1] + rows[:, :-2]) / 3
        return np.hypot(gx, gy)

    a, b = (gradient(image) for image in images)
    gmsd = ((2 * a * b + 170) / (a**2 + b**2 + 170)).std(ddof=1)
    assert pseudo_quality([images[1]], [gt], QualityConfig())[0] == pytest.approx(np.exp(-gmsd / 0.1), rel=1e-3)


@pytest.mark.parametrize("wrong", [{"tau": 0.0}, {"lpips_tau": -1.0}, {"dists_tau": 0.0}, {"batch_size": 0}])
def test_settings_are_checked_when_built(wrong):
    with pytest.raises(QualityError, match="positive"):
        QualityConfig(**wrong)


def test_unknown_metric():
    with pytest.raises(QualityError, match="one of gmsd, lpips, dists, auto, got 'ssim'"):
        QualityConfig(metric="ssim")


@pytest.mark.parametrize(("metric", "side"), [("gmsd", 7), ("lpips", 63), ("dists", 31)])
def test_images_too_small_to_measure_are_an_error(metric, side):
    small = np.zeros((side, 200, 3), dtype=np.uint8)
    with pytest.raises(QualityError, match=f"at least {side + 1} px on each side, got 200x{side}"):
        pseudo_quality([small], [small], QualityConfig(metric=metric))


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """An empty torch hub folder, and no network."""
    from pyiqa.utils import download_util

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))  # set_dir has no way back to TORCH_HOME
    monkeypatch.setattr(download_util, "DEFAULT_CACHE_DIR", str(tmp_path / "pyiqa"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    _forget()
    yield tmp_path
    _forget()


def _forget():
    quality._metric.cache_clear()
    quality._version.cache_clear()


def test_auto_without_weights_is_gmsd(hub_folder):
    resolved = resolve_quality(QualityConfig(metric="auto"))
    assert resolved.metric == "gmsd"
    assert resolved.version.startswith("pyiqa-")
    assert resolved.reason == "GMSD, auto: no LPIPS or DISTS weights in torch's hub folder"
    assert resolve_quality(QualityConfig()).reason == "GMSD, as asked"


@pytest.mark.parametrize("metric", ["lpips", "dists"])
def test_weights_out_of_reach_say_what_to_do(hub_folder, metric):
    with pytest.raises(
        QualityError, match=rf"weights of {metric} could not be had .* go online once, put .* or choose metric gmsd"
    ) as error:
        resolve_quality(QualityConfig(metric=metric))
    assert "\n" not in str(error.value)


def _save_untrained(metric, folder):
    """Random weights where torchvision and pyiqa look for theirs; unused classifiers are one repeated zero: small files."""
    import torchvision

    torch.manual_seed(0)
    backbone, weights = quality._WEIGHT_FILES[metric]
    network = getattr(torchvision.models, "alexnet" if metric == "lpips" else "vgg16")()
    state = {
        name: torch.zeros(1).expand(tensor.shape) if name.startswith("classifier") else tensor
        for name, tensor in network.state_dict().items()
    }
    channels = (64, 192, 384, 256, 256)
    own = (
        {f"lin{i}.model.1.weight": torch.rand(1, count, 1, 1) / count for i, count in enumerate(channels)}
        if metric == "lpips"
        else {"alpha": torch.rand(1, 1475, 1, 1), "beta": torch.rand(1, 1475, 1, 1)}
    )
    for name, content in ((backbone, state), (weights, own)):
        (folder / name).parent.mkdir(exist_ok=True)
        torch.save(content, folder / name)


@pytest.mark.parametrize("metric", ["lpips", "dists"])
def test_auto_takes_network_metrics_whose_weights_are_here(hub_folder, metric, crop, capsys):
    _save_untrained(metric, hub_folder)
    config = QualityConfig(metric="auto")
    resolved = resolve_quality(config)
    assert (resolved.metric, resolved.reason) == (metric, f"{metric.upper()}, auto: its weights are here")
    gt = to_8bit(crop[:96, :96])
    damaged = [bicubic(gt, side) for side in (72, 24)]
    measured = pseudo_quality([gt, *damaged], [gt] * 3, config)
    assert measured[0] == 1.0
    assert 1.0 > measured[1] > measured[2] > 0.0
    tau = {"lpips": {"lpips_tau": 0.66}, "dists": {"dists_tau": 0.38}}[metric]
    assert np.allclose(pseudo_quality(damaged, [gt] * 2, QualityConfig(metric=metric, **tau)) ** 2, measured[1:], atol=1e-5)
    assert capsys.readouterr().out == ""
