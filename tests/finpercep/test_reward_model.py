"""The model against method §2: the map drives the score, batches do not matter, padding does not matter."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from finpercep.errors import ConfigError
from finpercep.reward_model.build import build_reward_model, inherit_weights, with_encoder_statistics
from finpercep.reward_model.config import RewardModelConfig
from finpercep.reward_model.ladder import LadderConfig
from finpercep.reward_model.model import Perception
from finpercep.reward_model.score_head import MapForScore, bring_to, modulated_features

FORMS = ("literal", "complement", "residual", "statistics")


def build(**settings):
    torch.manual_seed(0)
    return build_reward_model(RewardModelConfig(**{"map_stride": 4, **settings})).eval()


def with_constant_logits(seen: Perception, value: float) -> Perception:
    return dataclasses.replace(seen, coarse_logits=torch.full_like(seen.coarse_logits, value))


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_the_map_drives_the_score(form):
    """Same features, another map: the score must move. It fails if the head ever stops reading the map."""
    model = build(modulation=form)
    seen = model.perceive(torch.rand(2, 3, 64, 64))
    scores = [model.score(with_constant_logits(seen, value), (64, 64)) for value in (-8.0, 0.0, 8.0)]
    assert (scores[0] - scores[1]).abs().min() > 1e-5
    assert (scores[1] - scores[2]).abs().min() > 1e-5


@torch.no_grad()
def test_modulation_forms_are_the_formulas():
    deep, weight = torch.rand(2, 5, 4, 4), torch.ones(4, 4)
    degradation = torch.rand(2, 16, 16)
    at_deep = torch.nn.functional.avg_pool2d(degradation[:, None], 4)
    seen = MapForScore(degradation, at_deep[:, 0])
    expected = {"literal": deep * at_deep, "complement": deep * (1 - at_deep), "residual": deep * (1 + at_deep)}
    for form, product in expected.items():
        got = modulated_features(deep, seen, weight, form)
        assert torch.allclose(got, product.mean((2, 3)), atol=1e-6)
    got = modulated_features(deep, seen, weight, "statistics")
    assert got.shape == (2, 12)
    assert torch.allclose(got[:, -2], degradation.mean((1, 2)), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("form", ["complement", "residual", "statistics"])
def test_rung_zero_is_the_rung_with_an_empty_map(form):
    deep, weight = torch.rand(2, 5, 4, 4), torch.ones(4, 4)
    empty = MapForScore(torch.zeros(2, 16, 16), torch.zeros(2, 4, 4))
    assert torch.allclose(modulated_features(deep, None, weight, form), modulated_features(deep, empty, weight, form))


@pytest.mark.parametrize("pooling", ["area", "max"])
def test_no_small_defect_falls_between_samples(pooling):
    """Every single hot pixel of the map is still there after it was brought to f_N's size."""
    for row in range(0, 32, 5):
        for column in range(0, 32, 7):
            degradation = torch.zeros(1, 32, 32)
            degradation[0, row, column] = 1.0
            assert bring_to(degradation, (2, 2), pooling).sum() > 0


@torch.no_grad()
def test_score_and_map_do_not_depend_on_the_batch():
    model = build()
    images = torch.rand(5, 3, 64, 80)
    together, alone = model(images), [model(image[None]) for image in images]
    assert torch.allclose(together.score, torch.cat([output.score for output in alone]), atol=1e-5)
    assert torch.allclose(together.map, torch.cat([output.map for output in alone]), atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 50), (95, 129)])
@torch.no_grad()
def test_any_size_gives_a_map_of_the_images_size(size):
    for stride in (1, 4, 16):
        output = build(map_stride=stride)(torch.rand(1, 3, *size))
        assert output.map.shape == (1, *size)
        assert 0 <= output.score.item() <= 1


@torch.no_grad()
def test_padding_does_not_count_in_the_score():
    """Of a 64×50 image padded to 64×64, positions beyond the image have no weight."""
    model = build(modulation="residual")
    share = model._image_share(torch.zeros(1, 1, 4, 4), (64, 50))
    assert share.sum().item() == pytest.approx(4 * 50 / 16)
    assert share[0].tolist() == [1.0, 1.0, 1.0, 0.125]
    seen = model.perceive(torch.rand(1, 3, 64, 50))
    logits = torch.full((1, 16, 13), -50.0)
    logits[..., -1] = 50.0  # the last column of the image; padding must not make it wider
    assert model._map_for_score(Perception(seen.deep, logits)).own.mean().item() == pytest.approx(1 / 13)


def test_too_small_or_misshapen_images_are_refused():
    for shape in [(1, 3, 31, 64), (3, 64, 64), (1, 1, 64, 64)]:
        with pytest.raises(ValueError, match="N×3×H×W"):
            build()(torch.zeros(shape))


def test_gradients_reach_the_image_and_are_finite():
    model = build().requires_grad_(False)
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    output = model(images)
    (gradient,) = torch.autograd.grad(output.score.sum() + output.map.mean(), images)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_a_rung_starts_from_the_one_before():
    coarse, fine = build(map_stride=16), build(map_stride=4)
    assert inherit_weights(fine, coarse) > 0
    for name, tensor in coarse.encoder.state_dict().items():
        assert torch.equal(fine.encoder.state_dict()[name], tensor)
    assert torch.equal(fine.score_head.mlp[0].weight, coarse.score_head.mlp[0].weight)


def test_the_ladder_begins_without_a_map_and_gets_finer():
    rungs = LadderConfig(map_strides=(16, 4, 1)).rungs()
    assert [(name, config.map_stride) for name, config in rungs] == [("RM_0", None), ("RM_1", 16), ("RM_2", 4), ("RM_3", 1)]
    assert [config.decoder_blocks for _, config in rungs] == [0, 0, 2, 4]
    with pytest.raises(ConfigError, match="fall strictly"):
        LadderConfig(map_strides=(4, 16))


def test_normalisation_follows_the_encoders_data_config():
    assert with_encoder_statistics(RewardModelConfig(encoder="tu-mobilenetv3_small_050")).mean == (0.485, 0.456, 0.406)
    inception_like = with_encoder_statistics(RewardModelConfig(encoder="tu-mobilevitv2_050"))
    assert inception_like.mean == (0.0, 0.0, 0.0) and inception_like.std == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "bad", [{"map_stride": 3}, {"map_stride": 32}, {"modulation": "none"}, {"map_pooling": "bilinear"}, {"encoder_depth": 9}]
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        RewardModelConfig(**bad)


def test_unknown_encoder_is_refused():
    with pytest.raises(ConfigError, match="encoder 'tu-nonsense'"):
        build(encoder="tu-nonsense")
    with pytest.raises(ConfigError, match="encoder 'tu-nonsense'"):
        with_encoder_statistics(RewardModelConfig(encoder="tu-nonsense"))
