"""Contract 2: what is written is read back; anything else is refused, with file and field named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from finpercep.checkpoint import digest_of, read_checkpoint, read_ladder, write_checkpoint
from finpercep.errors import SchemaError, WeightsError
from finpercep.predictor import load_predictors
from finpercep.reward_model.build import build_reward_model
from finpercep.reward_model.config import RewardModelConfig
from finpercep.reward_model.model import FinPercepRM

SINCE_VERSION_1 = {"decoder": "unet", "lr_input": False, "map_scale": 1.0, "map_shift": 0.0}
"""Settings that version 1 had not, and what it stood for."""


@pytest.fixture
def ladder(small_ladder, tmp_path):
    return shutil.copytree(small_ladder, tmp_path / "ladder")


def edit(path, **changes):
    record = json.loads(path.read_text())
    record.update(changes)
    path.write_text(json.dumps(record))


def test_the_contract_has_not_changed_silently(ladder):
    """Changing any of this needs a new CONTRACT_VERSION and a reader for the old one."""
    config = json.loads((ladder / "RM_1" / "config.json").read_text())
    assert sorted(config) == ["digest", "format", "model", "version"]
    assert (config["format"], config["version"]) == ("finpercep-rm", 2)
    assert sorted(config["model"]) == [
        "decoder", "decoder_channels", "encoder", "encoder_depth", "head_hidden", "lr_input", "map_pooling", "map_scale",
        "map_shift", "map_stride", "mean", "modulation", "score_scale", "score_shift", "std",
    ]  # fmt: skip
    record = json.loads((ladder / "ladder.json").read_text())
    assert sorted(record) == ["format", "name", "rungs", "version"]
    assert (record["format"], record["version"]) == ("finpercep-ladder", 1)
    assert all(sorted(rung) == ["digest", "path", "rung"] for rung in record["rungs"])
    assert sorted(p.name for p in (ladder / "RM_1").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("dtype", [None, torch.float16])
@torch.no_grad()
def test_round_trip(tmp_path, dtype):
    model = build_reward_model(RewardModelConfig(map_stride=4)).eval()
    digest = write_checkpoint(tmp_path, model.config.to_json(), model.state_dict(), dtype=dtype)
    loaded = FinPercepRM.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert loaded.digest == digest == read_checkpoint(tmp_path).digest
    images = torch.rand(1, 3, 64, 64)
    tolerance = 0.0 if dtype is None else 5e-3
    assert torch.allclose(loaded(images).map, model(images).map, atol=tolerance)
    assert torch.allclose(loaded(images).score, model(images).score, atol=tolerance)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [(1e6, torch.float16, "finite and fit float16, .*half = false"), (float("nan"), None, "must be finite, and some are not$")],
)
def test_weights_that_would_be_stored_as_no_number_are_refused(tmp_path, value, dtype, message):
    model = build_reward_model(RewardModelConfig())
    next(model.parameters()).data[0] = value
    with pytest.raises(WeightsError, match=message):
        write_checkpoint(tmp_path, model.config.to_json(), model.state_dict(), dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_save_pretrained_writes_the_same_contract(tmp_path):
    model = build_reward_model(RewardModelConfig()).eval()
    model.save_pretrained(tmp_path)
    assert read_checkpoint(tmp_path).digest == digest_of(json.loads(json.dumps(model.config.to_json())), model.state_dict())


def test_digest_covers_weights_and_preprocessing():
    state = {"w": torch.arange(4.0)}
    digest = digest_of({"mean": [0.5]}, state)
    assert digest == digest_of({"mean": [0.5]}, {"w": torch.arange(4.0)})
    assert digest != digest_of({"mean": [0.4]}, state)
    assert digest != digest_of({"mean": [0.5]}, {"w": torch.arange(4.0) + 1e-7})
    assert digest != digest_of({"mean": [0.5]}, {"w": torch.arange(4.0).reshape(2, 2)})
    assert digest != digest_of({"mean": [0.5]}, {"v": torch.arange(4.0)})


def as_version_1(folder):
    """Rewrite a rung's config as the first version wrote it."""
    record = json.loads((folder / "config.json").read_text())
    model = {name: value for name, value in record["model"].items() if name not in SINCE_VERSION_1}
    edit(folder / "config.json", version=1, model=model)


