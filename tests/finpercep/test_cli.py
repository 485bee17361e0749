"""The command line: fixed names, one-line errors, and what works right after installation."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tomllib

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from data_synth.build import build_dataset
from data_synth.photos import find_photos, photo_source, split_photos
from data_synth.plan import BuildConfig
from data_synth.recipe import RecipeConfig
from data_synth.schema import read_split
from finpercep.cli import app, main
from finpercep.cli.console import fail
from finpercep.cli.photo_pairs import PhotoPairs, degradation_config
from finpercep.cli.server_process import ServerProcess
from finpercep.cli.training_photos import FEW, HELD_OUT, photos_of, photos_of_folders
from finpercep.errors import ConfigError, TrainingError
from finpercep.sr.tiny import TinyConfig, TinyDiffusionSR, build_scheduler, build_unet
from tests.fakes import photo

COMMANDS = ["demo", "synth", "train-sr", "train-zoo", "train-rm", "eval-rm", "export"]
COMMANDS += ["score", "serve", "finetune", "upscale", "report", "doctor"]


def finpercep(*arguments, cwd=None):
    command = [sys.executable, "-m", "finpercep", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd)


def test_the_fixed_commands_are_there_with_an_example_each():
    runner = CliRunner()
    listing = runner.invoke(app, ["--help"]).output
    for command in COMMANDS:
        assert command in listing
        assert f"finpercep {command}" in runner.invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output


def test_an_error_is_one_line_and_debug_shows_the_traceback(tmp_path):
    failed = finpercep("report", tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error:") and failed.stderr.count("\n") == 1
    assert "Traceback" in finpercep("report", tmp_path, "--debug").stderr


def test_a_picture_is_scored_with_the_packaged_model(tmp_path):
    """Right after installation: no download, no server, no settings."""
    Image.fromarray(photo(96, 120)).save(tmp_path / "photo.png")
    done = finpercep("score", "photo.png", "--map", "heat.png", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert 0 <= result["score"] <= 1 and (result["width"], result["height"]) == (120, 96)
    with Image.open(tmp_path / "heat.png") as heat:
        assert heat.size == (120, 96)


def test_pictures_are_upscaled_with_the_packaged_model(tmp_path):
    Image.fromarray(photo(20, 30)).save(tmp_path / "small.png")
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    done = finpercep("upscale", "small.png", "bad.png", "--out", "big", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 1
    assert "bad.png" in done.stderr
    with Image.open(tmp_path / "big" / "small.png") as big:
        assert big.size == (120, 80)


def test_messages_are_never_read_as_markup(capsys):
    with pytest.raises(SystemExit):
        fail("pip install 'finpercep[train]' for [/data/x]")
    assert "error: pip install 'finpercep[train]' for [/data/x]" in capsys.readouterr().err


def test_an_upscaled_picture_never_overwrites_its_input(tmp_path):
    Image.fromarray(photo(16, 16)).save(tmp_path / "small.png")
    before = (tmp_path / "small.png").read_bytes()
    failed = finpercep("upscale", "small.png", "--out", ".", "--device", "cpu", cwd=tmp_path)
    assert failed.returncode == 1 and "would be overwritten" in failed.stderr
    assert (tmp_path / "small.png").read_bytes() == before


def test_finetune_resumes_against_the_same_reward_and_refuses_another(tmp_path, small_ladder):
    """The command itself, against a real server process; then the same run against another ladder."""
    (tmp_path / "photos").mkdir()
    for seed in range(2):
        Image.fromarray(photo(48, 48, seed)).save(tmp_path / "photos" / f"{seed}.png")
    sizes = ["--steps", "3", "--batch-size", "1", "--crop", "32", "--device", "cpu"]
    command = ["finetune", "--data", "photos", "--out", "run", *sizes]
    with ServerProcess(small_ladder) as server:
        done = finpercep(*command, "--reward", server.url, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "final" / "policy.json").exists()
    with ServerProcess() as packaged:
        refused = finpercep(*command, "--reward", packaged.url, cwd=tmp_path)
    assert refused.returncode == 1
    assert "rewards.ladder.rungs.RM_0" in refused.stderr.replace("\n", " ")


def test_a_dataset_is_training_data_and_its_contact_sheet_is_not(tmp_path):
    config = BuildConfig(count=12, shard_size=6, validation=0.2, test=0.2, recipe=RecipeConfig(crop=64))
    list(build_dataset([photo_source("samples")], tmp_path, config))
    Image.fromarray(photo(256, 256)).save(tmp_path / "preview.png")
    found = photos_of(tmp_path, 64, hold_out=True, seed=0)
    photos, held_out = found.train, found.held_out
    assert (len(photos), len(held_out)) == (8, 4) and all(pixels.shape == (64, 64, 3) for pixels in photos)
    rows = [row for split in ("validation", "test") for row in read_split(tmp_path, split)]
    for one, two in itertools.combinations(range(4), 2):
        assert (found.photo_of[one] == found.photo_of[two]) is (rows[one].source_id == rows[two].source_id)
    with pytest.raises(ConfigError, match="at most the dataset's sample size 64, got 128"):
        photos_of(tmp_path, 128, hold_out=False, seed=0)


@pytest.mark.parametrize(("validation", "held_out"), [(0.25, 3), (0.0, None)])
def test_a_dataset_holds_out_the_splits_that_it_has(tmp_path, validation, held_out):
    config = BuildConfig(count=12, shard_size=6, validation=validation, test=0.0, recipe=RecipeConfig(crop=64))
    list(build_dataset([photo_source("samples")], tmp_path, config))
    if held_out is None:
        with pytest.raises(ConfigError, match="no sample in test or validation"):
            photos_of(tmp_path, 64, hold_out=True, seed=0)
    else:
        assert len(photos_of(tmp_path, 64, hold_out=True, seed=0).held_out) == held_out


def write_photos(folder, seeds):
    folder.mkdir()
    for seed in seeds:
        Image.fromarray(photo(64, 64, seed)).save(folder / f"{folder.name}-{seed:02d}.png")


def test_a_photo_and_its_copy_are_on_one_side(tmp_path):
    """Every photo lies in both folders, or twice in one: neither may be trained on and held out."""
    for name in ("a", "b"):
        write_photos(tmp_path / name, range(10))
    together = photos_of_folders([tmp_path / "a", tmp_path / "b"], 64, 64, seed=0)
    for seed in range(10):
        Image.fromarray(photo(64, 64, seed)).save(tmp_path / "a" / f"copy-{seed:02d}.png")
    for photos in (together, photos_of(tmp_path / "a", 64, hold_out=True, seed=0)):
        train, held_out = ({pixels.tobytes() for pixels in side} for side in (photos.train, photos.held_out))
        assert (len(photos.train), len(photos.held_out)) == (18, 2) and not train & held_out


def test_without_copies_a_folder_is_divided_by_names_alone_and_what_cannot_be_read_is_named(tmp_path, capsys):
    """So runs that were begun before copies were looked for go on."""
    write_photos(tmp_path / "photos", range(16))
    (tmp_path / "photos" / "99.png").write_bytes(b"not a picture")
    split = split_photos(find_photos(tmp_path / "photos"), validation=0.0, test=HELD_OUT, seed=3)
    whole = [one for one in split.train if one.source_id != "99.png"]
    assert len(split.test) == 2 and len(whole) == 14
    for read in (
        lambda: photos_of_folders([tmp_path / "photos"], 64, 64, seed=3),
        lambda: photos_of(tmp_path / "photos", 64, hold_out=True, seed=3),
    ):
        photos = read()
        assert capsys.readouterr().err.count("99.png") == 1
        assert [pixels.tobytes() for pixels in photos.train] == [one.read().tobytes() for one in whole]
        assert [pixels.tobytes() for pixels in photos.held_out] == [one.read().tobytes() for one in split.test]
        assert photos.source.photos == split.train


@pytest.mark.parametrize(("count", "held_out"), [(3, 2), (12, 2), (50, 5)])
def test_the_monitor_has_two_photos_at_least_and_few_are_warned_of(tmp_path, capsys, count, held_out):
    write_photos(tmp_path / "photos", range(count))
    photos = photos_of(tmp_path / "photos", 64, hold_out=True, seed=0)
    assert (len(photos.held_out), photos.photo_of) == (held_out, list(range(held_out)))
    assert capsys.readouterr().err.count(f"the monitor has {held_out} held-out photos") == (held_out < FEW)
    photos_of(tmp_path / "photos", 64, hold_out=False, seed=0)
    assert not capsys.readouterr().err


def test_held_out_crops_say_which_photo_they_are_of():
    pairs = PhotoPairs([photo(64, 64, seed) for seed in range(3)], 32, degradation_config(4, blind=False))
    hr, lr, photo_of = pairs.held_out(5, 0, [4, 4, 9])
    assert photo_of.tolist() == [4, 4, 9, 4, 4]
    assert all(torch.equal(*sides) for sides in zip((hr, lr), pairs.fixed(5, 0), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--refresh-set", "steps=9"], "--refresh-set is of --refresh"),
        (["--refresh-set", "steps"], "--refresh-set steps: expected KEY=VALUE"),
        (["--policy-set", "lora_rank"], "--policy-set lora_rank: expected KEY=VALUE"),
        (["--on-alarm", "stop"], "--on-alarm is of --monitor"),
        (["--model-root", "x"], "nothing is to be refreshed"),
        (["--refresh", "20", "--model-root", "x"], "go together"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(tmp_path, options, message):
    Image.fromarray(photo(48, 48)).save(tmp_path / "a.png")
    command = ["finetune", "--reward", "packaged", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--crop", "32"]
    refused = CliRunner().invoke(app, [*command, *options])
    assert isinstance(refused.exception, ConfigError) and message in str(refused.exception)


def test_a_policy_of_another_scale_gets_lr_pictures_of_its_own(tmp_path):
    Image.fromarray(photo(64, 64)).save(tmp_path / "a.png")
    TinyDiffusionSR(build_unet((16, 16, 16)), build_scheduler(), TinyConfig(scale=2, num_steps=1)).save_pretrained(
        tmp_path / "x2"
    )
    run = tmp_path / "run"
    sizes = ["--crop", "32", "--batch-size", "1", "--steps", "3", "--device", "cpu"]
    command = ["finetune", "--reward", "packaged", "--data", str(tmp_path), "--out", str(run), "--policy", str(tmp_path / "x2")]
    done = CliRunner().invoke(app, [*command, *sizes])
    assert done.exit_code == 0, done.output
    config = tomllib.loads((run / "config.toml").read_text())
    assert config["photos"]["count"] == 1 and config["data"] == tmp_path.name

    Image.fromarray(photo(64, 64, 1)).save(tmp_path / "b.png")
    refused = CliRunner().invoke(app, [*command, *sizes])
    assert isinstance(refused.exception, TrainingError) and "photos.digest" in str(refused.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("upscale", "a.png", "--out", "x", "--policy", "nothing"), "expected tiny, tiny@00300, a folder"),
        (("train-rm", "--data", "nowhere", "--out", "x"), "built by `finpercep synth`"),
        (("finetune", "--reward", "http://127.0.0.1:9", "--data", "nowhere", "--out", "x"), "expected a folder of photos"),
        (("eval-rm", "--data", "nowhere"), "built by `finpercep synth`"),
    ],
)
def test_bad_input_is_said_clearly(tmp_path, arguments, message):
    failed = finpercep(*arguments, cwd=tmp_path)
    assert failed.returncode == 1
    assert message in failed.stderr.replace("\n", " ")
    assert "Traceback" not in failed.stderr


def test_a_negative_seed_is_refused(tmp_path):
    refused = CliRunner().invoke(app, ["train-sr", "--data", str(tmp_path), "--out", str(tmp_path / "x"), "--seed", "-1"])
    assert refused.exit_code == 2 and "--seed" in refused.output


def test_a_full_gpu_is_one_line_and_other_runtime_errors_keep_their_traceback(monkeypatch, capsys):
    def failing(error):
        def command():
            raise error

        monkeypatch.setattr("finpercep.cli.app", command)
        monkeypatch.setattr("sys.argv", ["finpercep", "finetune"])

    failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the GPU's memory is full")
    failing(RuntimeError("a size does not fit"))
    with pytest.raises(RuntimeError, match="does not fit"):
        main()
