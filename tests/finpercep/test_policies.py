"""The contract of a policy, asked of every kind over real diffusers networks: against its scheduler, its pipeline and itself."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from finpercep.errors import ConfigError
from finpercep.reward import Rewards
from finpercep.rl.algorithm import Batch, Trainee
from finpercep.rl.refl import ReflConfig
from finpercep.sr.loading import load_policy
from finpercep.sr.noise_path import CLEAN, FlowMatching, VariancePreserving
from finpercep.sr.policy import denoising_loss, seeded_generators, weights_of
from finpercep.sr.settings import PolicySettings
from finpercep.sr.transition import Sampler
from tests.tiny_pipelines import PIPELINES

NAMES = tuple(PIPELINES)
DRAWING = tuple(name for name in NAMES if name != "one-step")
STOCHASTIC = {"upscaler", "ldm", "controlnet"}


@pytest.fixture
def build(published):
    def build(name, *, full=False, **settings):
        given = {"steps": 1 if name == "one-step" else 3, "lora_rank": 0 if full else 4, **settings}
        return load_policy(published[name], settings=PolicySettings(**given))

    return build


def lr_images(count=2, height=8, width=8, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def normal(x, seed=5):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def moved(policy, by=0.05):
    """Random trainable weights: fresh adapters change nothing."""
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.parameters():
        parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return policy


# -- shapes, seeds, sizes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_encode_and_decode_have_the_shapes_of_states_and_images(build, name):
    policy = build(name)
    lr = lr_images(2, 8, 16)
    condition = policy.condition(lr)
    clean = policy.encode(torch.rand(2, 3, 32, 64), condition)
    assert clean.shape == tuple(policy.state_shape(condition))
    images = policy.decode(clean, condition)
    assert images.shape == (2, 3, 32, 64) and images.min() >= 0 and images.max() <= 1
    assert policy.initial_state(condition, seeded_generators([0, 1])).shape == clean.shape


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_depends_on_its_own_seed_not_on_its_batch(build, name):
    policy = build(name)
    lr = lr_images(3)
    together = policy.sample(lr, seeded_generators([5, 6, 7]))
    alone = policy.sample(lr[1:2], seeded_generators([6]))
    assert torch.allclose(together[1:2], alone, atol=1e-5)
    same = torch.allclose(alone, policy.sample(lr[1:2], seeded_generators([8])), atol=1e-4)
    assert same == (name == "one-step") == (not policy.draws_start)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(7, 13), (5, 3)])
def test_any_lr_size_is_upscaled_by_four(build, name, size):
    out = build(name).sample(lr_images(1, *size), seeded_generators([0]))
    assert out.shape == (1, 3, 4 * size[0], 4 * size[1])
    assert out.isfinite().all()


# -- two routes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DRAWING)
@torch.no_grad()
def test_x0_the_noising_and_the_step_are_the_schedulers_own(build, name):
    policy = build(name, steps=4)
    if name in STOCHASTIC:
        policy = policy.with_sampler(Sampler(4, eta=0.7))
    lr = lr_images()
    condition = policy.condition(lr)
    clean = policy.encode(torch.rand(2, 3, 32, 32), condition)
    scheduler = policy.path.scheduler
    x = policy.initial_state(condition, seeded_generators([1, 2]))
    for index, timestep in enumerate(scheduler.timesteps):
        noise = policy.noise(condition, seeded_generators([3, 4]))
        output = policy.predict(x, timestep, condition)
        noised = policy.add_noise(clean, index, condition, seeded_generators([3, 4]))
        ours = policy.step(x, index, condition, seeded_generators([3, 4]))
        if name.startswith("flow"):
            expected_noised = scheduler.scale_noise(clean, timestep[None], noise)
            expected_clean = x - scheduler.sigmas[index] * output
            expected = scheduler.step(output, timestep, x).prev_sample
        elif name.startswith("residual"):
            expected_noised = scheduler.add_noise(clean, condition.latent, noise, timestep)
            expected_clean = output
            expected = scheduler.step(output, timestep, x, noise)
        else:
            expected_noised = scheduler.add_noise(clean, noise, timestep)
            step = scheduler.step(output, timestep, x, eta=0.7, variance_noise=noise)
            expected_clean, expected = step.pred_original_sample, step.prev_sample
        assert torch.allclose(noised, expected_noised, atol=1e-5)
        assert torch.allclose(policy.predict_clean(x, index, condition), expected_clean, rtol=1e-4, atol=1e-4)
        assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-4)
        x = ours


@pytest.mark.parametrize(("spacing", "offset"), [("trailing", 0), ("leading", 0), ("leading", 1), ("linspace", 0)])
def test_as_many_steps_as_asked_for_whatever_their_number(spacing, offset):
    path = VariancePreserving(DDIMScheduler(timestep_spacing=spacing, steps_offset=offset))
    for count in range(1, 1000):
        timesteps = path.timesteps(count)
        assert len(timesteps) == count and timesteps[-1] >= 0 and timesteps[0] < 1000 and (timesteps.diff() < 0).all()
    assert len(path.levels(61)) == 62 and path.levels(61)[-1] is CLEAN
    for count in (0, 1001, *([1000] if offset else [])):
        with pytest.raises(ConfigError, match=f"num_steps must .* got {count}"):
            path.levels(count)


def fixed(shape):
    """One image's noise as `seeded_generators([5])` gives it."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def pipeline_output(name, folder, lr, policy, guidance):
    """What diffusers' own pipeline makes of one LR image, from the same noise."""
    upsampled = policy.upsampled(lr)
    words = {"prompt": policy.options.prompt, "negative_prompt": policy.options.negative_prompt}
    common = {"num_inference_steps": policy.num_steps, "output_type": "pt"}
    generator = torch.Generator().manual_seed(5)
    if name == "upscaler":
        pipeline = diffusers.StableDiffusionUpscalePipeline.from_pretrained(folder)
        latents = fixed((1, 4, *lr.shape[-2:]))
        own = torch.Generator().manual_seed(0)  # of the LR image's noise
        out = pipeline(image=lr, noise_level=20, guidance_scale=guidance, latents=latents, generator=own, **words, **common)
    elif name == "ldm":
        pipeline = diffusers.LDMSuperResolutionPipeline.from_pretrained(folder)
        out = pipeline(2 * lr - 1, eta=0.0, generator=generator, **common)
    elif name == "controlnet":
        pipeline = diffusers.StableDiffusionControlNetImg2ImgPipeline.from_pretrained(folder)
        noise = fixed((1, 4, lr.shape[-2] // 2, lr.shape[-1] // 2))
        pipeline.scheduler.set_timesteps(policy.num_steps)
        latents = pipeline.vae.encode(2 * upsampled - 1).latent_dist.mode() * pipeline.vae.config.scaling_factor
        start = pipeline.scheduler.add_noise(latents, noise, pipeline.scheduler.timesteps[:1])
        images = {"image": upsampled, "control_image": upsampled, "strength": 1.0, "controlnet_conditioning_scale": 1.0}
        out = pipeline(guidance_scale=guidance, latents=start, **images, **words, **common)
    else:
        pipeline = diffusers.StableDiffusion3ControlNetPipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
        latents = fixed((1, 4, lr.shape[-2] // 2, lr.shape[-1] // 2))
        height, width = upsampled.shape[-2:]
        control = {"control_image": 2 * upsampled - 1, "height": height, "width": width}
        out = pipeline(guidance_scale=guidance, latents=latents, **control, **words, **common)
    return out.images


@pytest.mark.parametrize(
    ("name", "guidance"),
    [
        ("upscaler", 1),
        ("upscaler", 3),
        ("ldm", 1),
        ("controlnet", 1),
        ("controlnet", 3),
        ("flow-controlnet", 1),
        ("flow-controlnet", 3),
    ],
)
@torch.no_grad()
def test_a_deterministic_sample_is_the_pipelines(build, published, name, guidance):
    policy = build(name, guidance=float(guidance))
    lr = lr_images(1)
    theirs = pipeline_output(name, published[name].partition(":")[2], lr, policy, guidance)
    ours = policy.sample(lr, seeded_generators([5]))
    assert torch.allclose(ours, theirs, atol=2e-4)
    assert theirs.std() > 1e-3


@torch.no_grad()
def test_one_step_is_the_formula(build, published):
    """x̂0 = (z − s·ε(z, t_max)) / a, decoded; from plain diffusers parts."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(published["one-step"].partition(":")[2])
    policy, lr = build("one-step"), lr_images(1)
    words = pipeline.encode_prompt(policy.options.prompt, "cpu", 1, False)[0]
    scale = pipeline.vae.config.scaling_factor
    z = pipeline.vae.encode(2 * policy.upsampled(lr) - 1).latent_dist.mode() * scale
    alpha = pipeline.scheduler.alphas_cumprod[999]
    noise = pipeline.unet(z, torch.tensor(999), encoder_hidden_states=words).sample
    expected = pipeline.vae.decode((z - (1 - alpha).sqrt() * noise) / alpha.sqrt() / scale).sample
    assert torch.allclose(policy.sample(lr, seeded_generators([0])), (expected / 2 + 0.5).clamp(0, 1), atol=1e-4)
    with pytest.raises(ConfigError, match="sampled in 1 step"):
        policy.with_sampler(Sampler(2))


# -- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_denoising_errors_are_what_they_say(build, name):
    policy, lr = build(name, **({} if name in ("ldm",) or name.startswith("residual") else {"guidance": 4.0})), lr_images()
    condition = policy.condition(lr)
    clean = policy.encode(torch.rand(2, 3, 32, 32), condition)
    errors = policy.denoising_errors(clean, condition, seeded_generators([1, 2]))
    unguided = build(name)
    plain = unguided.condition(lr)
    if name == "one-step":
        expected = ((unguided.predict_clean(plain.latent, 0, plain) - clean) ** 2).mean(dim=(1, 2, 3))
    else:
        generators = seeded_generators([1, 2])
        noise = torch.cat([torch.randn((1, *clean.shape[1:]), generator=generator) for generator in generators])
        level = policy.path.draw(generators)
        x = level.signal * clean + level.noise * noise
        if name.startswith("residual"):
            x = x + (1 - level.signal) * plain.latent
        target = {
            "epsilon": noise,
            "v_prediction": level.signal * noise - level.noise * clean,
            "sample": clean,
            "flow": noise - clean,
        }["flow" if name.startswith("flow") else policy.path.scheduler.config.prediction_type]
        expected = ((unguided.predict(x, level.timestep, plain) - target) ** 2).mean(dim=(1, 2, 3))
    assert torch.allclose(errors, expected, rtol=1e-4)
    assert torch.equal(errors[1:], policy.denoising_errors(clean[1:], policy.condition(lr[1:]), seeded_generators([2]))) or (
        torch.allclose(
            errors[1:], policy.denoising_errors(clean[1:], policy.condition(lr[1:]), seeded_generators([2])), rtol=1e-4
        )
    )


def image_gradients(policy, lr):
    condition = policy.condition(lr)
    index = policy.num_steps - 1
    x = policy.initial_state(condition, seeded_generators([1, 2]))
    policy.decode(policy.predict_clean(x, index, condition), condition).square().mean().backward()
    return [parameter.grad for parameter in policy.parameters()]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_trained_weights_alone_and_checkpointing_changes_none(build, name, full):
    policy, frugal = (moved(build(name, full=full, gradient_checkpointing=frugal)) for frugal in (False, True))
    grads, same = (image_gradients(each, lr_images()) for each in (policy, frugal))
    reached = [grad for grad in grads if grad is not None]
    assert reached and any(grad.abs().sum() > 0 for grad in reached)
    for grad, other in zip(grads, same, strict=True):
        assert (grad is None) == (other is None)
        assert grad is None or torch.allclose(grad, other, rtol=1e-3, atol=1e-7)
    trained = {id(parameter) for parameter in policy.parameters()}
    frozen = [p for network in policy.networks().values() for p in network.parameters() if id(p) not in trained]
    assert (frozen or name == "residual-pixel") and all(p.grad is None and not p.requires_grad for p in frozen)
    assert full or all("lora_" in key for key in policy.state_dict())


@pytest.mark.parametrize("role", ["denoiser", "controlnet", "decoder"])
@pytest.mark.parametrize("rank", [0, 2])
def test_each_network_can_be_trained_alone(build, role, rank):
    policy = moved(build("controlnet", trained=(role,), lora_rank=rank))
    network = {"denoiser": "unet", "controlnet": "controlnet", "decoder": "vae"}[role]
    assert {name.split(".")[0] for name in policy.state_dict()} == {network}
    assert role != "decoder" or not any("encoder" in name for name in policy.state_dict())
    assert any(grad is not None and grad.abs().sum() > 0 for grad in image_gradients(policy, lr_images()))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_reference_stays_where_the_policy_was(build, name, full):
    policy = moved(build(name, full=full))
    lr = lr_images(1)
    with torch.no_grad():
        before = policy.sample(lr, seeded_generators([0]))
        reference = policy.frozen_copy()
        moved(policy, 0.1)
        assert torch.allclose(reference.sample(lr, seeded_generators([0])), before, atol=1e-5)
        after = policy.sample(lr, seeded_generators([0]))
        assert not torch.allclose(after, before, atol=1e-4)
        with weights_of(policy, [p + 0.1 for p in policy.parameters()]):
            assert torch.allclose(reference.sample(lr, seeded_generators([0])), before, atol=1e-5)
        assert torch.equal(policy.sample(lr, seeded_generators([0])), after)
    assert not list(reference.parameters())
    condition = policy.condition(lr)
    x = policy.initial_state(condition, seeded_generators([0]))
    assert not reference.predict_clean(x, 0, condition).requires_grad
    shared = {id(p) for n in reference.networks().values() for p in n.parameters()} & {id(p) for p in policy.parameters()}
    assert not (full and shared)


@torch.no_grad()
def test_a_fresh_adapters_reference_is_the_published_model(build):
    lr = lr_images(1)
    policy = build("controlnet")
    reference = policy.frozen_copy()
    moved(policy)
    published = build("controlnet", full=True)
    assert torch.equal(reference.sample(lr, seeded_generators([0])), published.sample(lr, seeded_generators([0])))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_state_goes_into_another_policy_and_foreign_ones_do_not(build, name, full):
    policy, other = moved(build(name, full=full)), build(name, full=full)
    other.load_state_dict(policy.state_dict())
    lr = lr_images(1)
    assert torch.equal(policy.sample(lr, seeded_generators([0])), other.sample(lr, seeded_generators([0])))
    with pytest.raises(ConfigError, match="of other names"):
        other.load_state_dict({"nothing": torch.zeros(1)})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("full", [False, True])
def test_bfloat16_is_finite_close_and_trains_float32_weights(build, name, full):
    policy, exact = (moved(build(name, full=full, precision=precision)) for precision in ("bfloat16", "float32"))
    lr = lr_images()
    condition = policy.condition(lr)
    grads = image_gradients(policy, lr)
    assert all(grad is None or (grad.isfinite().all() and grad.dtype == torch.float32) for grad in grads)
    x = policy.initial_state(condition, seeded_generators([1, 2]))
    ours, theirs = (p.predict(x, p.levels[0].timestep, p.condition(lr)) for p in (policy, exact))
    assert ours.dtype == torch.float32
    assert (ours - theirs).norm() < 0.1 * theirs.norm()
    halved = any(p.dtype == torch.bfloat16 for p in policy.denoiser.parameters())
    assert halved == (not full and name not in ("ldm", "residual-latent", "residual-pixel"))


# -- training ---------------------------------------------------------------------------------------------------------


class Brightness:
    """A differentiable `RewardFn`."""

    def __call__(self, images):
        mean = images.mean(dim=(1, 2, 3))
        return Rewards(mean, mean, torch.zeros_like(mean), torch.zeros_like(mean))


class Descent:
    """`Optimise` by plain gradient steps."""

    def __init__(self, policy):
        self.optimiser = torch.optim.SGD(list(policy.parameters()), lr=0.1)

    def backward(self, loss):
        loss.backward()

    def step(self):
        self.optimiser.step()
        self.optimiser.zero_grad()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_refl_update_changes_trained_weights_and_nothing_else(build, name, full):
    policy = build(name, full=full)
    before = {f"{n}.{k}": p.detach().clone() for n, net in policy.networks().items() for k, p in net.named_parameters()}
    hr = torch.ones(2, 3, 32, 32)
    trainee = Trainee(policy, policy.frozen_copy(), lambda images: [images])
    update = ReflConfig().build(trainee).update(Batch(hr, lr_images()), Brightness(), np.random.default_rng(0), Descent(policy))
    assert all(np.isfinite(value) for value in update.losses.values())
    after = {f"{n}.{k}": p for n, net in policy.networks().items() for k, p in net.named_parameters()}
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed and changed <= set(policy.state_dict())


# -- words ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_captions_belong_to_their_images(published):
    said = []

    def captions(lr):
        said.append(len(lr))
        return ["a cat" if image.mean() > 0.5 else "" for image in lr]

    policy = load_policy(published["controlnet"], captions=captions)
    lr = torch.stack([torch.full((3, 8, 8), 0.9), torch.full((3, 8, 8), 0.1)])
    condition = policy.condition(lr)
    asked = policy.prompts([f"a cat, {policy.options.prompt}", policy.options.prompt], lr.device)
    assert said == [2] and torch.equal(condition.text.hidden, asked.hidden) and condition.negative is None
    wordy = load_policy(published["controlnet"], settings=PolicySettings(prompt="night", steps=2))
    plain = load_policy(published["controlnet"], settings=PolicySettings(steps=2))
    out, other = (p.sample(lr, seeded_generators([0, 1])) for p in (wordy, plain))
    assert not torch.allclose(out, other, atol=1e-6)
    with pytest.raises(KeyError, match="let go"):
        plain.prompts(["new words"], lr.device)


def test_settings_that_cannot_be(published):
    for name, settings, message in (
        ("ldm", {"scale": 2}, "scale must be 4, got 2"),
        ("controlnet", {"lora_targets": ("nothing",)}, "has no layers named nothing"),
        ("controlnet", {"noise": "dance"}, "flow matching"),
        ("ldm", {"trained": ("controlnet",)}, "none of the networks"),
        ("residual-pixel", {"steps": 16}, r"must lie in 1…15, got 16"),
        ("controlnet", {"precision": "int8"}, "precision must be one of"),
        ("controlnet", {"guidance": 0.5}, "guidance must be finite and at least 1"),
        ("controlnet", {"tile": 8, "overlap": 8}, "smaller than the tile"),
        ("controlnet", {"trained": ("encoder",)}, "trained must name"),
        ("controlnet", {"lora_rank": -1}, "lora_rank must be finite"),
        ("controlnet", {"colour": "sepia"}, "colour must be one of"),
        ("controlnet", {"scale": 0}, "scale must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_policy(published[name], settings=PolicySettings(**settings))


def test_flow_policies_take_the_noise_forms_of_flow_matching(build):
    policy = build("flow-tokens", steps=4, noise="flow-grpo", eta=0.7)
    assert isinstance(policy.path, FlowMatching)
    assert policy.sample(lr_images(1), seeded_generators([0])).isfinite().all()


def test_the_lr_images_noise_is_the_pipelines(build):
    """`latent-unet` tells its UNet a noise level; the LR image has just that much."""
    policy, lr = build("upscaler", lr_noise_level=100), lr_images()
    noise = torch.randn((1, 3, 8, 8), generator=torch.Generator().manual_seed(0)).expand(2, -1, -1, -1)
    expected = DDPMScheduler().add_noise(2 * lr - 1, noise, torch.tensor([100]))
    assert torch.allclose(policy.condition(lr).guide, expected, atol=1e-6)


def test_the_pretraining_loss_is_the_mean_of_the_errors(build):
    policy, lr, hr = build("ldm"), lr_images(), torch.rand(2, 3, 32, 32)
    condition = policy.condition(lr)
    errors = policy.denoising_errors(policy.encode(hr, condition), condition, seeded_generators([1, 2]))
    assert torch.allclose(denoising_loss(policy, hr, condition, seeded_generators([1, 2])), errors.mean())
