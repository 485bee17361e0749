"""The driver: deterministic, resumable, honest about what it could not use."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from data_synth.build import build_dataset, plan_build
from data_synth.engines.processes import ProcessEngine
from data_synth.photos import PhotoError, photo_source
from data_synth.plan import BuildConfig, BuildError
from data_synth.recipe import OriginMix, Recipe, RecipeConfig
from data_synth.regions import MaskConfig
from data_synth.sample import Ingredients, apply_recipe, crop_photo, make_lr
from data_synth.schema import SPLITS, read_manifest, read_split
from data_synth.schema.errors import SchemaError
from data_synth.schema.pixels import encode_png
from data_synth.shards import Networks
from data_synth.sr_models.protocol import SRModelError, check_output
from finpercep.cli.sr_models import network_factory
from tests.data_synth.fake_sr import BrokenSR, NearestSR, nearest_network

CONFIG = BuildConfig(count=14, seed=5, shard_size=4, validation=0.2, test=0.2, sr_batch=3, recipe=RecipeConfig(crop=64))
MODELS_ONLY = OriginMix(model=1, perturbed=0, hallucination=0, artefact=0)
SAMPLES = photo_source("samples")
PHOTOS = tuple(photo for photo in SAMPLES.photos if photo.source_id != "sample:motorcycle")


def broken_network():
    return Networks({"broken": BrokenSR("nan")})


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def build(out, config=CONFIG, photos=PHOTOS, networks=nearest_network, **options):
    sources = [dataclasses.replace(SAMPLES, photos=tuple(photos))]
    return list(build_dataset(sources, out, config, networks=networks, **options))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("built")
    build(out)
    return out


def test_rows_are_what_their_recipes_say(built):
    """Every row can be remade from its photo, its recipe and the SR model's output."""
    photos = {photo.source_id: photo.read() for photo in PHOTOS}
    seen = []
    for split in SPLITS:
        for row in read_split(built, split):
            recipe = Recipe.from_json(row.recipe)
            gt = crop_photo(recipe.crop, photos[row.source_id])
            lr, output = make_lr(recipe, gt), None
            if recipe.model:
                batch = torch.from_numpy(lr).permute(2, 0, 1)[None].float() / 255
                sr = NearestSR()(batch, [recipe.sr_call()])[0].clamp(0, 1).permute(1, 2, 0)
                output = (sr * 255).round().byte().numpy()
            donor = crop_photo(recipe.donor, photos[recipe.donor.source_id]) if recipe.donor else None
            sample = apply_recipe(recipe, Ingredients(gt, lr, output, donor))
            for name in ("gt", "lr", "sr", "syn"):
                assert np.array_equal(getattr(row, name), getattr(sample, name)), (row.index, name)
            assert np.array_equal(row.mask, sample.mask)
            assert np.allclose(row.map, sample.map, atol=0.51 / 65535)
            assert row.quality_gt == 1.0
            assert 0 <= row.quality_sr <= 1
            seen.append((row.index, recipe.origin))
    assert sorted(index for index, _ in seen) == list(range(14))
    assert {origin for _, origin in seen} >= {"model", "artefact"}


def test_a_replayed_sample_is_the_stored_one(built):
    sources = [dataclasses.replace(SAMPLES, photos=PHOTOS)]
    planned = plan_build(sources, built, CONFIG, networks=nearest_network)
    rows = {row.index: row for split in SPLITS for row in read_split(built, split)}
    for index in (0, 7, 13):
        recipe, ingredients = planned.replay(index)
        assert recipe.to_json() == rows[index].recipe
        assert np.array_equal(apply_recipe(recipe, ingredients).syn, rows[index].syn)
    with pytest.raises(BuildError, match="samples 0 to 13, got 14"):
        planned.replay(14)


def test_no_photo_stands_in_two_splits(built):
    sources = [{row.source_id for row in read_split(built, split)} for split in SPLITS]
    assert all(sources)
    assert sum(map(len, sources)) == len(set.union(*sources))


def test_manifest_and_card_tell_counts(built):
    manifest = read_manifest(built)
    assert manifest.complete
    assert manifest.seed == 5
    assert sum(shard.rows for shard in manifest.shards) == 14
    assert sum(manifest.notes["counts"]["origin"].values()) == 14
    assert manifest.config["sr_models"] == {"nearest": "1"}
    card = (built / "README.md").read_text()
    assert "| train | 8 |" in card
    assert "split: validation" in card


