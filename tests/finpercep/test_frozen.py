"""A frozen copy computes what the trained model computes."""

from __future__ import annotations

import pytest
import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock
from torch import nn

from finpercep.predictor import load_predictors, packaged_model_folder
from finpercep.reward_model.build import build_reward_model
from finpercep.reward_model.config import RewardModelConfig
from finpercep.reward_model.frozen import DoublingBlock, _quicker, frozen_copy


def scrambled(model, seed=0):
    """The model with batch norms as training leaves them: no mean 0, no variance 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.3, generator=generator)
    return model.eval()


def assert_same_function(one, two, images):
    """Scores and maps to 1e-5; gradients to a thousandth of their length: rounding may turn a ReLU on or off."""
    (score, shown, gradient), (score2, shown2, gradient2) = outputs(one, images), outputs(two, images)
    assert (score - score2).abs().max() <= 1e-5
    assert (shown - shown2).abs().max() <= 1e-5
    assert (gradient - gradient2).norm() <= 1e-3 * gradient2.norm()


def outputs(model, images):
    """Score, map (or the score again) and the gradient to the image."""
    images = images.clone().requires_grad_()
    output = model(images)
    shown = output.score if output.map is None else output.map
    (output.score.sum() + shown.mean()).backward()
    return output.score.detach(), shown.detach(), images.grad


@pytest.mark.parametrize(
    "encoder", ["tu-resnet10t", "resnet18", "tu-mobilenetv3_small_050", "tu-edgenext_xx_small", "tu-regnetx_002"]
)
@pytest.mark.parametrize("map_stride", [None, 16, 2])
def test_the_same_function_for_any_encoder(encoder, map_stride):
    torch.manual_seed(0)
    model = scrambled(build_reward_model(RewardModelConfig(encoder=encoder, map_stride=map_stride)))
    images = torch.rand(2, 3, 70, 52)
    assert_same_function(frozen_copy(model), model, images)


def test_the_packaged_rungs_score_as_they_were_trained_to():
    images = torch.rand(2, 3, 96, 130, generator=torch.Generator().manual_seed(0))
    for predictor in load_predictors(packaged_model_folder()).values():
        assert_same_function(predictor.network, predictor.model, images)


def test_no_batch_norm_is_left_and_no_large_feature_map_is_made():
    frozen = frozen_copy(scrambled(build_reward_model(RewardModelConfig(map_stride=4))))
    kinds = [type(module) for module in frozen.modules()]
    assert nn.BatchNorm2d not in kinds
    assert UnetDecoderBlock not in kinds
    assert kinds.count(DoublingBlock) == 2


def test_the_model_itself_is_left_alone():
    model = scrambled(build_reward_model(RewardModelConfig(map_stride=4)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen = frozen_copy(model)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.parametrize(
    "options", [{"interpolation_mode": "bilinear"}, {"attention_type": "scse"}, {"use_norm": "instancenorm"}]
)
def test_other_decoder_blocks_are_kept(options):
    assert not DoublingBlock.can_replace(UnetDecoderBlock(32, 16, 16, **options))


def test_a_part_that_branches_on_its_input_is_kept():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

        def forward(self, images):
            return self.inner(images) if images.sum() > 0 else images

    model = build_reward_model(RewardModelConfig())
    model.encoder = Branching().eval()
    frozen = frozen_copy(model.eval())
    assert isinstance(frozen.encoder, Branching)
    assert [type(module) for module in frozen.encoder.inner.children()] == [nn.Conv2d, nn.Identity]


class TwoNorms(nn.Module):
    """One convolution under two batch norms: neither may be folded into it."""

    def __init__(self):
        super().__init__()
        self.convolution, self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, images):
        return self.two(self.convolution(self.one(self.convolution(images))))


@torch.no_grad()
def test_a_convolution_used_twice_is_not_folded():
    torch.manual_seed(0)
    part, images = scrambled(TwoNorms()), torch.rand(1, 3, 8, 8)
    expected = part(images)
    assert torch.allclose(_quicker(part)(images), expected, atol=1e-6)
