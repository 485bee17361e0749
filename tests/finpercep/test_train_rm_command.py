"""`finpercep train-rm` as a user runs it: killed and run again, tried out, and set by a file."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from data_synth.build import build_dataset
from data_synth.photos import photo_source
from data_synth.plan import BuildConfig
from data_synth.recipe import RecipeConfig
from finpercep.cli import app
from finpercep.cli.train_rm_config import train_config
from finpercep.cli.train_rm_rehearsal import duration
from finpercep.errors import ConfigError, TrainingError, WeightsError
from finpercep.predictor import load_predictors, packaged_model_folder
from finpercep.report.runs import report_of_run
from finpercep.reward_model.config import RewardModelConfig
from finpercep.training.metrics_log import read_metrics
from finpercep.training.provenance import read_sessions
from finpercep.training.reports import StepReport
from finpercep.training.run_log import RunLog

STEPS = {"RM_0": 5, "RM_1": 4, "RM_2": 6}
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("data")
    config = BuildConfig(count=20, shard_size=10, validation=0.3, test=0.0, recipe=RecipeConfig(crop=64))
    list(build_dataset([photo_source("samples")], out, config))
    return out


def arguments(data, out):
    sizes = "--batch-size 4 --crop 48 --steps 5,4,6 --save-every 2 --validate-every 2 --device cpu --precision fp32"
    return ["train-rm", "--data", str(data), "--out", str(out), *sizes.split()]


def process(data, out):
    return subprocess.Popen(
        [sys.executable, "-m", "finpercep", *arguments(data, out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def lines(out):
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def stored(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in out.glob("RM_*/*")}


def assert_every_step_once(out):
    records = read_metrics(out / "metrics.jsonl")
    assert [(r["rung"], r["step"]) for r in records if r["kind"] == "StepReport"] == [
        (rung, step) for rung, count in STEPS.items() for step in range(1, count + 1)
    ]
    assert [r["rung"] for r in records if r["kind"] == "RungReport"] == list(STEPS)
    for rung, count in STEPS.items():
        events = EventAccumulator(str(out / "tensorboard" / rung))
        events.Reload()
        assert [point.step for point in events.Scalars("loss/total")] == list(range(1, count + 1))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_kill_9_at_any_moment_changes_no_byte(data, tmp_path):
    """A real process, killed again and again at random moments after it has done a step or two more, until one gets through."""
    assert process(data, tmp_path / "straight").wait() == 0
    assert_every_step_once(tmp_path / "straight")
    rng, out, kills = np.random.default_rng(0), tmp_path / "killed", 0
    for _ in range(3):
        running, before, more = process(data, out), lines(out), int(rng.integers(1, 5))
        while running.poll() is None and abs(lines(out) - before) < more:
            time.sleep(0.002)
        time.sleep(float(rng.uniform(0, 0.1)))
        running.send_signal(signal.SIGKILL)
        kills += running.wait() != 0
    assert kills >= 2
    assert process(data, out).wait() == 0
    assert stored(out) == stored(tmp_path / "straight")
    assert (out / "ladder.json").read_bytes() == (tmp_path / "straight" / "ladder.json").read_bytes()
    assert_every_step_once(out)
    assert "validation" in str(report_of_run(out).sections)


def test_a_dry_run_says_everything_and_writes_nothing(data, tmp_path):
    result = CliRunner().invoke(app, [*arguments(data, tmp_path / "out"), "--dry-run"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for part in (
        "RM_0",
        "RM_1",
        "RM_2",
        "M parameters",
        "map at stride 4, 6 steps",
        "fp32",
        "4 triplets of 48 px",
        "cpu",
        "a step",
    ):
        assert part in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_ladder_that_is_started_from_brings_its_architecture(data, tmp_path):
    """The packaged one has other channels than the defaults."""
    few = ["--steps", "1,1,1", "--lr", "0", "--ema", "0", "--start", "packaged"]
    result = CliRunner().invoke(app, [*arguments(data, tmp_path / "out"), *few], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(
        load_predictors(tmp_path / "out").values(), load_predictors(packaged_model_folder()).values(), strict=True
    ):
        weights, expected = ours.model.state_dict(), theirs.model.state_dict()
        assert all(
            torch.equal(weights[name], expected[name]) for name in expected if "running" not in name and "num_batches" not in name
        )
    assert ours.score(images).map.shape == (1, 64, 64)


def test_what_is_set_wins_over_the_architecture_of_the_ladder_that_is_started_from(tmp_path):
    file = tmp_path / "rm.toml"
    file.write_text('[ladder.base]\nmodulation = "literal"\n')
    parent = RewardModelConfig(map_stride=4, decoder_channels=(9, 7), modulation="readout", mean=(0.1, 0.2, 0.3), map_shift=2.0)
    config = train_config(file, {"ladder.base.encoder": "tu-resnet18"}, parent)
    expected = replace(parent, encoder="tu-resnet18", modulation="literal", map_stride=None, map_shift=0.0)
    assert config.ladder.base == expected


@pytest.mark.parametrize("crop", [28, 50, 68])
def test_a_crop_that_does_not_fit_is_refused(data, tmp_path, crop):
    """Below what the model takes, off the LR grid, larger than the samples."""
    result = CliRunner().invoke(app, [*arguments(data, tmp_path / "out"), "--crop", str(crop)])
    assert result.exit_code != 0 and "multiple of its scale 4" in f"{result.output}{result.exception}"


@pytest.mark.parametrize(("in_hardware", "precision"), [(True, "bf16"), (False, "fp32"), (None, "fp32")])
def test_brain_floats_are_taken_where_they_are_computed_in_hardware(monkeypatch, tmp_path, in_hardware, precision):
    monkeypatch.setattr("finpercep.cli.train_rm_config.computes_bf16", lambda device: in_hardware)
    file = tmp_path / "rm.toml"
    file.write_text('precision = "bf16"\n')
    assert train_config(None, {}).precision == precision
    assert train_config(file, {"precision": "auto"}).precision == precision
    assert train_config(file, {}).precision == "bf16"


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    file = tmp_path / "rm.toml"
    file.write_text("lr = 0.5\nbatch_size = 3\nsteps = [1, 2]\n[ladder]\nmap_strides = [8]\n[loss]\nrank = 7.0\n")
    config = train_config(file, {"lr": 0.25, "crop": None, "ladder.base.encoder": "tu-resnet18"})
    assert (config.lr, config.batch_size, config.crop, config.loss.rank) == (0.25, 3, 128, 7.0)
    assert config.ladder.map_strides == (8,) and config.steps == (1, 2)
    assert config.ladder.base.encoder == "tu-resnet18"


def test_the_encoders_weights_may_come_from_a_file(data, tmp_path):
    """Only RM_0 begins with them: later rungs begin with the rung before."""
    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "encoder.safetensors")
    few = ["--steps", "1,1,1", "--lr", "0", "--ema", "0", "--encoder-weights", str(tmp_path / "encoder.safetensors")]
    result = CliRunner().invoke(app, [*arguments(data, tmp_path / "out"), *few], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    theirs = load_file(tmp_path / "encoder.safetensors")["layer1.0.conv1.weight"]
    for rung in STEPS:
        ours = load_file(tmp_path / "out" / rung / "model.safetensors")["encoder.model.layer1.0.conv1.weight"]
        assert torch.equal(ours, theirs.half()), rung

    moved = (tmp_path / "encoder.safetensors").rename(tmp_path / "moved.safetensors")  # what counts is what is in it
    again = [*arguments(data, tmp_path / "out"), *few[:-1], str(moved)]
    assert CliRunner().invoke(app, again, catch_exceptions=False).exit_code == 0
    save_file(timm.create_model("resnet10t").state_dict(), moved)
    with pytest.raises(TrainingError, match="pretrained_encoder"):
        CliRunner().invoke(app, again, catch_exceptions=False)
    moved.unlink()
    with pytest.raises(WeightsError, match="cannot be read"):
        CliRunner().invoke(app, again, catch_exceptions=False)


def test_a_dataset_without_validation_photos_trains_too(tmp_path):
    config = BuildConfig(count=8, shard_size=8, validation=0.0, test=0.0, recipe=RecipeConfig(crop=64))
    list(build_dataset([photo_source("samples")], tmp_path / "data", config))
    few = ["--steps", "1,1,1"]
    result = CliRunner().invoke(app, [*arguments(tmp_path / "data", tmp_path / "out"), *few], catch_exceptions=False)
    assert result.exit_code == 0 and "no validation split" in result.output.replace("\n", " ")
    (session,) = read_sessions(tmp_path / "out")
    assert session.command in report_of_run(tmp_path / "out").sections[-1].commands
    rung = load_predictors(tmp_path / "out")["RM_2"].model.config
    assert (rung.score_scale, rung.map_scale) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed = 1\n", "no setting is called speed"),
        ("[loss]\nmapp = 1\n", r"no setting is called loss\.mapp"),
        ('lr = "high"\n', "lr: .* got 'high'"),
        ("ema = 2.0\n", r"ema must lie in \[0, 1\), got 2"),
        ("lr = \n", "expected a TOML file of training settings"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    (tmp_path / "rm.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        train_config(tmp_path / "rm.toml", {})


def test_an_encoders_statistics_stand_unless_the_file_has_others(tmp_path):
    (tmp_path / "rm.toml").write_text("[ladder.base]\nmean = [0.1, 0.2, 0.3]\n")
    base = train_config(tmp_path / "rm.toml", {}).ladder.base
    assert base.mean == (0.1, 0.2, 0.3)
    assert base.std == train_config(None, {}).ladder.base.std


@pytest.mark.parametrize("preset", sorted(CONFIGS.glob("rm-*.toml")), ids=lambda path: path.stem)
def test_presets_are_valid(preset):
    assert list(train_config(preset, {}).steps) == tomllib.loads(preset.read_text())["steps"]


def test_steps_done_again_stand_once(tmp_path):
    """Interrupted after step 5, gone on from the state of step 3."""
    for steps in (range(1, 6), range(4, 8)):
        log = RunLog(tmp_path)
        for step in steps:
            log.add(StepReport("RM_0", step, {"total": float(step)}, 1e-3, None, None))
        log.close()
        time.sleep(1)  # TensorBoard reads the files of a folder in the order of the seconds they are named by
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 8))
    events = EventAccumulator(str(tmp_path / "tensorboard" / "RM_0"))
    events.Reload()
    assert [(point.step, point.value) for point in events.Scalars("loss/total")] == [(n, float(n)) for n in range(1, 8)]
    assert "grad_norm" not in events.Tags()["scalars"]


@pytest.mark.parametrize(("seconds", "text"), [(45, "45 s"), (1200, "20 min"), (4800, "1 h 20 min")])
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