def test_two_builds_are_byte_identical_and_seeds_differ(built, tmp_path):
    build(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(built)
    build(tmp_path / "other", dataclasses.replace(CONFIG, seed=6))
    assert contents(tmp_path / "other") != contents(built)


def test_worker_count_changes_no_byte(tmp_path, small_policy):
    """With the packaged kind of diffusion model, whole and perturbed, in processes of their own."""
    small_policy.save_pretrained(tmp_path / "policy")
    factory = network_factory([f"policy:{tmp_path / 'policy'}"], scale=4)
    mix = OriginMix(model=0.5, perturbed=0.4, hallucination=0.1, artefact=0)
    config = dataclasses.replace(CONFIG, count=8, recipe=RecipeConfig(crop=64, mix=mix))
    build(tmp_path / "one", config, networks=factory)
    build(tmp_path / "two", config, networks=factory, engine=ProcessEngine(2))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert set(read_manifest(tmp_path / "one").notes["counts"]["family"]) >= {"diffusion", "perturbed"}


def test_other_masks_cost_no_sr_time_and_a_cache_changes_no_byte(built, tmp_path):
    networks = nearest_network()
    build(tmp_path / "first", networks=lambda: networks, sr_cache=tmp_path / "cache")
    assert contents(tmp_path / "first") == contents(built)
    calls = len(networks.models["nearest"].batches)
    masks = dataclasses.replace(CONFIG, recipe=RecipeConfig(crop=64, mask=MaskConfig(area=(0.2, 0.3))))
    build(tmp_path / "second", masks, networks=lambda: networks, sr_cache=tmp_path / "cache")
    assert len(networks.models["nearest"].batches) == calls > 0
    rows = [list(read_split(tmp_path / name, "train")) for name in ("first", "second")]
    assert all(np.array_equal(one.sr, two.sr) and not np.array_equal(one.mask, two.mask) for one, two in zip(*rows, strict=True))


def test_a_killed_build_is_finished_without_redoing_what_is_there(built, tmp_path):
    sources = [dataclasses.replace(SAMPLES, photos=PHOTOS)]
    steps = build_dataset(sources, tmp_path, CONFIG, networks=nearest_network)
    assert [next(steps).done for _ in range(3)] == [0, 4, 8]
    steps.close()  # killed after two shards …
    assert not read_manifest(tmp_path).complete
    with pytest.raises(SchemaError, match="complete"):
        read_split(tmp_path, "train")
    partial_file = tmp_path / "data" / ".validation-00000-of-00001.parquet.1.partial"
    partial_file.write_bytes(b"half a shard")  # … while writing the next
    progress = build(tmp_path)
    assert progress[0].kept == progress[0].done == 8
    assert progress[-1].done == 14
    assert not partial_file.exists()
    assert contents(tmp_path) == contents(built)


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_lost_or_damaged_shard_is_made_again(built, tmp_path, damage):
    build(tmp_path)
    shard = tmp_path / "data" / "train-00001-of-00002.parquet"
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-100])
    assert build(tmp_path)[0].kept == 10
    assert contents(tmp_path) == contents(built)


_BUILD = """
import sys
from pathlib import Path
from tests.data_synth.test_build import CONFIG, build
build(Path(sys.argv[1]))
"""


def test_kill_9_at_any_moment_loses_and_doubles_nothing(built, tmp_path):
    """A real process, killed again and again at growing delays after its first shard appears, until a run gets through."""
    finished = False
    for attempt in range(12):
        process = subprocess.Popen([sys.executable, "-c", _BUILD, str(tmp_path)])
        before = len(list(tmp_path.glob("data/*.parquet")))
        while process.poll() is None and len(list(tmp_path.glob("data/*.parquet"))) == before:
            time.sleep(0.005)
        time.sleep(0.02 * attempt)
        process.send_signal(signal.SIGKILL)
        if finished := process.wait() == 0:
            break
    assert attempt > 0
    if not finished:
        build(tmp_path)
    assert contents(tmp_path) == contents(built)


