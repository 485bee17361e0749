"""Every encoder and decoder there is: any size, finite gradients, rungs that start from each other, weights from a file."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
from typing import get_args

import pytest
import timm
import torch
from safetensors.torch import save_file

from finpercep.errors import ConfigError, WeightsError
from finpercep.export import NOT_EXPORTABLE, TOLERANCE, onnx_bytes, onnx_parity
from finpercep.reward_model.build import build_reward_model, inherit_weights, with_encoder_statistics
from finpercep.reward_model.config import Decoder, RewardModelConfig, native_stride
from finpercep.reward_model.ladder import LadderConfig
from finpercep.reward_model.model import FinPercepRM
from tests.finpercep.test_reward_model import compiled_equals_eager, padded_by_hand

DECODERS = get_args(Decoder)
CONVOLUTIONAL = tuple(name for name in DECODERS if name != "dpt")
LOOKS_AT_THE_WHOLE_IMAGE = {"fpn", "upernet", "pspnet", "deeplabv3", "deeplabv3plus", "manet", "dpt"}
SIZES = ((32, 32), (33, 47), (95, 65))
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)


def small_config(encoder, decoder, depth=4, **settings):
    """At the decoder's finest stride, and narrow."""
    settings = {"map_stride": native_stride(decoder, depth), "score_scale": 20.0, **settings}
    return RewardModelConfig(
        encoder=encoder, decoder=decoder, encoder_depth=depth, decoder_channels=(64, 32, 16, 16, 16), **settings
    )


def small(encoder, decoder, depth=4, **settings):
    torch.manual_seed(0)
    return build_reward_model(small_config(encoder, decoder, depth, **settings)).eval()


def fitting(encoder):
    return "tu-test_vit" if encoder == "dpt" else "tu-test_resnet"


