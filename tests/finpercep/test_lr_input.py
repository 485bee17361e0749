"""The optional LR input: what the model is shown, that it stays optional, and that it moves with nothing else."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from finpercep.errors import ConfigError, ImageError
from finpercep.predictor import Predictor, as_image
from finpercep.reward_model.build import build_reward_model
from finpercep.reward_model.config import RewardModelConfig
from finpercep.reward_model.lr_evidence import GAIN, lr_difference, lr_evidence, lr_evidence_in
from tests.fakes import photo


def build(**settings):
    torch.manual_seed(0)
    return build_reward_model(RewardModelConfig(**{"map_stride": 4, "lr_input": True, **settings})).eval()


def test_an_image_agrees_with_what_it_was_brought_down_to():
    images = torch.rand(2, 3, 64, 48)
    lr = F.interpolate(images, (16, 12), mode="bicubic", antialias=True).clamp(0, 1)
    assert lr_difference(images, lr).abs().max() < 1e-6
    darker = lr_difference(images * 0.5, lr)
    assert torch.allclose(darker, -0.5 * lr, atol=0.02)  # signed: too dark is negative (the clamp explains the tolerance)


def test_the_evidence_is_the_difference_brought_up_and_a_flag():
    difference = torch.tensor([0.1, -0.2, 0.3]).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    planes = lr_evidence(difference, torch.tensor([True, False]), (32, 32))
    assert planes.shape == (2, 4, 32, 32)
    assert torch.allclose(planes[0, :, 5, 7], torch.tensor([0.1 * GAIN, -0.2 * GAIN, 0.3 * GAIN, 1.0]))
    assert not planes[1].any()


@pytest.mark.parametrize("window", [(0, 50, 0, 70), (16, 48, 32, 70), (3, 4, 69, 70)])
def test_evidence_in_a_window_is_that_of_the_whole(window):
    difference = torch.rand(1, 3, 13, 17) - 0.5
    top, bottom, left, right = window
    whole = lr_evidence(difference, None, (50, 70))[..., top:bottom, left:right]
    assert torch.allclose(lr_evidence_in(difference, (50, 70), window), whole, atol=1e-5)


def test_tiles_see_the_lr_picture_as_the_whole_does():
    whole = Predictor(build(), name="m", rung="RM_1", digest="d", tile=64, margin=128)
    tiled = Predictor(whole.model, name="m", rung="RM_1", digest="d", tile=64, margin=128, untiled=0)
    image, lr = as_image(photo(230, 330)), as_image(photo(58, 83, seed=1))
    one, other = whole.score_one(image, lr), tiled.score_one(image, lr)
    assert (one.map - other.map).abs().max() < 1e-4 and (one.score - other.score).abs().max() < 1e-4
    assert (one.map - whole.score_one(image).map).abs().max() > 1e-3


def test_a_predictor_says_what_is_wrong_with_an_lr_picture():
    with pytest.raises(ImageError, match="must not be larger than 64x48, got 65x8"):
        Predictor(build(), name="m", rung="RM_1", digest="d").assess(photo(48, 64), lr=photo(8, 65))
    with pytest.raises(ConfigError, match="RM_1 takes no LR picture"):
        Predictor(build(lr_input=False), name="m", rung="RM_1", digest="d").assess(photo(48, 64), lr=photo(12, 16))


@torch.no_grad()
def test_without_lr_nothing_of_it_is_seen():
    """lr unknown for all images, or for one of a batch, is the same as none given at all."""
    model = build()
    images, lr = torch.rand(2, 3, 70, 50), torch.rand(2, 3, 18, 13)
    blind, shown = model(images), model(images, lr)
    assert (blind.score - shown.score).abs().min() > 1e-6 and not torch.equal(blind.map, shown.map)
    half = model(images, lr, torch.tensor([True, False]))
    assert torch.allclose(half.score[0], shown.score[0], atol=1e-6) and torch.allclose(half.score[1], blind.score[1], atol=1e-6)
    assert torch.allclose(half.map[1], blind.map[1], atol=1e-6)


@torch.no_grad()
def test_the_lr_picture_may_have_any_smaller_size():
    model = build()
    for size in ((8, 8), (17, 11), (40, 40)):
        assert model(torch.rand(1, 3, 40, 40), torch.rand(1, 3, *size)).map.shape == (1, 40, 40)


def test_gradients_reach_the_image_through_the_difference():
    model = build()
    images = torch.rand(1, 3, 64, 64)
    lr = F.interpolate(images, (16, 16), mode="bicubic", antialias=True)
    images.requires_grad_()
    model(images, lr).score.sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 1, 8, 8), (1, 3, 65, 8), (3, 8, 8)])
def test_lr_pictures_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="lr must be N×3×h×w"):
        build()(torch.rand(1, 3, 64, 64), torch.rand(shape))


def test_a_model_without_the_input_refuses_it():
    with pytest.raises(ValueError, match="takes no lr"):
        build(lr_input=False)(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 16, 16))
