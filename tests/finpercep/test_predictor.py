"""Raw pictures: borders, tiling, determinism."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finpercep import predictor as predictor_module
from finpercep.errors import ImageError, RewardError
from finpercep.predictor import Predictor, _tiles, load_predictors
from finpercep.reward import RewardWeights, fuse


@pytest.fixture(scope="module")
def finest(small_ladder):
    return list(load_predictors(small_ladder).values())[-1]


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_assessment_is_the_model_on_pixels_over_255(finest):
    pixels = picture(70, 90)
    got = finest.assess(pixels)
    batch = finest.score(torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255)
    rewards = fuse(batch.score, batch.map, RewardWeights())
    assert got.score == pytest.approx(batch.score.item())
    assert got.reward == pytest.approx(rewards.reward.item())
    assert torch.equal(got.map, batch.map[0])
    assert got.map.shape == (70, 90)


def test_rung_zero_has_no_map(small_ladder):
    base = load_predictors(small_ladder)["RM_0"]
    got = base.assess(picture(40, 40))
    assert not base.has_map
    assert (got.map, got.max_degradation, got.mean_degradation, got.regions) == (None, None, None, ())


@pytest.mark.parametrize(("height", "width"), [(300, 420), (256, 700), (517, 333)])
def test_tiled_equals_untiled(finest, height, width):
    small = Predictor(finest.model, name="small", rung="RM_2", digest="", tile=128)
    pixels = picture(height, width)
    with torch.no_grad():
        tiled, whole = small._tiled(pixels), small._untiled(pixels)
    assert tiled.map.shape == (1, height, width)
    assert (tiled.map - whole.map).abs().max() < 1e-3
    assert (tiled.score - whole.score).abs().max() < 1e-3


def test_tiles_cover_every_pixel_once():
    for height, width in [(1, 1), (127, 129), (300, 1000), (4000, 6000)]:
        covered = np.zeros((height, width), dtype=np.uint8)
        for (top, bottom, left, right), (c_top, c_bottom, c_left, c_right) in _tiles(height, width, 128, 64):
            covered[top:bottom, left:right] += 1
            assert c_top <= top < bottom <= c_bottom and c_left <= left < right <= c_right
            assert c_top % 64 == 0 and c_left % 64 == 0
        assert (covered == 1).all()


def test_large_pictures_go_through_in_tiles(finest, monkeypatch):
    monkeypatch.setattr(predictor_module, "UNTILED_PIXELS", 100 * 100)
    pixels = picture(200, 220)
    monkeypatch.setattr(finest, "_untiled", lambda _: pytest.fail("not tiled"))
    assert finest.assess(pixels).map.shape == (200, 220)


def test_a_score_that_is_not_finite_is_an_error(small_ladder):
    broken = load_predictors(small_ladder)["RM_1"]
    torch.nn.init.constant_(broken.model.score_head.mlp[0].bias, float("nan"))
    with pytest.raises(RewardError, match="not finite"):
        broken.assess(picture(40, 40))


def test_small_pictures_are_refused(finest):
    with pytest.raises(ImageError, match=r"at least 32 px on each side, got 64x31"):
        finest.assess(picture(31, 64))