def test_running_a_finished_build_again_does_nothing(built):
    before = contents(built)
    networks = nearest_network()
    assert [p.done for p in build(built, networks=lambda: networks)] == [14]
    assert networks.models["nearest"].batches == []
    assert contents(built) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": dataclasses.replace(CONFIG, seed=6)}, "seed: there 5, now 6"),
        ({"config": dataclasses.replace(CONFIG, recipe=RecipeConfig(crop=80))}, "recipe.crop: there 64, now 80"),
        ({"photos": PHOTOS[:-1]}, "photos.count: there 6, now 5"),
        ({"networks": lambda: Networks({"nearest": NearestSR(version="2")})}, "sr_models.nearest: there '1', now '2'"),
    ],
)
def test_a_folder_of_another_build_is_refused(built, change, named):
    before = contents(built)
    with pytest.raises(BuildError, match=named):
        build(built, **change)
    assert contents(built) == before


def test_settings_that_never_made_a_shard_do_not_claim_the_folder(tmp_path):
    with pytest.raises(SRModelError):
        build(tmp_path, dataclasses.replace(CONFIG, recipe=RecipeConfig(crop=64, mix=MODELS_ONLY)), networks=broken_network)
    assert build(tmp_path)[-1].done == 14


def test_a_folder_with_foreign_data_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(BuildError, match="must be an empty or new folder"):
        build(tmp_path)


@pytest.fixture
def photo_folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 256, (70, 70, 3), dtype=np.uint8)
        (folder / f"{number}.png").write_bytes(encode_png(pixels))
    return folder


def test_damaged_photos_are_named_and_the_build_goes_on(tmp_path, photo_folder):
    for number in range(0, 9, 4):
        (photo_folder / f"{number}.png").write_bytes(b"not a picture")
    config = dataclasses.replace(CONFIG, count=20, validation=0.0, test=0.0)
    photos = photo_source(str(photo_folder)).photos
    progress = build(tmp_path / "out", config, photos)
    assert progress[-1].done == 20
    assert [message.split(":")[0].rsplit("/")[-1] for message in progress[-1].left_out] == ["0.png", "4.png", "8.png"]
    rows = list(read_split(tmp_path / "out", "train"))
    assert len(rows) == 20
    assert {row.source_id for row in rows} == {f"{n}.png" for n in range(9) if n % 4}
    assert "left out as unreadable or too small: 3" in (tmp_path / "out" / "README.md").read_text()
    assert build(tmp_path / "out", config, photos)[-1].left_out == progress[-1].left_out


def test_photos_of_which_none_can_be_used_are_an_error(tmp_path, photo_folder):
    for path in photo_folder.iterdir():
        path.write_bytes(b"not a picture")
    with pytest.raises(PhotoError):
        build(tmp_path / "out", photos=photo_source(str(photo_folder)).photos)
    assert not (tmp_path / "out" / "finpercep.json").exists()


