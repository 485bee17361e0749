"""Settings of a fine-tuning run: defaults, file and flags in rising order, and every mistake named."""

from __future__ import annotations

import pytest
import tomli_w
import torch
from PIL import Image
from typer.testing import CliRunner

from finpercep.cli import app
from finpercep.cli.finetune_config import finetune_config, policy_settings, refresh_config
from finpercep.cli.photo_pairs import PhotoPairs, degradation_config
from finpercep.errors import ConfigError
from finpercep.rl.refl import ReflConfig
from tests.fakes import photo


def written(tmp_path, tree):
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(tree))
    return path


def test_defaults():
    config = finetune_config(None, None, {})
    assert config.algorithm == ReflConfig() and config.steps == 300


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    file = written(tmp_path, {"steps": 7, "lr": 1e-3, "refl": {"window": 0.25, "gram_weight": 3.0}, "reward": {"max": 0.5}})
    config = finetune_config(file, None, {"steps": 9, "lr": None}, ["gram_weight=1", "reward_weight = 2.5"])
    assert (config.steps, config.lr, config.reward.max) == (9, 1e-3, 0.5)
    assert config.algorithm == ReflConfig(window=0.25, gram_weight=1.0, reward_weight=2.5)


def test_a_runs_own_config_will_do(tmp_path):
    config = finetune_config(None, None, {"steps": 30, "rung_steps": (10, 10, 10)}, ["window=0.25"])
    plain = {key: value for key, value in config.to_json().items() if value is not None}
    assert (
        finetune_config(
            written(
                tmp_path,
                {
                    "finetune": plain,
                },
            ),
            None,
            {},
        )
        == config
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"algorithm": "magic"}, "algorithm must be one of refl"),
        ({"settings": ["windo=1"]}, "no setting is called windo"),
        ({"settings": ["window"]}, "KEY=VALUE"),
        ({"settings": ["window=wide"]}, "window"),
        ({"settings": ["window=2"]}, "window must lie in"),
        ({"flags": {"steps": 0}}, "steps must be at least 1"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        finetune_config(None, arguments.get("algorithm"), arguments.get("flags", {}), arguments.get("settings", ()))


def test_an_unknown_setting_in_the_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no setting is called stepz"):
        finetune_config(written(tmp_path, {"stepz": 7}), None, {})


@pytest.mark.parametrize(
    ("read", "tree", "message"),
    [
        (lambda file: refresh_config(file, None, ()), {"refresh": 1000}, "refresh is a table of settings, got 1000"),
        (lambda file: policy_settings(file, ()), {"policy_settings": "x"}, "policy_settings is a table of settings, got 'x'"),
        (lambda file: finetune_config(file, None, {}), {"finetune": 3}, "finetune is a table of settings, got 3"),
        (lambda file: finetune_config(file, None, {}), {"monitor": 25}, "monitor is a table of settings, got 25"),
        (lambda file: finetune_config(file, None, {}), {"algorithm": ["grpo"]}, r"algorithm must be one of .*\['grpo'\]"),
        (lambda file: finetune_config(file, None, {}), {"algorithm": {"name": "grpo"}}, "algorithm must be one of refl"),
    ],
)
def test_a_value_of_the_wrong_kind_in_the_file_is_named(tmp_path, read, tree, message):
    with pytest.raises(ConfigError, match=message):
        read(written(tmp_path, tree))


def test_policy_settings_from_file_and_flags(tmp_path):
    file = written(tmp_path, {"steps": 7, "policy_settings": {"lora_rank": 4, "steps": 10}})
    assert policy_settings(file, ["steps=5", "trained=['denoiser']"]).said() == {
        "lora_rank": 4,
        "steps": 5,
        "trained": ("denoiser",),
    }
    assert finetune_config(file, None, {}).steps == 7
    with pytest.raises(ConfigError, match="no setting is called rank"):
        policy_settings(None, ["rank=4"])
    with pytest.raises(ConfigError, match="lora_rank"):
        policy_settings(None, ["lora_rank=many"])


def test_photos_are_degraded_lightly_or_blindly():
    assert finetune_config(None, None, {}).degradation == "light"
    assert finetune_config(None, None, {"degradation": "blind"}).degradation == "blind"
    with pytest.raises(ConfigError, match="degradation"):
        finetune_config(None, None, {"degradation": "heavy"})


def test_a_crop_that_the_policys_networks_cannot_take_is_refused_before_the_run(published, tmp_path):
    Image.fromarray(photo(96, 96)).save(tmp_path / "a.png")
    command = ["finetune", "--reward", "packaged", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--device", "cpu"]
    refused = CliRunner().invoke(app, [*command, "--policy", published["flow-controlnet"], "--crop", "72"])
    assert isinstance(refused.exception, ConfigError) and "--crop must be a multiple of 16" in str(refused.exception)
    assert not (tmp_path / "run").exists()


def test_blind_pairs_are_worse_than_light_ones_and_of_the_same_photos():
    def error(blind):
        hr, lr = PhotoPairs([photo(96, 96)], 64, degradation_config(4, blind=blind)).fixed(8, seed=0)
        assert lr.shape == (8, 3, 16, 16)
        return float((torch.nn.functional.avg_pool2d(hr, 4) - lr).abs().mean())

    assert error(True) > 2 * error(False)
