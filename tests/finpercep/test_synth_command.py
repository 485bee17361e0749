"""`finpercep synth`: settings from defaults, a file and flags; one-line errors; explaining what was built."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from data_synth.photos import gather
from data_synth.schema import encode_png, read_split
from finpercep.cli.sr_models import DEFAULT_SOURCES, default_sources, load_networks
from finpercep.cli.synth import synth
from finpercep.cli.synth_config import build_config
from finpercep.errors import ConfigError, FinpercepError
from tests.fakes import photo


def write(path, text):
    path.write_text(text)
    return path


# -- settings -----------------------------------------------------------------------------------------------------------


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    file = write(tmp_path / "c.toml", "count = 50\nseed = 3\n[recipe]\ncrop = 128\n[recipe.mix]\nperturbed = 0.7\n")
    config = build_config(file, {"count": 60, "seed": None})
    assert (config.count, config.seed, config.recipe.crop, config.recipe.mix.perturbed) == (60, 3, 128, 0.7)
    assert config.recipe.mix.model == build_config(None, {}).recipe.mix.model


def test_scale_reaches_both_degradations(tmp_path):
    assert build_config(None, {"recipe.crop": 96}, scale=3).recipe.light.scale == 3
    file = write(tmp_path / "c.toml", "[recipe.degradation]\nscale = 2\n")
    assert build_config(file, {}).recipe.scale == build_config(file, {}).recipe.light.scale == 2


def test_a_table_of_shapes_says_all_that_is_drawn(tmp_path):
    file = write(tmp_path / "c.toml", "[recipe.mask.shapes]\nblob = 1.0\n")
    assert build_config(file, {}).recipe.mask.shapes == {"blob": 1.0}


def test_each_stage_of_a_file_stands_on_the_default_of_its_place(tmp_path):
    text = "[[recipe.degradation.stages]]\nblur_probability = 0.5\n[[recipe.degradation.stages]]\n"
    default, found = build_config(None, {}), build_config(write(tmp_path / "c.toml", text), {})
    first, second = found.recipe.degradation.stages
    assert first.blur_probability == 0.5 and first.kernel == default.recipe.degradation.stages[0].kernel
    assert second == default.recipe.degradation.stages[1] != default.recipe.degradation.stages[0]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("crop = 64", "no setting is called crop"),
        ("[recipe]\nlight_sahre = 0.5", r"no setting is called recipe\.light_sahre"),
        ("[[recipe.degradation.stages]]\nblur_probabilty = 0.0", r"recipe\.degradation\.stages\.blur_probabilty"),
        ("recipe = 3", "recipe is a table of settings, got 3"),
        ('[recipe.degradation]\nscale = "x"', "scale"),
        ("[recipe]\ncrop = 100", "multiple of 16"),
        ("[recipe.mask]\narea = [0.000001, 0.5]", "must cover a pixel"),
        ("count = ", "expected a TOML file"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, text, named):
    with pytest.raises(FinpercepError, match=named):
        build_config(write(tmp_path / "c.toml", text), {})


@pytest.mark.parametrize("scale", [0, 3])
def test_an_impossible_scale_is_named(scale):
    with pytest.raises(FinpercepError, match="scale"):
        build_config(None, {}, scale=scale)


@pytest.mark.parametrize("name", ["synth-laptop", "synth-30k", "synth-x2"])
def test_presets_are_valid(name, pytestconfig):
    assert build_config(pytestconfig.rootpath / "configs" / f"{name}.toml", {}).count >= 2000


# -- the command --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Six photos, and a data set of them."""
    folder = tmp_path_factory.mktemp("synth")
    (folder / "photos").mkdir()
    for number in range(6):
        (folder / "photos" / f"{number}.png").write_bytes(encode_png(photo(72, 80, seed=number)))
    synth(out=folder / "data", photos=[str(folder / "photos")], count=12, crop=64, sr=["random"], no_sr_cache=True, preview=True)
    return folder


def test_a_sample_is_explained_without_repeating_its_settings(folders, capsys):
    synth(out=folders / "data", photos=[str(folders / "photos")], sr=["random"], no_sr_cache=True, explain=3)
    rows = {row.index: row for split in ("train", "validation", "test") for row in read_split(folders / "data", split)}
    assert json.loads(capsys.readouterr().out) == json.loads(rows[3].recipe)
    with Image.open(folders / "data-sample-3.png") as sheet:
        assert np.array_equal(np.asarray(sheet)[16:80, :64], rows[3].gt)


def test_another_builds_sample_is_not_explained_as_this_ones(folders):
    with pytest.raises(FinpercepError, match="count: there 12, now 40"):
        synth(out=folders / "data", photos=[str(folders / "photos")], sr=["random"], no_sr_cache=True, explain=3, count=40)


def test_photos_that_changed_under_their_names_are_noticed(folders, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(6):
        (photos / f"{number}.png").write_bytes((folders / "photos" / f"{(number + 1) % 6}.png").read_bytes())
    with pytest.raises(FinpercepError, match=r"photos\.digest"):
        synth(out=folders / "data", photos=[str(photos)], count=12, crop=64, sr=["random"], no_sr_cache=True)


def test_a_folder_with_other_peoples_files_is_left_alone(folders):
    before = {path: path.read_bytes() for path in (folders / "photos").iterdir()}
    with pytest.raises(FinpercepError, match=r"must be an empty or new folder.*0\.png"):
        synth(out=folders / "photos", photos=[str(folders / "photos")], count=12, crop=64, no_sr=True)
    assert {path: path.read_bytes() for path in (folders / "photos").iterdir()} == before


def test_strict_stops_at_a_damaged_photo(tmp_path, folders):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "0.png").write_bytes((folders / "photos" / "0.png").read_bytes())
    (photos / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(FinpercepError, match=r"bad\.png"):
        synth(out=tmp_path / "out", photos=[str(photos)], count=12, crop=64, no_sr=True, strict=True)
    assert not (tmp_path / "out" / "finpercep.json").exists()


def test_flags_that_do_nothing_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="--engine ray"):
        synth(out=tmp_path / "out", ray_address="auto", no_sr=True)
    with pytest.raises(ConfigError, match="--out is missing"):
        synth(no_sr=True)


def test_a_gallery_needs_the_name_of_a_picture(tmp_path):
    with pytest.raises(ConfigError, match=r"must end in \.png"):
        synth(gallery=tmp_path / "gallery.xyz")


# -- the packaged SR models ---------------------------------------------------------------------------------------------


def test_the_packaged_sources_have_every_family_and_come_perturbed_too():
    models = load_networks(DEFAULT_SOURCES, scale=4).models
    assert {model.family for model in models.values()} >= {"diffusion", "gan", "regression", "perceptual", "random", "perturbed"}
    assert {"tiny", "tiny@00300", "random"} <= models.keys()
    plain = [name for name in models if name.startswith("zoo-") and not name.endswith("~perturbed")]
    assert len(plain) >= 12 and all(f"{name}~perturbed" in models for name in plain)
    again = load_networks(["mine=zoo", "zoo"], scale=4, perturb=False).models
    assert len(again) == 2 * len(plain) and any(name.startswith("mine-") for name in again)


def test_other_scales_have_random_networks_alone_and_that_is_said(capsys):
    assert default_sources(4) == DEFAULT_SOURCES
    assert capsys.readouterr().err == ""
    assert default_sources(2) == ("random",)
    assert "the packaged SR networks are x4" in capsys.readouterr().err


def test_sample_photos_are_the_default():
    assert [source.name for source in gather([])] == ["samples"]