def test_near_duplicates_stay_in_one_split(tmp_path):
    """The same photo under three names, one of them smaller and one recompressed."""
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in PHOTOS[:5]:
        picture = Image.fromarray(photo.read())
        name = photo.source_id.split(":")[1].split(".")[0]
        picture.save(folder / f"{name}.png")
        picture.resize((picture.width * 3 // 4, picture.height * 3 // 4)).save(folder / f"small-{name}.png")
        picture.save(folder / f"{name}-again.jpg", quality=60)
    config = dataclasses.replace(CONFIG, count=60, shard_size=20, validation=0.2, test=0.2)
    build(tmp_path / "out", config, photo_source(str(folder)).photos)
    names = [
        {row.source_id.removeprefix("small-").split("-again")[0].split(".")[0] for row in read_split(tmp_path / "out", s)}
        for s in SPLITS
    ]
    assert sum(map(len, names)) == len(set.union(*names)) == 5
    assert read_manifest(tmp_path / "out").notes["near_duplicates"] == 10


# -- SR models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "message"), [("nan", "must be finite"), ("size", r"expected output \(\d, 3, 64, 64\) for x4")])
def test_a_model_that_breaks_its_protocol_stops_the_build(tmp_path, fault, message):
    config = dataclasses.replace(CONFIG, recipe=RecipeConfig(crop=64, mix=MODELS_ONLY))
    with pytest.raises(SRModelError, match=message):
        build(tmp_path, config, networks=lambda: Networks({"broken": BrokenSR(fault)}))
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_model_of_another_scale_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(SRModelError, match="SR model nearest is x2, the data set is x4"):
        build(tmp_path, networks=lambda: Networks({"nearest": NearestSR(scale=2)}))
    assert not (tmp_path / "finpercep.json").exists()


def test_check_output_clamps_and_passes_the_rest():
    model = NearestSR()
    lr = torch.rand(2, 3, 4, 5)
    checked = check_output(model, lr, torch.full((2, 3, 16, 20), 1.5))
    assert checked.max() == 1.0
    half = torch.full((2, 3, 16, 20), 0.5)
    assert torch.equal(check_output(model, lr, half), half)


def test_batches_are_full_and_of_one_model(tmp_path):
    networks = Networks({name: NearestSR(name) for name in ("a", "b")})
    recipe = RecipeConfig(crop=64, mix=MODELS_ONLY)
    config = dataclasses.replace(CONFIG, count=16, shard_size=16, validation=0.0, test=0.0, recipe=recipe)
    build(tmp_path, config, networks=lambda: networks)
    sizes = [[len(batch) for batch in model.batches] for model in networks.models.values()]
    assert sum(map(sum, sizes)) == 16
    assert all(size == 3 for batches in sizes for size in batches[:-1])


# -- planning -----------------------------------------------------------------------------------------------------------


def planned(out, config, photos=PHOTOS):
    return plan_build([dataclasses.replace(SAMPLES, photos=tuple(photos))], out, config)


def test_plan_covers_every_index_once(tmp_path):
    jobs = planned(tmp_path, dataclasses.replace(CONFIG, count=101, shard_size=7)).jobs
    assert [sample.index for job in jobs for sample in job.samples] == list(range(101))
    assert max(len(job.samples) for job in jobs) == 7
    assert len({job.path for job in jobs}) == len(jobs)


def test_photos_take_even_turns_and_donors_are_others(tmp_path):
    build = planned(tmp_path, dataclasses.replace(CONFIG, count=100, photo_run=4))
    train = [sample for job in build.jobs if job.split == "train" for sample in job.samples]
    used = [sample.photo for sample in train]
    assert {used.count(photo) for photo in build.split.train} <= {len(train) // len(build.split.train) + d for d in range(-4, 5)}
    assert used[:4] == [used[0]] * 4 and used[4] != used[0]
    assert all(sample.donor in build.split.train and sample.donor != sample.photo for sample in train)


def test_every_photo_gets_a_turn_where_samples_are_few(tmp_path):
    build = planned(tmp_path, dataclasses.replace(CONFIG, count=6, validation=0, test=0, photo_run=4))
    assert len({sample.photo for job in build.jobs for sample in job.samples}) == 6


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"count": 5, "shard_size": 0}, {"count": 5, "seed": -1}, {"count": 5, "validation": 0.6, "test": 0.4}]
)
def test_settings_are_checked_when_built(wrong):
    with pytest.raises(BuildError, match="got"):
        BuildConfig(**wrong)


def test_counts_that_cannot_be_are_errors(tmp_path):
    with pytest.raises(BuildError, match="count must exceed"):
        planned(tmp_path, BuildConfig(count=2, recipe=RecipeConfig(crop=64)))


def test_identity_is_plain_json(built):
    record = json.loads((built / "finpercep.json").read_text())
    assert record["config"]["recipe"]["mask"]["area"] == [0.005, 0.6]
    assert record["config"]["contract_version"] == 1


# -- preview ------------------------------------------------------------------------------------------------------------


def test_preview_shows_every_sample(built, tmp_path):
    from PIL import Image

    from data_synth.preview import contact_sheet, heat, row_panels, write_contact_sheet

    rows = list(read_split(built, "train"))
    write_contact_sheet(tmp_path / "sheet.png", rows)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    for panel, x in zip(row_panels(rows[0]), range(0, 5 * 68, 68), strict=True):
        assert np.array_equal(pixels[14 : 14 + 64, x : x + 64], panel)
    assert heat(np.array([[0.0, 1.0]], dtype=np.float32)).astype(int).sum(axis=-1)[0, 1] > 400
    with pytest.raises(ValueError, match="at least one sample"):
        contact_sheet([])
