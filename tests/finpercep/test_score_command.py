"""`finpercep score`, here and through a server: rows, maps, names, exit codes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from data_synth.schema.pixels import encode_png
from finpercep.cli import score as module
from finpercep.cli.map_files import MapFiles
from finpercep.cli.score import score
from finpercep.cli.server_process import ServerProcess
from finpercep.errors import ConfigError
from finpercep.predictor import load_predictors
from tests.fakes import photo

KEYS = ["image", "score", "max_degradation", "mean_degradation", "width", "height", "rung", "digest", "error"]
app = typer.Typer()
app.command()(score)


@pytest.fixture
def pictures(tmp_path):
    paths = [tmp_path / "in" / name for name in ("a.png", "b.png", "small.png")]
    paths[0].parent.mkdir()
    for path, pixels in zip(paths, (photo(40, 56), photo(50, 34, 1), photo(20, 20)), strict=True):
        path.write_bytes(encode_png(pixels))
    return paths


def run(*arguments: object):
    return CliRunner(env={"COLUMNS": "220"}).invoke(app, [str(argument) for argument in arguments])


def rows(result) -> list[dict]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_json_lines_have_the_fixed_names_and_the_predictors_numbers(small_ladder, pictures):
    result = run(*pictures[:2], "--json", "--model", small_ladder)
    assert result.exit_code == 0, result.output
    predictor = load_predictors(small_ladder)["RM_2"]
    for row, path, pixels in zip(rows(result), pictures, (photo(40, 56), photo(50, 34, 1)), strict=False):
        expected = predictor.assess(pixels)
        assert list(row) == KEYS
        assert row == {
            "image": str(path),
            "score": expected.score,
            "max_degradation": expected.max_degradation,
            "mean_degradation": expected.mean_degradation,
            "width": pixels.shape[1],
            "height": pixels.shape[0],
            "rung": "RM_2",
            "digest": predictor.digest,
            "error": None,
        }


def test_a_failed_image_has_an_error_and_nulls_and_the_command_fails(small_ladder, pictures, tmp_path):
    result = run(pictures[2], tmp_path / "absent.png", pictures[0], "--json", "--model", small_ladder)
    small, absent, good = rows(result)
    assert result.exit_code == 1
    assert (small["score"], small["width"], small["error"]) == (None, 20, "image must be at least 32 px on each side, got 20x20")
    assert absent["error"] == f"{tmp_path / 'absent.png'}: no such file" and absent["width"] is None
    assert good["error"] is None and good["score"] is not None


def test_table_names_images_and_numbers(small_ladder, pictures):
    result = run(pictures[0], pictures[2], "--model", small_ladder, "--rung", "RM_0")
    assert result.exit_code == 1
    for words in ("RM_0", "a.png", "56x40", "failed", "at least 32 px", "–"):
        assert words in result.stdout


def test_maps_in_a_folder(small_ladder, pictures, tmp_path):
    result = run(pictures[0], "--map", tmp_path / "maps", "--model", small_ladder)
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "maps" / "a.map.png") as picture:
        assert (picture.mode, picture.size) == ("I;16", (56, 40))
        samples = np.asarray(picture)
    expected = load_predictors(small_ladder)["RM_2"].assess(photo(40, 56)).map.numpy()
    np.testing.assert_allclose(samples / 65535, expected, rtol=0, atol=1e-5)
    with Image.open(tmp_path / "maps" / "a.overlay.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (56, 40))


@pytest.mark.parametrize("name", ["heat.png", "heat.jpg"])
def test_map_of_one_image_under_its_own_name(small_ladder, pictures, tmp_path, name):
    result = run(pictures[0], "--map", tmp_path / name, "--model", small_ladder)
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / name) as picture:
        assert picture.size == (56, 40)


def test_same_numbers_and_maps_through_a_server(small_ladder, pictures, tmp_path):
    local = run(*pictures, "--json", "--model", small_ladder, "--map", tmp_path / "local")
    with ServerProcess(small_ladder) as server:
        remote = run(*pictures, "--json", "--server", server.url, "--map", tmp_path / "remote")
        unknown = run(pictures[0], "--server", server.url, "--rung", "RM_9")
    assert isinstance(unknown.exception, ConfigError) and "RM_0, RM_1" in str(unknown.exception)
    assert local.exit_code == remote.exit_code == 1
    for one, other in zip(rows(local), rows(remote), strict=True):
        assert other.pop("error") is None or "at least 32 px" in one["error"]
        one.pop("error")
        assert one == pytest.approx(other, abs=1e-6)
    for name in ("a", "b"):
        maps = [np.asarray(Image.open(tmp_path / where / f"{name}.map.png")).astype(int) for where in ("local", "remote")]
        assert np.abs(maps[0] - maps[1]).max() <= 1


def test_what_cannot_be_done_is_said(small_ladder, pictures, tmp_path):
    cases = {
        "no map": [pictures[0], "--rung", "RM_0", "--map", tmp_path / "m"],
        "unknown --rung": [pictures[0], "--rung", "RM_9"],
        "give a folder": [*pictures[:2], "--map", tmp_path / "x.png"],
        "overwrite the image": [pictures[0], "--map", pictures[0]],
        "exclude each other": [pictures[0], "--server", "http://127.0.0.1:1"],
    }
    for words, arguments in cases.items():
        result = run(*arguments, "--model", small_ladder)
        assert isinstance(result.exception, ConfigError) and words in str(result.exception)
    assert module.Row.__dataclass_fields__.keys() == set(KEYS)


def test_no_map_is_written_over_a_picture_that_is_to_be_scored(tmp_path):
    for name in ("a.map.png", "a.overlay.png"):
        with pytest.raises(ConfigError, match=f"would overwrite the image .*{name}"):
            MapFiles.plan([tmp_path / "a.png", tmp_path / name], tmp_path)
    MapFiles.plan([tmp_path / "a.png", tmp_path / "a.map.png"], tmp_path / "maps")


def test_images_of_one_name_get_maps_of_their_own(tmp_path):
    images = [tmp_path / name for name in ("x/photo.png", "y/photo.jpg", "photo-2.png", "z/PHOTO.png")]
    maps = MapFiles.plan(images, tmp_path / "maps")
    assert list(maps.stems.values()) == ["photo", "photo-3", "photo-2", "PHOTO-4"]
    assert len(maps.warnings) == 2 and "photo-3" in maps.warnings[0]


def test_lr_pictures_are_shown_to_the_model(small_ladder, pictures, tmp_path):
    """One as a file, several as a folder of the same names; the numbers are the predictor's with that picture."""
    folder = tmp_path / "lr"
    folder.mkdir()
    low = {"a": photo(10, 14, 5), "b": photo(13, 9, 6)}
    for name, pixels in low.items():
        (folder / f"{name}.png").write_bytes(encode_png(pixels))
    predictor = load_predictors(small_ladder)["RM_2"]
    expected = [predictor.assess(photo(40, 56), lr=low["a"]).score, predictor.assess(photo(50, 34, 1), lr=low["b"]).score]
    both = rows(run(*pictures[:2], "--json", "--model", small_ladder, "--lr", folder))
    (one,) = rows(run(pictures[0], "--json", "--model", small_ladder, "--lr", folder / "a.png"))
    assert [row["score"] for row in both] == pytest.approx(expected, abs=1e-6)
    assert one["score"] == pytest.approx(expected[0], abs=1e-6)
    assert abs(expected[0] - predictor.assess(photo(40, 56)).score) > 1e-5
    (tmp_path / "token").write_text("a-token-of-sixteen\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINPERCEP_TOKEN", "a-token-of-sixteen")
        with ServerProcess(small_ladder) as server:
            asked = (*pictures[:2], "--json", "--server", server.url, "--lr", folder)
            served = rows(run(*asked, "--token-file", tmp_path / "token"))
            assert "Bearer TOKEN" in str(run(*asked).exception)
    assert [row["score"] for row in served] == pytest.approx(expected, abs=1e-6)
    for arguments, message in {
        (*pictures[:2], "--lr", folder / "a.png"): "must be a folder when there are 2",
        (*pictures, "--lr", folder): "none for .*small.png",
    }.items():
        with pytest.raises(ConfigError, match=message):
            raise run(*arguments, "--json").exception
