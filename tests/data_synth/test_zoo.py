"""The zoo: networks, losses against closed forms, exact resume, and the folder on disk."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F
from typer.testing import CliRunner

from data_synth.degradations import DegradationConfig, degrade, sample_degradation
from data_synth.photos import sample_photos
from data_synth.schema.errors import SchemaError
from data_synth.sr_models.protocol import Crop, SRCall, check_output
from data_synth.zoo import losses
from data_synth.zoo.errors import ZooError
from data_synth.zoo.members import MEMBERS, Member, Objective, choose_members
from data_synth.zoo.model import load_zoo
from data_synth.zoo.networks import (
    BODIES,
    SKIPS,
    UPSAMPLERS,
    GeneratorConfig,
    PatchDiscriminator,
    RandomFeatures,
    build_generator,
    count_parameters,
    seeded_noise,
)
from data_synth.zoo.preview import contact_sheet
from data_synth.zoo.store import StoredNetwork, read_index, write_network
from data_synth.zoo.train import MemberTrainer, ZooTrainConfig, draw_batch, learning_rate, train_member
from finpercep.cli.train_zoo import parse_snapshots, train_zoo
from finpercep.errors import ConfigError

PACKAGED = Path(__file__).parents[2] / "finpercep" / "weights" / "sr-zoo"
SMALL = GeneratorConfig(width=8, blocks=1, tail=4)
GAN = Member(
    "gan",
    "gan",
    dataclasses.replace(SMALL, upsampler="nearest", refine=1, noise=1),
    Objective(l1=1.0, texture=0.1, adversarial=0.1, adversarial_loss="hinge", warmup=0.25, discriminator_width=8),
)
CONFIG = ZooTrainConfig(steps=8, batch_size=2, crop=32, snapshots=(0.25, 1.0), save_every=3, autocast=False)


def draw_pair(rng):
    photo = _photo()
    top, left = (int(rng.integers(side - CONFIG.crop)) for side in photo.shape[:2])
    hr = np.ascontiguousarray(photo[top : top + CONFIG.crop, left : left + CONFIG.crop])
    lr = degrade(hr, sample_degradation(rng, DegradationConfig.light()))
    return torch.from_numpy(hr).permute(2, 0, 1), torch.from_numpy(lr).permute(2, 0, 1)


def _photo():
    if not hasattr(_photo, "pixels"):
        _photo.pixels = sample_photos()[1].read()[:128, :160].astype(np.float32) / 255
    return _photo.pixels


def calls(count):
    return [SRCall(0, {}, Crop("photo", 0, 0, 64))] * count


def train(out, member=GAN, config=CONFIG):
    return list(train_member(member, draw_pair, config, out))


# -- networks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "upsampler", "skip", "scale"),
    list(itertools.product(BODIES, UPSAMPLERS, SKIPS, (2, 4))),
    ids=lambda value: str(value),
)
def test_generators_enlarge_by_their_scale_and_train(body, upsampler, skip, scale):
    generator = build_generator(dataclasses.replace(SMALL, body=body, upsampler=upsampler, skip=skip, scale=scale))
    sr = generator(torch.rand(2, 3, 9, 12))
    assert sr.shape == (2, 3, 9 * scale, 12 * scale) and sr.dtype == torch.float32
    sr.square().mean().backward()
    gradients = [parameter.grad for parameter in generator.parameters()]
    assert all(g is not None and torch.isfinite(g).all() and g.abs().sum() > 0 for g in gradients)


def test_without_weights_a_skip_is_bicubic_and_its_absence_grey():
    lr = torch.rand(1, 3, 8, 8)
    for skip, expected in (
        ("bicubic", F.interpolate(lr, scale_factor=4, mode="bicubic", align_corners=False)),
        ("none", torch.full((1, 3, 32, 32), 0.5)),
    ):
        generator = build_generator(dataclasses.replace(SMALL, skip=skip))
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.zero_()
        torch.testing.assert_close(generator(lr), expected)


def test_transposed_convolutions_of_kernel_three_overlap_unevenly():
    """Odena et al. (2016): on a constant input with equal weights, output pixels are covered 1, 2 or 4 times."""
    generator = build_generator(dataclasses.replace(SMALL, upsampler="transposed", scale=2))
    conv = generator.doublings[0].conv
    with torch.no_grad():
        conv.weight.fill_(1.0)
        conv.bias.zero_()
    inner = conv(torch.ones(1, SMALL.width, 6, 6))[0, 0, 2:-2, 2:-2] / SMALL.width
    torch.testing.assert_close(inner[:2, :2], torch.tensor([[1.0, 2.0], [2.0, 4.0]]))


def test_the_first_weights_depend_on_the_seed_alone_and_leave_the_global_state():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = build_generator(SMALL, seed=1)
    assert torch.equal(torch.rand(3), expected)
    torch.rand(100)
    same, other = build_generator(SMALL, seed=1), build_generator(SMALL, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.head.weight, other.head.weight)


def test_members_are_small_and_cover_the_kinds():
    for member in MEMBERS:
        assert 90_000 <= count_parameters(build_generator(member.generator)) <= 500_000, member.name
    assert {member.family for member in MEMBERS} == {"regression", "perceptual", "gan"}
    assert len({member.name for member in MEMBERS}) == len(MEMBERS) >= 6


def test_members_are_chosen_by_name_and_scale():
    chosen = choose_members(["gan-hinge", "l1"], 2)
    assert [member.name for member in chosen] == ["l1", "gan-hinge"]
    assert {member.generator.scale for member in chosen} == {2}
    assert choose_members((), 4) == MEMBERS
    with pytest.raises(ZooError, match="no zoo member is called l3; there are l1"):
        choose_members(["l3"], 4)
    with pytest.raises(ZooError, match=r"scale must be one of \(2, 4\), got 3"):
        choose_members((), 3)


@pytest.mark.parametrize(
    "wrong",
    [{"width": 7}, {"blocks": 0}, {"noise": -1}, {"noise": 1}, {"body": "unet"}, {"upsampler": "bilinear"}, {"skip": "x"}],
)
def test_impossible_architectures_are_refused(wrong):
    with pytest.raises(ZooError, match=f"{next(iter(wrong))}"):
        dataclasses.replace(SMALL, **wrong)


@pytest.mark.parametrize(
    "wrong", [{}, {"l1": -1.0}, {"l1": 1.0, "adversarial": 0.1}, {"l1": 1.0, "adversarial_loss": "hinge"}, {"l1": 1, "warmup": 1}]
)
def test_impossible_objectives_are_refused(wrong):
    with pytest.raises(ZooError):
        Objective(**wrong)


# -- losses ----------------------------------------------------------------------------------------------------------------


def test_charbonnier_is_eps_at_zero_and_l1_far_from_it():
    x = torch.rand(2, 3, 8, 8)
    assert losses.charbonnier(x, x, eps=0.01).item() == pytest.approx(0.01)
    assert losses.charbonnier(x + 3, x, eps=1e-3).item() == pytest.approx(3.0, abs=1e-5)


def test_low_frequency_l1_does_not_see_what_averages_out():
    hr = torch.rand(1, 3, 16, 16)
    checkerboard = (-1.0) ** (torch.arange(16)[:, None] + torch.arange(16)[None])
    assert losses.low_frequency_l1(hr + 0.2 * checkerboard, hr, 4).item() == pytest.approx(0, abs=1e-6)
    assert losses.low_frequency_l1(hr + 0.2, hr, 4).item() == pytest.approx(0.2, abs=1e-6)


def test_hinge_losses_in_closed_form():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.0])
    assert losses.hinge_discriminator(real, fake).item() == pytest.approx((0 + 0.5) / 2 + (0 + 1) / 2)
    assert losses.hinge_generator(fake).item() == pytest.approx(1.0)


def test_relativistic_losses_in_closed_form():
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([0.0, -1.0])

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    expected = -np.mean([math.log(sigmoid(r + 0.5)) for r in (1, 3)]) - np.mean([math.log(1 - sigmoid(f - 2)) for f in (0, -1)])
    assert losses.relativistic_discriminator(real, fake).item() == pytest.approx(expected, rel=1e-5)
    equal = torch.tensor([0.7, 0.7])
    assert losses.relativistic_generator(equal, equal).item() == pytest.approx(2 * math.log(2))


@settings(max_examples=20, deadline=None)
@given(shift=st.floats(-3, 3))
def test_a_relativistic_loss_knows_differences_only(shift):
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([0.0, -1.0])
    moved = losses.relativistic_discriminator(real + shift, fake + shift)
    torch.testing.assert_close(moved, losses.relativistic_discriminator(real, fake))


def test_textures_ignore_places_and_features_do_not():
    hr = [torch.rand(2, 4, 6, 6)]
    shuffled = [hr[0].flatten(2)[..., torch.randperm(36)].view(2, 4, 6, 6)]
    assert losses.texture_l1(shuffled, hr).item() == pytest.approx(0, abs=1e-6)
    assert losses.feature_l1(shuffled, hr).item() > 0.1
    assert losses.feature_l1(hr, hr).item() == losses.texture_l1(hr, hr).item() == 0


def test_gram_is_the_mean_outer_product():
    features = torch.rand(1, 3, 2, 2)
    columns = features[0].flatten(1).T
    torch.testing.assert_close(losses.gram(features)[0], sum(torch.outer(c, c) for c in columns) / 4)


def test_random_features_are_fixed_and_differentiable():
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    one, two = RandomFeatures()(image), RandomFeatures()(image)
    assert [tuple(f.shape) for f in one] == [(1, 16, 32, 32), (1, 32, 16, 16), (1, 64, 8, 8)]
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    losses.texture_l1(one, [f.detach() * 1.1 for f in two]).backward()
    assert image.grad is not None and torch.isfinite(image.grad).all() and image.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in RandomFeatures().parameters())


def test_the_discriminator_is_spectrally_normalised():
    discriminator = PatchDiscriminator(8)
    for _ in range(30):  # the power iteration runs at every call in training mode
        logits = discriminator(torch.rand(1, 3, 32, 32))
    assert logits.shape == (1, 1, 4, 4)
    norms = [torch.linalg.matrix_norm(layer.weight.flatten(1), 2) for layer in discriminator.layers if hasattr(layer, "weight")]
    assert all(norm.item() == pytest.approx(1, abs=0.1) for norm in norms) and len(norms) == 7


def test_noise_changes_the_image_of_networks_that_take_any_and_each_seed_alone_decides_it():
    config = dataclasses.replace(SMALL, noise=2, refine=1)
    noisy, lr = build_generator(config), torch.rand(2, 3, 8, 8)
    noise = seeded_noise(config, lr, [0, 1])
    assert noise.shape == (2, 2, 32, 32) and torch.equal(noise[1:], seeded_noise(config, lr[1:], [1]))
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(noisy(lr), noisy(lr, seeded_noise(config, lr, [0, 0])))
    assert not torch.equal(noisy(lr)[1], noisy(lr, noise)[1])
    assert torch.equal(build_generator(SMALL)(lr), build_generator(SMALL)(lr, seeded_noise(SMALL, lr, [3, 4])))


# -- training --------------------------------------------------------------------------------------------------------------


def test_training_learns_what_the_crops_have_in_common(tmp_path):
    """LR images are the photo at 60 %: bicubic stays dark, a network learns the factor."""

    def draw_dark(rng):
        hr, lr = draw_pair(rng)
        return hr, 0.6 * lr

    member = Member("tiny", "regression", dataclasses.replace(SMALL, scale=4), Objective(l1=1.0), learning_rate=5e-3)
    config = dataclasses.replace(CONFIG, steps=60, batch_size=4)
    assert len(list(train_member(member, draw_dark, config, tmp_path))) == 60
    hr, lr = draw_batch(draw_dark, dataclasses.replace(config, seed=9, batch_size=16), member, 0)
    sr = load_zoo(tmp_path, 4)["zoo-tiny@0060"](lr, calls(16))
    bicubic = F.interpolate(lr, scale_factor=4, mode="bicubic", align_corners=False).clamp(0, 1)
    assert F.l1_loss(sr, hr) < 0.5 * F.l1_loss(bicubic, hr)


def test_a_gan_warms_up_with_l1_and_then_has_all_its_terms(tmp_path):
    progress = train(tmp_path)
    assert [set(p.terms) for p in progress[:2]] == [{"l1"}] * 2
    assert all(set(p.terms) == {"l1", "texture", "adversarial", "discriminator"} for p in progress[2:])
    stored = {network.name: network.family for network in read_index(tmp_path)}
    assert stored == {"gan@0002": "regression", "gan@0008": "gan"}  # the first has seen no discriminator


@pytest.mark.parametrize("stop", [2, 5, 8])
def test_an_interrupted_training_resumes_exactly(tmp_path, stop):
    whole = train(tmp_path / "whole")
    interrupted = train_member(GAN, draw_pair, CONFIG, tmp_path / "parts")
    for _ in range(stop):
        next(interrupted)
    interrupted.close()
    rest = train(tmp_path / "parts")
    assert rest == whole[len(whole) - len(rest) :] and len(rest) >= 8 - stop
    assert read_index(tmp_path / "parts") == read_index(tmp_path / "whole")
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()


def test_batches_are_decided_by_seed_member_and_step():
    first = draw_batch(draw_pair, CONFIG, GAN, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, draw_batch(draw_pair, CONFIG, GAN, 3), strict=True))
    others = [
        draw_batch(draw_pair, CONFIG, GAN, 4),
        draw_batch(draw_pair, dataclasses.replace(CONFIG, seed=1), GAN, 3),
        draw_batch(draw_pair, CONFIG, dataclasses.replace(GAN, name="other"), 3),
    ]
    assert not any(torch.equal(first[0], other[0]) for other in others)


def test_a_run_state_of_other_settings_or_damaged_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(ZooError, match="other settings"):
        train(tmp_path, config=dataclasses.replace(CONFIG, seed=1))
    state = tmp_path / "training" / "gan" / "run_state.pt"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(ZooError, match="damaged run state"):
        train(tmp_path)


def test_a_non_finite_loss_stops_training_with_its_step():
    trainer = MemberTrainer(GAN, CONFIG, torch.device("cpu"))
    hr, lr = torch.full((2, 3, 32, 32), math.nan), torch.rand(2, 3, 8, 8)
    with pytest.raises(ZooError, match=r"member gan, step 1: losses must be finite, got .*nan.*learning rate"):
        trainer.step(hr, lr, 0)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"snapshots": ()}, {"snapshots": (0.5,)}, {"snapshots": (0.5, 0.2, 1.0)}, {"crop": 30}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ZooError, match=next(iter(wrong))):
        ZooTrainConfig(**wrong)


def test_the_learning_rate_rises_falls_and_ends_at_a_tenth():
    rates = [learning_rate(step, 500, 1.0) for step in range(500)]
    assert max(rates) == pytest.approx(1.0) and rates.index(max(rates)) in (9, 10)
    assert rates[0] == pytest.approx(0.1) and rates[-1] == pytest.approx(0.1, abs=1e-3)


# -- the folder ------------------------------------------------------------------------------------------------------------


def test_a_call_s_seed_decides_the_noise(tmp_path):
    config = dataclasses.replace(SMALL, noise=1, refine=1)
    write_network(tmp_path, StoredNetwork.of("n", "gan", 1, 1, config), build_generator(config).state_dict())
    model, lr = load_zoo(tmp_path, 4)["zoo-n@0001"], torch.rand(1, 3, 8, 8)
    same, other = SRCall(7, {}, Crop("photo", 0, 0, 32)), SRCall(8, {}, Crop("photo", 0, 0, 32))
    assert torch.equal(model(lr, [same]), model(lr, [same]))
    assert not torch.equal(model(lr, [same]), model(lr, [other]))


@pytest.fixture
def zoo(tmp_path):
    for step in (1, 2):
        network = StoredNetwork.of("l1", "regression", step, 2, SMALL)
        write_network(tmp_path, network, build_generator(SMALL, seed=step).state_dict())
    return tmp_path


def test_a_stored_network_gives_the_images_it_gave(zoo):
    lr = torch.rand(2, 3, 16, 16)
    model = load_zoo(zoo, 4)["zoo-l1@0001"]
    trained = build_generator(SMALL, seed=1).half().float()
    with torch.no_grad():
        torch.testing.assert_close(model(lr, calls(2)), trained(lr).clamp(0, 1), atol=1e-5, rtol=0)
    assert (model.scale, model.family, model.member, model.progress) == (4, "regression", "l1", 0.5)
    assert check_output(model, lr, model(lr, calls(2))).is_contiguous() and model.covers("any") and not model.settings


def test_an_image_does_not_depend_on_its_batch(zoo):
    lr = torch.rand(5, 3, 16, 16)
    model = load_zoo(zoo, 4)["zoo-l1@0002"]
    together = model(lr, calls(5))
    assert torch.equal(together, torch.cat([model(one, calls(1)) for one in lr.split(1)]))
    assert torch.equal(together[[2]], model(lr[[2]], calls(1)))
    with pytest.raises(ZooError, match="one call an image, got 1 for 5"):
        model(lr, calls(1))


def test_versions_are_digests_of_architecture_and_weights(zoo, tmp_path):
    versions = {model.version for model in load_zoo(zoo, 4).values()}
    assert len(versions) == 2 and all(version.startswith("sha256:") for version in versions)
    copy = tmp_path / "copy"
    shutil.copytree(zoo, copy, ignore=shutil.ignore_patterns("copy"))
    assert {model.version for model in load_zoo(copy, 4).values()} == versions


def test_bfloat16_is_close_and_another_version(zoo):
    lr = torch.rand(1, 3, 16, 16)
    exact, fast = (load_zoo(zoo, 4, autocast=autocast)["zoo-l1@0001"] for autocast in (False, True))
    assert fast.version == f"{exact.version}+bfloat16"
    torch.testing.assert_close(fast(lr, calls(1)), exact(lr, calls(1)), atol=0.01, rtol=0)


def test_a_zoo_has_one_scale(zoo):
    with pytest.raises(ZooError, match=r"a zoo for x2 is required, got one for x4; .*train-zoo --scale 2"):
        load_zoo(zoo, 2)
    double = dataclasses.replace(SMALL, scale=2)
    with pytest.raises(ZooError, match=r"share one scale, got \[2, 4\]"):
        write_network(zoo, StoredNetwork.of("l1", "regression", 3, 3, double), build_generator(double).state_dict())
    assert len(load_zoo(zoo, 4)) == 2


def test_weights_beyond_half_precision_are_refused(tmp_path):
    state = {name: tensor * 1e6 for name, tensor in build_generator(SMALL).state_dict().items()}
    with pytest.raises(ZooError, match="fit float16"):
        write_network(tmp_path, StoredNetwork.of("l1", "regression", 1, 1, SMALL), state)
    assert not list(tmp_path.iterdir())


def test_an_absent_zoo_and_absent_weights_say_so(zoo, tmp_path):
    with pytest.raises(ZooError, match=r"expected an SR zoo .* found none; train one"):
        load_zoo(tmp_path / "nothing", 4)
    (zoo / "l1@0001.safetensors").unlink()
    with pytest.raises(ZooError, match=r"l1@0001.safetensors: weights cannot be read"):
        load_zoo(zoo, 4)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda record: record.update(format="other"), "format"),
        (lambda record: record.update(version=2), "version"),
        (lambda record: record.update(scale=2), "scale"),
        (lambda record: record.update(networks=[]), "networks"),
        (lambda record: record["networks"][1].pop("digest"), r"networks\[1\]"),
        (lambda record: record["networks"][0].update(step="1"), r"networks\[0\].step"),
        (lambda record: record["networks"][0].update(name="../l1"), r"networks\[0\].name"),
        (lambda record: record["networks"][0]["generator"].update(body="unet"), r"networks\[0\].generator"),
        (lambda record: record["networks"][0]["generator"].update(extra=1), r"networks\[0\].generator"),
        (lambda record: record["networks"][0].update(digest="sha256:0"), "digest"),
    ],
)
def test_a_damaged_index_names_the_field(zoo, change, field):
    path = zoo / "zoo.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(SchemaError, match=f": {field}: expected "):
        load_zoo(zoo, 4)


def test_an_index_that_is_not_json_is_refused(zoo):
    for text in ("{", "[]"):
        (zoo / "zoo.json").write_text(text)
        with pytest.raises(SchemaError, match=r"expected .*JSON"):
            load_zoo(zoo, 4)


def test_swapped_weights_are_noticed(zoo):
    shutil.copy(zoo / "l1@0001.safetensors", zoo / "l1@0002.safetensors")
    with pytest.raises(SchemaError, match=r"l1@0002.safetensors: digest: expected"):
        load_zoo(zoo, 4)


def test_a_contact_sheet_shows_every_column_pixel_by_pixel():
    columns = {"black": torch.zeros(2, 3, 8, 8), "red": torch.tensor([1.0, 0, 0])[None, :, None, None].expand(2, 3, 8, 8)}
    sheet = np.asarray(contact_sheet(columns, zoom=2))
    assert sheet.shape == (14 + 2 * 20, 2 * 20, 3)
    assert (sheet[14:30, :16] == 0).all() and (sheet[34:50, 20:36] == (255, 0, 0)).all()
    with pytest.raises(ZooError, match="columns of one shape"):
        contact_sheet({"a": torch.zeros(1, 3, 8, 8), "b": torch.zeros(1, 3, 4, 4)})


# -- the command and the packaged zoo ---------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = sample_photos()[1].read()
    for index in range(4):
        Image.fromarray(pixels[40 * index : 40 * index + 140, 60 : 60 + 140]).save(folder / f"{index}.png")
    return folder


def run_train_zoo(*options):
    app = typer.Typer()
    app.command()(train_zoo)
    return CliRunner().invoke(app, [str(option) for option in options])


def test_the_command_trains_measures_and_shows_and_later_adds_members(tmp_path, photos):
    out, preview = tmp_path / "zoo", tmp_path / "sheet.png"
    common = ["--data", photos, "--out", out, "--steps", 2, "--snapshots", "0.5,1", "--crop", 32, "--batch-size", 1]
    common += ["--device", "cpu", "--scale", 2]
    first = run_train_zoo(*common, "--members", "l1", "--preview", preview)
    assert first.exit_code == 0, first.output
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert set(evaluation["means"]) == {"light", "blind"}
    assert set(evaluation["means"]["light"]) == {"bicubic", "zoo-l1@0001", "zoo-l1@0002"}
    assert 10 < evaluation["means"]["light"]["zoo-l1@0002"]["psnr"] < 50
    with Image.open(preview) as sheet:
        assert sheet.width == 4 * (2 * 128 + 4)
    before = (out / "l1@0002.safetensors").read_bytes()
    (out / "metrics.jsonl").write_text('{"member": "l1", "step": 2}\n{"member": "transposed", "step": 1}\n{"torn')
    second = run_train_zoo(*common, "--members", "transposed")
    assert second.exit_code == 0, second.output
    assert sorted(load_zoo(out, 2)) == ["zoo-l1@0001", "zoo-l1@0002", "zoo-transposed@0001", "zoo-transposed@0002"]
    assert (out / "l1@0002.safetensors").read_bytes() == before
    assert (out / "metrics.jsonl").read_text() == '{"member": "l1", "step": 2}\n'  # steps to be taken are not there twice


def test_the_command_refuses_shares_that_are_none():
    with pytest.raises(ConfigError, match=r"--snapshots must be numbers .* got '0.5;1'"):
        parse_snapshots("0.5;1")


def test_the_packaged_zoo_is_complete_small_and_sane():
    zoo = load_zoo(PACKAGED, 4)
    assert {model.member for model in zoo.values()} == {member.name for member in MEMBERS}
    assert {model.family for model in zoo.values()} == {"regression", "perceptual", "gan"}
    assert sum(path.stat().st_size for path in PACKAGED.iterdir()) <= 6_000_000
    photo = torch.from_numpy(sample_photos()[1].read()[60:188, 100:228].copy()).permute(2, 0, 1)[None].float() / 255
    lr = F.interpolate(photo, scale_factor=0.25, mode="bicubic", antialias=True).clamp(0, 1)
    for name, model in zoo.items():
        sr = check_output(model, lr, model(lr, calls(1)))
        assert F.mse_loss(sr, photo) < 0.02, name  # 17 dB: faulty, yet the photo