def takes_any_size(model, sizes=SIZES):
    """Padding inside is padding by hand, and the image's gradient is there and finite."""
    model.requires_grad_(False)
    stride = model.config.deep_stride
    for height, width in sizes:
        images = torch.rand(1, 3, height, width, requires_grad=True)
        output = model(images)
        assert output.map.shape == (1, height, width)
        by_hand = model(padded_by_hand(images, stride)).map[:, :height, :width]
        assert torch.allclose(output.map, by_hand, atol=1e-6)
        grid = [-(-side // stride) * stride // model.config.map_stride for side in (height, width)]
        assert list(model.perceive(images).coarse_logits.shape[1:]) == grid
        (gradient,) = torch.autograd.grad(output.score.sum() + output.map.mean(), images)
        assert gradient.isfinite().all() and gradient.abs().sum() > 0


@pytest.mark.parametrize("depth", [4, 5])
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_takes_any_size(decoder, depth):
    takes_any_size(small(fitting(decoder), decoder, depth))


@pytest.mark.parametrize(
    ("encoder", "decoder", "depth"),
    [
        ("resnet18", "fpn", 4),  # smp's own
        ("tu-resnet10t", "segformer", 4),
        ("tu-test_convnext", "unet", 4),  # nothing at stride 2
        ("tu-test_convnext", "fpn", 5),
        ("tu-test_vit3", "dpt", 3),  # patches of 8 px
        ("tu-test_vit2", "dpt", 4),
        ("tu-vit_small_patch16_dinov3", "dpt", 4),  # rotary positions, register tokens
        ("tu-resnet50_clip", "unet", 5),
    ],
)
def test_encoders_of_every_kind_take_any_size(encoder, decoder, depth):
    takes_any_size(small(encoder, decoder, depth, map_stride=4), sizes=((33, 79),))


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_learns(decoder):
    """In training mode every parameter of decoder and head is reached, on the smallest images too."""
    model = small(fitting(decoder), decoder).train()
    output = model(torch.rand(2, 3, 32, 32))
    (output.score.sum() + output.map.mean()).backward()
    for part in (model.map_decoder, model.score_head):
        assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in part.parameters())


@pytest.mark.parametrize("decoder", DECODERS)
@torch.no_grad()
def test_which_decoders_look_at_the_whole_image(decoder):
    """A change at one end of the image reaches the other end's map, or does not, as `map_decoder` says."""
    model = small(fitting(decoder), decoder)
    images = torch.rand(1, 3, 512, 64)
    changed = images.clone()
    changed[..., :16, :] = 0
    difference = (model(images).map - model(changed).map)[:, -32:].abs().max().item()
    assert (difference > 0) == (decoder in LOOKS_AT_THE_WHOLE_IMAGE)


@pytest.mark.parametrize("decoder", DECODERS)
def test_rungs_of_a_ladder_start_from_each_other(decoder):
    """From RM_1 on, all the map decoder's tensors of a rung are found in the next, the U-Net's further blocks aside."""
    finest = native_stride(decoder, 4)
    strides = (16, finest) if finest < 16 else (16,)
    base = small_config(fitting(decoder), decoder, map_stride=None)
    models = [build_reward_model(config) for _, config in LadderConfig(base, strides).rungs()]
    assert models[0].map_decoder is None
    for parent, child in itertools.pairwise(models):
        shared = inherit_weights(child, parent)
        assert shared >= len(models[0].state_dict())
        if decoder != "unet" and parent.map_decoder is not None:
            assert shared == len(child.state_dict()) == len(parent.state_dict())
            assert all(torch.equal(tensor, child.state_dict()[name]) for name, tensor in parent.state_dict().items())


@pytest.mark.parametrize("encoder", ["tu-test_vit", "tu-test_resnet"])
@torch.no_grad()
def test_rung_zero_needs_no_decoder(encoder):
    model = small(encoder, "dpt" if "vit" in encoder else "fpn", map_stride=None)
    output = model(torch.rand(2, 3, 47, 33))
    assert output.map is None and output.score.isfinite().all()


@pytest.mark.parametrize(("encoder", "decoder"), [("tu-test_resnet", "fpn"), ("tu-test_vit", "dpt")])
@torch.no_grad()
def test_a_saved_rung_is_the_same_rung(encoder, decoder, tmp_path):
    model = small(encoder, decoder)
    model.save_pretrained(tmp_path)
    images = torch.rand(1, 3, 40, 50)
    assert torch.equal(FinPercepRM.load(tmp_path)(images).map, model(images).map)


@pytest.mark.parametrize(
    ("encoder", "decoder"), [("tu-test_resnet", "fpn"), pytest.param("tu-test_vit", "dpt", marks=pytest.mark.slow)]
)
def test_onnx_agrees(encoder, decoder):
    model = small(encoder, decoder)
    parity = onnx_parity(onnx_bytes(model, "RM_1"), model, ((1, 32, 32), (2, 33, 79)))
    assert parity.worst <= TOLERANCE


@pytest.mark.parametrize("decoder", NOT_EXPORTABLE)
def test_what_does_not_export_says_so(decoder):
    with pytest.raises(ConfigError, match=f"fixed grid, got '{decoder}'"):
        onnx_bytes(small("tu-test_resnet", decoder), "RM_1")


def test_fpn_compiles_to_one_graph():
    compiled_equals_eager(small("tu-test_resnet", "fpn"), "aot_eager", False, [(1, 47, 33)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder": "segformer", "map_stride": 2}, "map_stride of decoder 'segformer' .* must be at least 4, got 2"),
        ({"decoder": "deeplabv3", "map_stride": 4}, "must be at least 16, got 4"),
        ({"decoder": "fpn", "encoder_depth": 5, "map_stride": 2}, "must be at least 4, got 2"),
        ({"decoder": "pan"}, "decoder must be one of .*'unet'"),
        ({"decoder": "unetplusplus", "encoder_depth": 5, "map_stride": 4}, "decoder_channels must name 5 blocks, got 4"),
    ],
)
def test_what_a_decoder_cannot_do_is_said(settings, message):
    with pytest.raises(ConfigError, match=message):
        RewardModelConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "tu-test_vit", "decoder": "unet"}, "ViTs go with decoder 'dpt'"),
        ({"encoder": "tu-test_resnet", "decoder": "dpt"}, "must be a timm ViT"),
        ({"encoder": "resnet18", "decoder": "dpt"}, "must be a timm ViT"),
        ({"encoder": "tu-test_convnext", "decoder": "fpn"}, "has none at stride 2; .* or encoder_depth 5"),
        ({"encoder": "tu-test_convnext", "decoder": "unetplusplus"}, "has none at stride 2"),
        ({"encoder": "tu-test_resnet", "decoder": "fpn", "decoder_channels": (70,)}, r"decoder_channels \(70,\) cannot be built"),
        ({"encoder": "tu-test_resnet", "decoder": "fpn", "decoder_channels": (32,)}, "at least 64 channels"),
    ],
)
def test_what_does_not_go_together_is_said(settings, message):
    with pytest.raises(ConfigError, match=message) as refused:
        build_reward_model(RewardModelConfig(map_stride=16, **settings))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("encoder", "decoder", "mean"),
    [("tu-resnet50_clip", "unet", CLIP_MEAN), ("tu-vit_tiny_patch16_224", "dpt", (0.5, 0.5, 0.5))],
)
def test_normalisation_follows_the_encoder(encoder, decoder, mean):
    assert with_encoder_statistics(RewardModelConfig(encoder=encoder, decoder=decoder)).mean == mean


