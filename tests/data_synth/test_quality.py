"""Pseudo quality: 1 for the original, falling with damage, about 0.3 for bicubic upsampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_synth.degradations import resize_image
from data_synth.photos import sample_photos
from data_synth.quality import QualityConfig, QualityError, pseudo_quality


def to_8bit(image):
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_original_is_exactly_one_and_damage_lowers_it(crop):
    gt = to_8bit(crop)
    damaged = [to_8bit(resize_image(resize_image(crop, (n, n), "bicubic"), (160, 160), "bicubic")) for n in (120, 80, 40, 20)]
    quality = pseudo_quality([gt, *damaged], [gt] * 5, QualityConfig())
    assert quality.dtype == np.float32
    assert quality[0] == 1.0
    assert sorted(quality, reverse=True) == list(quality)
    assert len(set(quality.tolist())) == 5


def test_bicubic_x4_lands_near_three_tenths():
    crops = [photo.read()[100:260, 100:260] for photo in sample_photos()]
    up = [
        to_8bit(resize_image(resize_image(c.astype(np.float32) / 255, (40, 40), "bicubic"), (160, 160), "bicubic")) for c in crops
    ]
    assert 0.2 < np.mean(pseudo_quality(up, crops, QualityConfig())) < 0.45


def test_an_image_does_not_depend_on_its_batch(crop):
    gt = to_8bit(crop)
    others = [to_8bit(crop * factor) for factor in (0.9, 0.5, 0.7)]
    alone = [pseudo_quality([other], [gt], QualityConfig())[0] for other in others]
    together = pseudo_quality(others, [gt] * 3, QualityConfig(batch_size=2))
    assert np.allclose(alone, together, atol=1e-6)


def test_settings_are_checked_when_built():
    with pytest.raises(QualityError, match="positive"):
        QualityConfig(tau=0.0)
