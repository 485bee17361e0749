"""The model against method §2: the map drives the score, batches do not matter, padding does not matter."""

from __future__ import annotations

import dataclasses
import shutil
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from torch.nn import functional as F

from finpercep.errors import ConfigError, WeightsError
from finpercep.predictor import packaged_model_folder
from finpercep.reward_model.build import build_reward_model, inherit_weights, with_encoder_statistics
from finpercep.reward_model.config import RewardModelConfig
from finpercep.reward_model.ladder import LadderConfig
from finpercep.reward_model.model import FinPercepRM, Perception
from finpercep.reward_model.score_head import MapForScore, bring_to_deep, modulated_features

FORMS = ("literal", "complement", "residual", "statistics", "readout", "attended")


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
    readout = modulated_features(deep, seen, weight, "readout")
    highest = degradation.flatten(1).sort(descending=True).values
    tops = [highest[:, :count].mean(1) for count in (1, 3, 26)]  # 0.1, 1 and 10 % of 256 positions, at least one
    assert torch.allclose(
        readout, torch.cat([deep.mean((2, 3)), torch.stack([degradation.mean((1, 2)), *tops], 1)], 1), atol=1e-6
    )


@torch.no_grad()
def test_attended_features_are_those_of_the_defect_however_small():
    deep, weight = torch.rand(1, 5, 8, 8), torch.ones(8, 8)
    degradation = torch.zeros(1, 8, 8)
    degradation[0, 2, 3] = 1
    got = modulated_features(deep, MapForScore(degradation, degradation), weight, "attended")
    assert torch.allclose(got[0, 5:10], deep[0, :, 2, 3], rtol=0.1)
    clean = modulated_features(deep, MapForScore(degradation * 0, degradation * 0), weight, "attended")
    assert not clean[0, 5:].any()


@torch.no_grad()
@pytest.mark.parametrize("form", ["complement", "residual", "statistics", "readout", "attended"])
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
            assert bring_to_deep(degradation, torch.ones(32, 32), 16, pooling).sum() > 0


@torch.no_grad()
def test_score_and_map_do_not_depend_on_the_batch():
    model = build(score_scale=20.0)
    images = torch.rand(32, 3, 64, 80)
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


def padded_by_hand(images, stride):
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % stride, 0, -height % stride), mode="reflect")


@pytest.mark.parametrize("side", range(33, 98, 8))
@torch.no_grad()
def test_padding_inside_is_padding_by_hand(side):
    """The map of the valid part is that of the image reflected by the caller; the other side takes every odd size once."""
    height, width = side, 130 - side
    for stride in (1, 4, 16):
        model = build(map_stride=stride)
        images = torch.rand(1, 3, height, width)
        assert torch.allclose(model(images).map, model(padded_by_hand(images, 16)).map[:, :height, :width], atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(33, 97), (64, 50), (47, 61), (96, 32)])
@torch.no_grad()
def test_the_score_is_that_of_the_images_own_pixels(height, width):
    """Another route: f_N and M spread over pixels, the padding's pixels thrown away, and what is left averaged."""
    model = build(modulation="residual")
    images = torch.rand(2, 3, height, width)
    seen = model.perceive(padded_by_hand(images, 16))
    deep = seen.deep.repeat_interleave(16, 2).repeat_interleave(16, 3)[..., :height, :width]
    degradation = seen.coarse_logits.sigmoid().repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None, :height, :width]
    pooled = (deep * (1 + degradation)).mean(dim=(2, 3))
    # The mean of a product over a position of f_N is f_N times the mean of M there: f_N is constant on it.
    assert torch.allclose(model(images).score, torch.sigmoid(model.score_head.mlp(pooled)[:, 0]), atol=1e-6)


@torch.no_grad()
def test_padding_does_not_count_in_the_score():
    """Of a 64×50 image padded to 64×64, positions beyond the image have no weight."""
    model = build(modulation="residual")
    share = model._inside(torch.zeros(1, 1, 4, 4), (64, 50), 16)
    assert share.sum().item() == pytest.approx(4 * 50 / 16)
    assert share[0].tolist() == [1.0, 1.0, 1.0, 0.125]
    seen = model.perceive(torch.rand(1, 3, 64, 50))
    logits = torch.full((1, 16, 16), -50.0)
    logits[..., 13:] = 50.0  # only the padding looks degraded
    ignored = model.map_for_score(Perception(seen.deep, logits), (64, 50))
    assert ignored.own.shape == (1, 16, 13)
    assert ignored.own.max() < 1e-6 and ignored.at_deep.max() < 1e-6
    logits[..., 12] = 50.0  # and the image's last column
    assert model.map_for_score(Perception(seen.deep, logits), (64, 50)).at_deep[0, :, -1].tolist() == pytest.approx([1.0] * 4)