@pytest.mark.parametrize("with_head", [True, False])
@pytest.mark.parametrize(
    ("encoder", "depth", "kernel"),
    [
        ("tu-test_resnet", 4, ("conv1.0.weight", "conv1.0.weight")),
        ("tu-test_vit", 4, ("patch_embed.proj.weight", "patch_embed.proj.weight")),
        ("tu-resnet50_clip", 5, ("stem.conv1.conv.weight", "stem_conv1.conv.weight")),
    ],
)
def test_an_encoder_starts_from_a_file(encoder, depth, kernel, with_head, tmp_path):
    state = timm.create_model(encoder.removeprefix("tu-")).state_dict()
    path = tmp_path / "w.safetensors"
    trunk = {name: tensor for name, tensor in state.items() if not name.startswith(("fc.", "head."))}
    save_file(state if with_head else trunk, path)
    config = small_config(encoder, "dpt" if "vit" in encoder else "unet", depth, map_stride=None)
    for source in (path, str(path)):
        found = build_reward_model(config, pretrained_encoder=source).encoder.model.state_dict()[kernel[1]]
        assert torch.equal(found[:, :3], state[kernel[0]])
        assert found.shape[1] == 7 and not found[:, 3:].any()  # what shows the LR picture begins with no say


def test_a_vit_of_another_patch_resamples_the_file(tmp_path):
    """The names are of patches of 16 px, the depth asks for 8: still an encoder, and the rest of it the file's."""
    state = timm.create_model("test_vit").state_dict()
    save_file(state, tmp_path / "w.safetensors")
    model = build_reward_model(small_config("tu-test_vit", "dpt", 3), pretrained_encoder=tmp_path / "w.safetensors")
    loaded = model.encoder.model.state_dict()
    assert loaded["patch_embed.proj.weight"].shape[-2:] == (8, 8)
    assert torch.equal(loaded["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"])


def test_a_file_that_is_not_the_encoders_is_refused(tmp_path):
    config, path = small_config("tu-test_resnet", "unet"), tmp_path / "w.safetensors"
    for content, message in (
        (None, "w.safetensors: expected a file with weights of 'tu-test_resnet', found none"),
        (b"\0" * 40, "w.safetensors: not weights of 'tu-test_resnet'"),
        (timm.create_model("test_vit").state_dict(), "found none for model.conv1.0.weight"),
        (without(timm.create_model("test_resnet").state_dict(), "layer3.0.conv2.weight"), "found none for model.layer3.0.conv2"),
    ):
        if isinstance(content, dict):
            save_file(content, path)
        elif content is not None:
            path.write_bytes(content)
        with pytest.raises(WeightsError, match=message) as refused:
            build_reward_model(config, pretrained_encoder=path)
        assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="for timm's encoders"):
        build_reward_model(dataclasses.replace(config, encoder="resnet18"), pretrained_encoder=path)


def without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


def test_weights_that_cannot_be_downloaded_are_one_line(tmp_path):
    """In a process of its own: the hub's client reads once whether it may go online."""
    code = """
from finpercep.errors import WeightsError
from finpercep.reward_model.build import build_reward_model
from finpercep.reward_model.config import RewardModelConfig
for encoder, decoder in (("tu-resnet50_clip", "unet"), ("tu-test_vit", "dpt"), ("resnet18", "unet")):
    try:
        build_reward_model(RewardModelConfig(encoder=encoder, decoder=decoder), pretrained_encoder=True)
    except WeightsError as error:
        print(error)
"""
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all("could not be downloaded; give a file of them or train from scratch" in line for line in lines)
