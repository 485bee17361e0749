"""diffusers pipelines as SR models: real pipeline classes with tiny networks, saved and loaded."""

from __future__ import annotations

import json
import shutil
from importlib import metadata

import diffusers
import huggingface_hub.constants
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DDPMScheduler,
    LDMSuperResolutionPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from data_synth.sr_models.pipelines import KINDS, load_pipeline
from data_synth.sr_models.protocol import Crop, Span, SRCall, SRModelError, check_output

CROP = Crop("photo", 0, 0, 64)
BLOCKS = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "block_out_channels": (8, 16)}
TEXT_WIDTH = 16


def _tokenizer(folder):
    """Characters alone, no merges."""
    words = [
        *"abcdefghijklmnopqrstuvwxyz,",
        *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz,"),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def _text(folder):
    tokenizer = _tokenizer(folder)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=1,
    )
    return {"tokenizer": tokenizer, "text_encoder": CLIPTextModel(config)}


def _vae(levels, scaling):
    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=scaling,
    )


def _unet(in_channels, **more):
    shape = {"cross_attention_dim": TEXT_WIDTH, "attention_head_dim": 4, "norm_num_groups": 4, "layers_per_block": 1}
    up = {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
    return UNet2DConditionModel(in_channels=in_channels, out_channels=4, **BLOCKS, **up, **shape, **more)


@pytest.fixture(scope="module")
@torch.no_grad()
def folders(tmp_path_factory):
    """One saved pipeline of each kind."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("pipelines")
    made = {
        "upscale": StableDiffusionUpscalePipeline(
            vae=_vae(3, 0.08333),
            unet=_unet(7, num_class_embeds=1000),
            low_res_scheduler=DDPMScheduler(),
            scheduler=DDIMScheduler(),
            **_text(root),
        ),
        "latent": LDMSuperResolutionPipeline(
            vqvae=VQModel(
                block_out_channels=(8, 8, 8),
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                latent_channels=3,
                norm_num_groups=4,
                num_vq_embeddings=16,
            ),
            unet=UNet2DModel(
                in_channels=6,
                out_channels=3,
                block_out_channels=(8, 8),
                down_block_types=("DownBlock2D",) * 2,
                up_block_types=("UpBlock2D",) * 2,
                layers_per_block=1,
                norm_num_groups=4,
            ),
            scheduler=DDIMScheduler(),
        ),
        "tile": StableDiffusionControlNetImg2ImgPipeline(
            vae=_vae(4, 0.18215),
            unet=_unet(4),
            controlnet=ControlNetModel(
                conditioning_embedding_out_channels=(4, 4, 4, 8),
                cross_attention_dim=TEXT_WIDTH,
                attention_head_dim=4,
                norm_num_groups=4,
                layers_per_block=1,
                **BLOCKS,
            ),
            scheduler=DDIMScheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **_text(root),
        ),
    }
    for parameter in made["tile"].controlnet.parameters():  # an untrained ControlNet is silent: its last layers start at zero
        parameter.add_(0.1 * torch.randn_like(parameter))
    for name, pipeline in made.items():
        pipeline.save_pretrained(root / name)
    made["tile"].controlnet.save_pretrained(root / "controlnet")
    return root


def _middle(model, **changes):
    """Every setting in the middle of its range, but few steps."""
    middle = {name: float(round((span.low + span.high) / 2, 2)) for name, span in model.settings.items()}
    return {**middle, "steps": 2.0, **changes}


@pytest.fixture
def lr(crop):
    """The temple, 16×16."""
    photo = torch.from_numpy(crop[:64, :64].copy()).permute(2, 0, 1)[None]
    return torch.nn.functional.avg_pool2d(photo, 4)


@pytest.mark.parametrize("kind", ["upscale", "latent", "tile"])
def test_a_pipeline_upscales_by_four_and_settings_and_seeds_decide_its_output(folders, lr, kind):
    model = load_pipeline(str(folders / kind), scale=4, device="cpu")
    assert (model.name, model.scale, model.family, model.covers("any")) == (kind, 4, "diffusion", True)
    batch = lr.repeat(3, 1, 1, 1)
    calls = [SRCall(1, _middle(model), CROP), SRCall(1, _middle(model, steps=4.0), CROP), SRCall(2, _middle(model), CROP)]
    out = check_output(model, batch, model(batch, calls))
    alone = model(lr, calls[:1])
    assert torch.equal(out[:1], alone.clamp(0, 1)), "an image's output must not depend on its batch"
    assert (out[0] - out[1]).abs().mean() > 1e-4, "steps"
    assert (out[0] - out[2]).abs().mean() > 1e-4, "seed"


@pytest.mark.parametrize(
    ("kind", "setting", "values"),
    [
        ("upscale", "guidance", (1.0, 9.0)),
        ("upscale", "noise_level", (0.0, 100.0)),
        ("latent", "eta", (0.0, 1.0)),
        ("tile", "strength", (0.5, 1.0)),
        ("tile", "control", (0.0, 1.0)),
        ("tile", "guidance", (1.0, 9.0)),
    ],
)
def test_every_setting_reaches_the_pipeline(folders, lr, kind, setting, values):
    model = load_pipeline(str(folders / kind), scale=4, device="cpu")
    outs = [model(lr, [SRCall(1, _middle(model, **{setting: value}), CROP)]) for value in values]
    assert (outs[0] - outs[1]).abs().max() > 1e-6


def test_other_sizes_are_padded_and_cropped_back(folders, lr):
    for kind in ("upscale", "latent", "tile"):
        model = load_pipeline(str(folders / kind), scale=4, device="cpu")
        odd = lr[..., :13, :15]
        out = check_output(model, odd, model(odd, [SRCall(3, _middle(model), CROP)]))
        assert out.shape == (1, 3, 52, 60)


def test_a_stable_diffusion_folder_and_a_controlnet_join_to_the_same_model(folders, lr):
    joined = load_pipeline(f"{folders / 'tile'}+{folders / 'controlnet'}", scale=4, device="cpu")
    whole = load_pipeline(str(folders / "tile"), scale=4, device="cpu", name="whole")
    assert (joined.name, whole.name) == ("tile+controlnet", "whole")
    call = [SRCall(1, _middle(whole), CROP)]
    assert torch.equal(joined(lr, call), whole(lr, call))
    assert joined.version != whole.version


def test_the_scale_of_a_tile_pipeline_is_free_and_that_of_an_upscaler_is_not(folders, lr):
    model = load_pipeline(str(folders / "tile"), scale=2, device="cpu")
    assert model(lr, [SRCall(1, _middle(model), CROP)]).shape == (1, 3, 32, 32)
    with pytest.raises(SRModelError, match="expected an x2 model, got StableDiffusionUpscalePipeline x4"):
        load_pipeline(str(folders / "upscale"), scale=2, device="cpu")


def test_ranges_can_be_given_and_must_be_known(folders):
    model = load_pipeline(str(folders / "latent"), scale=4, ranges={"steps": Span(2, 3, "integer")}, device="cpu")
    assert model.settings == {"steps": Span(2, 3, "integer"), "eta": Span(0, 1)}
    with pytest.raises(SRModelError, match="settings steps, eta, got guidance"):
        load_pipeline(str(folders / "latent"), scale=4, ranges={"guidance": Span(1, 2)}, device="cpu")


def test_the_version_follows_the_weights(folders, tmp_path):
    before = load_pipeline(str(folders / "latent"), scale=4, device="cpu")
    copy = tmp_path / "latent"
    shutil.copytree(folders / "latent", copy)
    (copy / "README.md").write_text("a note")
    assert load_pipeline(str(copy), scale=4, device="cpu").version == before.version
    assert before.version.endswith(f"+diffusers{metadata.version('diffusers')}")
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 0.01 for name, tensor in load_file(weights).items()}, weights)
    assert load_pipeline(str(tmp_path / "latent"), scale=4, device="cpu").version != before.version


def test_the_global_random_state_is_left_as_it_was(folders, lr):
    model = load_pipeline(str(folders / "latent"), scale=4, device="cpu")
    before = torch.get_rng_state()
    model(lr, [SRCall(1, _middle(model), CROP)])
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_no_sr_pipeline_is_refused(folders, tmp_path, monkeypatch):
    with pytest.raises(SRModelError, match=r"without model_index\.json"):
        load_pipeline(str(tmp_path), scale=4)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(SRModelError, match=r"expected a pipeline of class .*, got FluxPipeline"):
        load_pipeline(str(tmp_path), scale=4)
    (tmp_path / "model_index.json").write_text('{"_class_name": "LDMSuperResolutionPipeline"}')
    with pytest.raises(SRModelError, match="cannot be loaded as LDMSuperResolutionPipeline"):
        load_pipeline(str(tmp_path), scale=4)
    (tmp_path / "model_index.json").write_text("[]")
    with pytest.raises(SRModelError, match="expected a JSON object with _class_name"):
        load_pipeline(str(tmp_path), scale=4)
    with pytest.raises(SRModelError, match="expected a folder with a diffusers pipeline, found none"):
        load_pipeline(str(tmp_path / "absent"), scale=4)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        SRModelError, match=r"neither a folder here nor to be had from the hub.*hf download nobody/nothing --local-dir"
    ):
        load_pipeline("nobody/nothing", scale=4)


def test_every_kind_names_a_class_of_diffusers():
    assert all(hasattr(diffusers, kind.loader) for kind in KINDS.values())