@pytest.mark.parametrize(("stride", "dynamic"), [(None, True), (4, False)])  # (4, True): below, by the real compiler
def test_the_model_compiles_to_one_graph(stride, dynamic):
    """No graph break in forward or backward, on one size or as a function of the size."""
    compiled_equals_eager(build(map_stride=stride, score_scale=20.0), "aot_eager", dynamic, [(2, 64, 64), (1, 47, 33)])


@pytest.mark.slow
@pytest.mark.timeout(900)  # the compiler's first run, on a slow machine
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_the_compiler_gives_the_same_numbers():
    compiled_equals_eager(build(score_scale=20.0), "inductor", True, [(3, 33, 47)])


def compiled_equals_eager(model, backend, dynamic, shapes):
    torch.compiler.reset()
    model.requires_grad_(False)
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)
    for count, height, width in shapes:
        images = torch.rand(count, 3, height, width, requires_grad=True)
        got, wanted = compiled(images), model(images)
        assert torch.allclose(got.score, wanted.score, atol=1e-5)
        assert wanted.map is None or torch.allclose(got.map, wanted.map, atol=1e-5)
        gradients = [torch.autograd.grad(output.score.sum(), images)[0] for output in (got, wanted)]
        assert torch.allclose(*gradients, atol=1e-5 * gradients[1].abs().max().item() + 1e-9)


@torch.no_grad()
def test_channels_last_is_only_another_memory_layout():
    model = build(score_scale=20.0)
    images = torch.rand(2, 3, 64, 80)
    wanted = model(images)
    got = model.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(got.score, wanted.score, atol=1e-5) and torch.allclose(got.map, wanted.map, atol=1e-5)


class FolderHub:
    """The hub's client, writing to a folder."""

    def __init__(self, folder):
        self.folder = folder

    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        return SimpleNamespace(repo_id=f"owner/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, commit_message=None):
        shutil.copytree(folder_path, self.folder / repo_id)
        return f"https://hub/{repo_id}/commit/1"


def test_what_is_pushed_is_the_contract_and_a_card(tmp_path):
    model = FinPercepRM.load(packaged_model_folder() / "RM_1")
    notes = "Trained on my photos."
    address = model.push_to_hub("grader", api=FolderHub(tmp_path), licence="apache-2.0", notes=notes)
    assert address == "https://hub/owner/grader/commit/1"
    pushed = tmp_path / "owner" / "grader"
    assert sorted(path.name for path in pushed.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card = ModelCard.load(pushed / "README.md")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "finpercep")
    assert model.digest in card.text and notes in card.text
    assert FinPercepRM.from_pretrained(tmp_path, subfolder="owner/grader").digest == model.digest


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path):
    model, nowhere = build(), "http://127.0.0.1:9"
    with pytest.raises(WeightsError, match="owner/grader: could not be uploaded") as failed:
        model.push_to_hub("owner/grader", api=HfApi(endpoint=nowhere, token=False))
    assert "\n" not in str(failed.value)
    with pytest.raises(WeightsError, match="neither a folder here nor") as failed:
        FinPercepRM.from_pretrained("owner/grader", endpoint=nowhere, cache_dir=tmp_path)
    assert "\n" not in str(failed.value)


def test_saving_keeps_the_digest_until_a_weight_changes(tmp_path):
    """The packaged weights are stored in half precision; an unchanged copy is the same model."""
    model = FinPercepRM.from_pretrained(packaged_model_folder(), subfolder="RM_2")
    digest = model.digest
    model.save_pretrained(tmp_path / "same")
    assert FinPercepRM.from_pretrained(tmp_path / "same").digest == digest
    with torch.no_grad():
        model.score_head.mlp[0].bias += 1e-6  # lost in half precision
    model.save_pretrained(tmp_path / "other")
    other = FinPercepRM.from_pretrained(tmp_path / "other")
    assert other.digest != digest
    assert torch.equal(other.score_head.mlp[0].bias, model.score_head.mlp[0].bias)


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


@torch.no_grad()
def test_a_rung_starts_from_one_without_lr_input():
    """The kernels for RGB are its own, those for the LR picture say nothing yet: blind or shown, the map is the parent's."""
    parent, model = build(lr_input=False), build(modulation="statistics")
    inherit_weights(model, parent)
    images, lr = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 16, 16)
    assert torch.allclose(model(images, lr).map, parent(images).map, atol=1e-5)


def test_another_encoder_is_no_start():
    with pytest.raises(ConfigError, match="weights of encoder 'tu-resnet18' do not fit 'tu-resnet10t'"):
        inherit_weights(build(), build(encoder="tu-resnet18"))


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