def test_version_1_reads_as_the_same_model(tmp_path):
    """Its digest verifies, its new settings have the values it stood for, and written anew it is the same rung."""
    build_reward_model(RewardModelConfig(map_stride=4, lr_input=False)).save_pretrained(tmp_path)
    before = read_checkpoint(tmp_path)
    as_version_1(tmp_path)
    after = read_checkpoint(tmp_path)
    assert (after.digest, after.model) == (before.digest, before.model)
    assert {name: after.model[name] for name in SINCE_VERSION_1} == SINCE_VERSION_1
    write_checkpoint(tmp_path, after.model, after.state)
    assert read_checkpoint(tmp_path).digest == before.digest
    assert FinPercepRM.load(tmp_path).digest == before.digest


@torch.no_grad()
def test_a_rung_that_version_1_wrote_scores_as_it_did():
    """The file is of the release that wrote version 1, and so are the numbers."""
    rung = FinPercepRM.load(Path(__file__).parent / "rung_v1")
    assert rung.digest == "sha256:202bdc41779ad6974b4b7165cdf28f11a34dd44fc98ec18736be9c8263c6f3b3"
    assert not rung.config.lr_input and rung.config.decoder == "unet"
    output = rung(torch.linspace(0, 1, 3 * 40 * 56).view(1, 3, 40, 56).sin().abs())
    assert output.score.item() == pytest.approx(0.0445004, abs=1e-6)
    assert output.map.mean().item() == pytest.approx(0.4854194, abs=1e-6)


def test_a_setting_that_version_1_lacked_is_in_the_digest_once_used():
    state = {"w": torch.arange(4.0)}
    model = RewardModelConfig().to_json()
    assert digest_of(model, state) != digest_of({**model, "decoder": "fpn"}, state)


def test_a_rung_loads_alone_and_a_ladder_in_order(ladder):
    assert FinPercepRM.from_pretrained(ladder / "RM_2").config.map_stride == 4
    assert list(load_predictors(ladder)) == ["RM_0", "RM_1", "RM_2"]
    assert [rung.rung for rung in read_ladder(ladder).rungs] == ["RM_0", "RM_1", "RM_2"]


@pytest.mark.parametrize(
    ("file", "changes", "field"),
    [
        ("RM_1/config.json", {"version": 3}, "version"),
        ("RM_1/config.json", {"version": "2"}, "version"),
        ("RM_1/config.json", {"version": 1}, "model.decoder"),
        ("RM_1/config.json", {"format": "other"}, "format"),
        ("RM_1/config.json", {"model": []}, "model"),
        ("RM_1/config.json", {"digest": "sha256:0"}, "digest"),
        ("ladder.json", {"version": "1"}, "version"),
        ("ladder.json", {"version": 2}, "version"),
        ("ladder.json", {"rungs": []}, "rungs"),
        ("ladder.json", {"rungs": [{"rung": "RM_0"}]}, "rungs[0]"),
        ("ladder.json", {"rungs": [{"rung": "RM_0", "path": "../elsewhere", "digest": ""}]}, "rungs[0].path"),
        ("ladder.json", {"rungs": [{"rung": "RM_0", "path": "RM_0", "digest": "sha256:0"}]}, "digest of RM_0"),
    ],
)
def test_a_broken_contract_names_file_and_field(ladder, file, changes, field):
    edit(ladder / file, **changes)
    with pytest.raises(SchemaError) as caught:
        load_predictors(ladder)
    assert caught.value.field == field
    assert file.split("/")[-1] in str(caught.value)


@pytest.mark.parametrize("change", [{"modulation": None}, {"encoder_depth": "four"}, {"map_stride": 16}, {"surprise": 1}])
def test_a_config_is_never_completed_or_guessed(ladder, change):
    """A missing setting must not take today's default, and a config that does not fit the weights is refused by name."""
    checkpoint = read_checkpoint(ladder / "RM_2")
    model = {name: value for name, value in {**checkpoint.model, **change}.items() if value is not None}
    write_checkpoint(ladder / "RM_2", model, checkpoint.state)
    with pytest.raises(SchemaError, match=r"RM_2: model:"):
        FinPercepRM.load(ladder / "RM_2")


def test_missing_and_damaged_files(ladder, tmp_path):
    with pytest.raises(WeightsError, match=r"ladder\.json"):
        load_predictors(tmp_path / "nowhere")
    (ladder / "RM_1" / "model.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(WeightsError, match="weights cannot be read"):
        load_predictors(ladder)
    (ladder / "RM_0" / "config.json").write_text("{")
    with pytest.raises(SchemaError, match="JSON"):
        load_predictors(ladder)


def test_a_model_that_must_be_downloaded_fails_in_one_line(tmp_path):
    with pytest.raises(WeightsError, match="neither a folder here nor a model that could be downloaded"):
        FinPercepRM.from_pretrained("nobody/no-such-model", cache_dir=str(tmp_path), local_files_only=True)
