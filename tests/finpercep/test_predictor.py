"""Raw pictures: borders, tiling, determinism."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finpercep.errors import ConfigError, ImageError, RewardError
from finpercep.predictor import Predictor, load_predictor, load_predictors, packaged_model_folder
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


def test_large_pictures_go_through_in_tiles(finest, monkeypatch):
    monkeypatch.setattr(finest, "untiled", 100 * 100)
    monkeypatch.setattr(finest, "score", lambda *_: pytest.fail("not tiled"))
    assert finest.assess(picture(200, 220)).map.shape == (200, 220)


def test_a_score_that_is_not_finite_is_an_error(small_ladder):
    broken = load_predictors(small_ladder)["RM_1"]
    torch.nn.init.constant_(broken.network.score_head.mlp[0].bias, float("nan"))
    with pytest.raises(RewardError, match="not finite"):
        broken.assess(picture(40, 40))


def test_small_pictures_are_refused(finest):
    with pytest.raises(ImageError, match=r"at least 32 px on each side, got 64x31"):
        finest.assess(picture(31, 64))


def test_tiles_lie_on_the_deepest_features_grid(finest):
    with pytest.raises(ConfigError, match=r"multiples of 16 px, got 100 and 128"):
        Predictor(finest.model, name="small", rung="RM_2", digest="", tile=100)


@pytest.mark.parametrize("rung", ["RM_0", "RM_1", "RM_2"])
def test_a_score_does_not_depend_on_the_batch(rung):
    predictor = load_predictor(packaged_model_folder(), rung)
    images = torch.rand(32, 3, 96, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = predictor.score(images)
        alone = [predictor.score(image[None]) for image in images]
    assert (torch.cat([one.score for one in alone]) - together.score).abs().max() <= 1e-5
    if predictor.has_map:
        assert (torch.cat([one.map for one in alone]) - together.map).abs().max() <= 1e-5
