"""Saved policies: read back by plain diffusers alone, by `load_policy`, and not when they are something else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
import huggingface_hub.constants
import pytest
import torch
from diffusers.utils import logging as diffusers_logging

from data_synth.schema.errors import SchemaError
from finpercep.cli.sr_models import load_networks, policy_digest
from finpercep.errors import ConfigError, WeightsError
from finpercep.sr.loading import load_policy, packaged_policy_folder, policy_class
from finpercep.sr.lora import adapter_state, set_adapter_state
from finpercep.sr.policy import seeded_generators, weights_of
from finpercep.sr.policy_folder import LORA_NAME
from finpercep.sr.settings import PolicySettings
from tests.tiny_pipelines import PIPELINES

NAMES = tuple(PIPELINES)


@pytest.fixture(autouse=True)
def quiet():
    diffusers_logging.disable_progress_bar()


@torch.no_grad()
def trained(published, name, **settings):
    """A policy whose trainable weights are no longer the published ones."""
    given = {"steps": 1 if name == "one-step" else 3, "lora_rank": 4, "lora_alpha": 6.0, **settings}
    policy = load_policy(published[name], settings=PolicySettings(**given))
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return policy


def lr_image(seed=0):
    return torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def sample(policy):
    return policy.sample(lr_image(), seeded_generators([3]))


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_is_loaded_with_the_same_output(published, tmp_path, name, rank):
    policy = trained(published, name, lora_rank=rank, prompt="a field")
    policy.save_pretrained(tmp_path / "saved")
    loaded = load_policy(str(tmp_path / "saved"))
    assert loaded.options == policy.options and loaded.sampler == policy.sampler
    assert torch.allclose(sample(loaded), sample(policy), atol=1e-5)
    assert [n for n, _ in loaded.named_parameters()] == [n for n, _ in policy.named_parameters()]
    loaded.save_pretrained(tmp_path / "again")
    assert torch.allclose(sample(load_policy(str(tmp_path / "again"))), sample(policy), atol=1e-5)


def test_the_average_of_the_weights_can_be_saved_and_so_can_the_reference(published, tmp_path):
    policy = trained(published, "controlnet")
    reference, before = policy.frozen_copy(), sample(policy)
    zeros = [torch.zeros_like(p) for p in policy.parameters()]
    with weights_of(policy, zeros):
        policy.save_pretrained(tmp_path / "zeros")
        reference.save_pretrained(tmp_path / "reference")
    base = load_policy(published["controlnet"], settings=PolicySettings(steps=3))
    assert torch.allclose(sample(load_policy(str(tmp_path / "zeros"))), sample(base), atol=1e-5)
    assert torch.allclose(sample(load_policy(str(tmp_path / "reference"))), before, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("rank", [0, 4])
def test_plain_diffusers_loads_an_upscaler(published, tmp_path, rank):
    """`load_lora_weights`, or a whole UNet; alpha is not the rank here."""
    policy = trained(published, "upscaler", lora_rank=rank)
    policy.save_pretrained(tmp_path)
    base = published["upscaler"].partition(":")[2]
    if rank:
        pipeline = diffusers.StableDiffusionUpscalePipeline.from_pretrained(base)
        pipeline.load_lora_weights(tmp_path)
    else:
        unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "unet")
        pipeline = diffusers.StableDiffusionUpscalePipeline.from_pretrained(base, unet=unet)
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3))
    theirs = pipeline(
        prompt=policy.options.prompt,
        image=lr_image(),
        noise_level=20,
        guidance_scale=1,
        num_inference_steps=3,
        latents=latents,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    assert torch.allclose(sample(policy), theirs, atol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("rank", [0, 4])
def test_plain_diffusers_loads_a_controlnet_policy_with_its_decoder(published, tmp_path, rank):
    policy = trained(published, "controlnet", lora_rank=rank, trained=("denoiser", "controlnet", "decoder"))
    policy.save_pretrained(tmp_path)
    base = published["controlnet"].partition(":")[2]
    parts = {"unet": diffusers.UNet2DConditionModel, "controlnet": diffusers.ControlNetModel, "vae": diffusers.AutoencoderKL}
    if rank:
        pipeline = diffusers.StableDiffusionControlNetImg2ImgPipeline.from_pretrained(base)
        pipeline.load_lora_weights(tmp_path)
        pipeline.controlnet.load_lora_adapter(tmp_path / "controlnet_lora", prefix=None, weight_name=LORA_NAME)
        pipeline.vae.load_lora_adapter(tmp_path / "vae_lora", prefix=None, weight_name=LORA_NAME)
    else:
        networks = {name: loader.from_pretrained(tmp_path / name) for name, loader in parts.items()}
        pipeline = diffusers.StableDiffusionControlNetImg2ImgPipeline.from_pretrained(base, **networks)
    upsampled = policy.upsampled(lr_image())
    latents = pipeline.vae.encode(2 * upsampled - 1).latent_dist.mode() * pipeline.vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    pipeline.scheduler.set_timesteps(3)
    theirs = pipeline(
        prompt=policy.options.prompt,
        image=upsampled,
        control_image=upsampled,
        strength=1.0,
        controlnet_conditioning_scale=1.0,
        guidance_scale=1,
        num_inference_steps=3,
        latents=pipeline.scheduler.add_noise(latents, noise, pipeline.scheduler.timesteps[:1]),
        output_type="pt",
    ).images
    assert torch.allclose(sample(policy), theirs, atol=2e-4)


@torch.no_grad()
def test_plain_diffusers_loads_a_flow_policys_adapters(published, tmp_path):
    policy = trained(published, "flow-controlnet")
    policy.save_pretrained(tmp_path)
    base = published["flow-controlnet"].partition(":")[2]
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = diffusers.StableDiffusion3ControlNetPipeline.from_pretrained(base, **absent)
    pipeline.load_lora_weights(tmp_path)
    pipeline.controlnet.load_lora_adapter(tmp_path / "controlnet_lora", prefix=None, weight_name=LORA_NAME)
    theirs = pipeline(
        prompt=policy.options.prompt,
        control_image=2 * policy.upsampled(lr_image()) - 1,
        height=32,
        width=32,
        guidance_scale=1,
        num_inference_steps=3,
        latents=torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(3)),
        output_type="pt",
    ).images
    assert torch.allclose(sample(policy), theirs, atol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("rank", [0, 4])
def test_plain_diffusers_loads_an_ldm_policy(published, tmp_path, rank):
    """A UNet whose class takes no adapters is saved whole, with theirs merged in."""
    policy = trained(published, "ldm", lora_rank=rank)
    policy.save_pretrained(tmp_path)
    pipeline = diffusers.LDMSuperResolutionPipeline.from_pretrained(
        published["ldm"].partition(":")[2], unet=diffusers.UNet2DModel.from_pretrained(tmp_path / "unet")
    )
    generator = torch.Generator().manual_seed(3)
    theirs = pipeline(2 * lr_image() - 1, num_inference_steps=3, generator=generator, output_type="pt").images
    assert torch.allclose(sample(policy), theirs, atol=2e-4)


def test_what_the_caller_says_stands_over_what_the_folder_records(published, tmp_path):
    trained(published, "upscaler", guidance=3.0).save_pretrained(tmp_path)
    loaded = load_policy(str(tmp_path), settings=PolicySettings(steps=2, colour="wavelet"))
    assert (loaded.num_steps, loaded.options.guidance, loaded.delivery.colour) == (2, 3.0, "wavelet")
    with pytest.raises(ConfigError, match="lora_rank is 4 in this folder, got 2; leave it out"):
        load_policy(str(tmp_path), settings=PolicySettings(lora_rank=2))


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        {"lora_rank": 4},
        {"trained": ("denoiser",)},
        {"trained": ("denoiser",), "lora_rank": 4, "precision": "bfloat16"},
        {"trained": ("controlnet", "decoder")},
    ],
    ids=lambda settings: ",".join(settings),
)
def test_networks_trained_in_full_outlive_runs_with_other_settings(published, tmp_path, settings):
    """Each folder is loaded and saved again; none of the networks may fall back to its published weights."""
    trained(published, "controlnet", lora_rank=0).save_pretrained(tmp_path / "first")
    second = load_policy(str(tmp_path / "first"), settings=PolicySettings(**settings))
    for parameter in second.parameters():
        parameter.add_(0.05)
    second.save_pretrained(tmp_path / "second")
    third = load_policy(str(tmp_path / "second"))
    assert torch.allclose(sample(third), sample(second), atol=1e-5)
    third.save_pretrained(tmp_path / "third")
    assert torch.allclose(sample(load_policy(str(tmp_path / "third"))), sample(second), atol=1e-5)
    first, third = (
        load_policy(str(tmp_path / folder), settings=PolicySettings(precision="float32")) for folder in ("first", "third")
    )
    for role, name in (("denoiser", "unet"), ("controlnet", "controlnet")):
        if role not in second.options.trained:  # to the last bit
            before, after = (policy.networks()[name].state_dict() for policy in (first, third))
            assert all(torch.equal(before[key], after[key]) for key in before)


def test_base_and_controlnet_join_to_the_same_policy(published, tmp_path):
    whole = Path(published["controlnet"].partition(":")[2])
    joined = load_policy(f"controlnet:{whole}+{whole / 'controlnet'}", settings=PolicySettings(steps=3))
    assert torch.equal(sample(joined), sample(load_policy(published["controlnet"], settings=PolicySettings(steps=3))))
    joined.save_pretrained(tmp_path)
    assert torch.equal(sample(load_policy(str(tmp_path))), sample(joined))


def test_what_is_not_there_or_something_else_is_refused(published, tmp_path, monkeypatch):
    folder = published["ldm"].partition(":")[2]
    for name, message in (
        ("nothing", "expected tiny, tiny@00300, a folder that finetune or train-sr wrote, or KIND:SOURCE"),
        (folder, "is a diffusers pipeline: name its kind too"),
        (f"controlnet:{folder}", "expected a StableDiffusionControlNet pipeline, or BASE"),
        (f"one-step:{folder}", "expected a Stable Diffusion pipeline, got LDM"),
        (f"flow:{folder}", "expected a Stable Diffusion 3 pipeline, got LDM"),
        (f"latent-unet:{published['one-step'].partition(':')[2]}", "expected StableDiffusionUpscalePipeline or LDM"),
        (f"residual-shift:{tmp_path}", "expected a folder with unet/ and scheduler/"),
        (f"latent-unet:{tmp_path}", "found no model_index.json"),
        (f"latent-unet:{tmp_path / 'absent'}", "a hub id OWNER/NAME, found neither"),
    ):
        with pytest.raises(WeightsError, match=message):
            load_policy(name)
    (tmp_path / "model_index.json").write_text("[]")
    with pytest.raises(WeightsError, match="expected a JSON object with _class_name"):
        load_policy(f"latent-unet:{tmp_path}")
    (tmp_path / "model_index.json").write_text('{"_class_name": "LDMSuperResolutionPipeline"}')
    with pytest.raises(WeightsError, match="cannot be loaded as LDMSuperResolutionPipeline"):
        load_policy(f"latent-unet:{tmp_path}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"neither a folder here nor to be had from the hub.*hf download nobody/none") as info:
        load_policy("controlnet:nobody/none+nobody/other")
    assert "\n" not in str(info.value)


def test_a_record_or_adapter_that_is_not_ours_is_refused(published, tmp_path):
    policy = trained(published, "upscaler")
    policy.save_pretrained(tmp_path)
    record = json.loads((tmp_path / "policy.json").read_text())
    for change, error, message in (
        ({"version": 9}, SchemaError, "version"),
        ({"settings": {"sharpness": 1}}, SchemaError, "sharpness"),
        ({"kind": "magic"}, WeightsError, "policy kind must be one of"),
    ):
        (tmp_path / "policy.json").write_text(json.dumps({**record, **change}))
        with pytest.raises(error, match=message):
            load_policy(str(tmp_path))
    (tmp_path / "policy.json").write_text(json.dumps(record))
    (tmp_path / "pytorch_lora_weights.safetensors").unlink()
    with pytest.raises(WeightsError, match="adapter's weights cannot be read"):
        load_policy(str(tmp_path))
    other = trained(published, "upscaler", lora_rank=2)
    with pytest.raises(WeightsError, match=r"here: expected LoRA weights .* got another adapter's"):
        set_adapter_state(policy.denoiser, adapter_state(other.denoiser), "here")
    with pytest.raises(WeightsError, match="kind must be one of"):
        policy_class("magic")


def test_tiny_takes_some_choices_and_says_which_it_does_not():
    policy = load_policy("tiny", settings=PolicySettings(steps=2, eta=0.0, tile=32, colour="adain", precision="bfloat16"))
    assert (policy.num_steps, policy.sampler.eta, policy.delivery.tile, policy.autocast) == (2, 0.0, 32, True)
    for settings, message in (
        ({"guidance": 2.0}, "policy tiny has guidance 1.0 and no other, got 2.0"),
        ({"lora_rank": 4}, "policy tiny has lora_rank 0"),
        ({"scale": 2}, "policy tiny has scale 4"),
        ({"precision": "float16"}, "float32 or bfloat16"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_policy("tiny", settings=PolicySettings(**settings))
    with pytest.raises(ConfigError, match="takes no captions"):
        load_policy("tiny", captions=lambda lr: [""] * len(lr))


def test_the_digest_follows_choices_adapters_and_published_weights(published, tmp_path):
    policy = trained(published, "upscaler")
    policy.save_pretrained(tmp_path / "a")
    before = policy_digest(tmp_path / "a")
    (tmp_path / "a" / "README.md").write_text("a note")
    assert policy_digest(str(tmp_path / "a")) == before
    trained(published, "upscaler", guidance=2.0).save_pretrained(tmp_path / "b")
    assert policy_digest(tmp_path / "b") != before
    base = Path(published["ldm"].partition(":")[2])
    shutil.copytree(base, tmp_path / "base")
    assert policy_digest(f"latent-unet:{tmp_path / 'base'}") == policy_digest(published["ldm"])
    config = tmp_path / "base" / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"beta_end": 0.012', '"beta_end": 0.013'))
    assert policy_digest(f"latent-unet:{tmp_path / 'base'}") != policy_digest(published["ldm"])
    assert policy_digest(packaged_policy_folder()) == policy_digest("tiny") != policy_digest("tiny@00300")


def test_the_packaged_policies_have_names():
    early = load_policy("tiny@00300").unet.state_dict()
    finished = load_policy("tiny").unet.state_dict()
    assert not torch.equal(early["conv_in.weight"], finished["conv_in.weight"])
    with pytest.raises(WeightsError, match="expected tiny, tiny@00300, a folder"):
        load_policy("tiny@00301")


def test_any_policy_that_finetune_wrote_makes_sr_images_for_a_data_set(published, tmp_path):
    trained(published, "upscaler").save_pretrained(tmp_path / "mine")
    networks = load_networks([f"policy:{tmp_path / 'mine'}"], scale=4, perturb=False)
    (model,) = networks.models.values()
    assert model.name == "mine" and model.version == policy_digest(tmp_path / "mine")
