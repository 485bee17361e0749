"""The driver: deterministic, resumable, honest about what it could not use."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from data_synth.build import BuildConfig, BuildError, build_dataset, plan_shards
from data_synth.photos import PhotoError, find_photos, sample_photos
from data_synth.recipe import Recipe, RecipeConfig, apply_recipe, crop_gt, make_lr
from data_synth.schema import SPLITS, read_manifest, read_split
from data_synth.schema.errors import SchemaError
from data_synth.schema.pixels import encode_png
from data_synth.sr_models import SRModelError, check_output
from finpercep.cli.sr_models import diffusion_sr_factory

CONFIG = BuildConfig(count=14, seed=5, shard_size=4, validation=0.2, test=0.2, sr_batch=3, recipe=RecipeConfig(crop=64))
PHOTOS = [photo for photo in sample_photos() if photo.source_id != "sample:motorcycle"]


class NearestSR:
    """Repeats pixels, plus noise that depends on an image's seed alone. Records the batches it was given."""

    scale = 4

    def __init__(self, name: str = "nearest", version: str = "1", noise: float = 0.02) -> None:
        self.name, self.version, self.noise = name, version, noise
        self.batches: list[int] = []

    def __call__(self, lr: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        self.batches.append(len(lr))
        up = lr.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)
        noise = torch.stack([torch.randn(up.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        return up + self.noise * noise


class BrokenSR(NearestSR):
    """Breaks the protocol in a chosen way."""

    def __init__(self, fault: str) -> None:
        super().__init__("broken")
        self.fault = fault

    def __call__(self, lr: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        good = super().__call__(lr, seeds)
        if self.fault == "nan":
            good[0, 0, 0, 0] = torch.nan
            return good
        return good[..., ::2, ::2]


def nearest_models():
    return {"nearest": NearestSR()}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def build(out, config=CONFIG, photos=PHOTOS, sr_factory=nearest_models, **options):
    return list(build_dataset(photos, out, config, sr_factory=sr_factory, **options))


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
            output = None
            if recipe.model:
                lr = (
                    torch.from_numpy(make_lr(recipe, crop_gt(recipe, photos[row.source_id]))).permute(2, 0, 1)[None].float() / 255
                )
                output = NearestSR()(lr, [recipe.model.seed])[0].clamp(0, 1).permute(1, 2, 0).numpy()
            sample = apply_recipe(recipe, photos[row.source_id], output)
            for name in ("gt", "lr", "sr", "syn"):
                assert np.array_equal(getattr(row, name), getattr(sample, name)), (row.index, name)
            assert np.array_equal(row.mask, sample.mask)
            assert np.allclose(row.map, sample.map, atol=0.51 / 65535)
            assert row.quality_gt == 1.0
            assert 0 <= row.quality_sr <= 1
            seen.append((row.index, recipe.origin))
    assert sorted(index for index, _ in seen) == list(range(14))
    assert {origin for _, origin in seen} >= {"model", "artefact"}


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
    """With the packaged kind of diffusion model, in processes of their own."""
    small_policy.save_pretrained(tmp_path / "policy")
    factory = diffusion_sr_factory(tmp_path / "policy", (1, 2))
    config = dataclasses.replace(CONFIG, count=8, recipe=RecipeConfig(crop=64, model_share=0.8))
    build(tmp_path / "one", config, sr_factory=factory)
    build(tmp_path / "two", config, sr_factory=factory, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    models = read_manifest(tmp_path / "one").notes["counts"]["model"]
    assert set(models) <= {"tiny-1step", "tiny-2step"}
    assert models


def test_a_killed_build_is_finished_without_redoing_what_is_there(built, tmp_path):
    steps = build_dataset(PHOTOS, tmp_path, CONFIG, sr_factory=nearest_models)
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


def test_running_a_finished_build_again_does_nothing(built):
    before = contents(built)
    models = {"nearest": NearestSR()}
    assert [p.done for p in build(built, sr_factory=lambda: models)] == [14]
    assert models["nearest"].batches == []
    assert contents(built) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": dataclasses.replace(CONFIG, seed=6)}, "seed: there 5, now 6"),
        ({"config": dataclasses.replace(CONFIG, recipe=RecipeConfig(crop=80))}, "recipe.crop: there 64, now 80"),
        ({"photos": PHOTOS[:-1]}, "photos.count: there 6, now 5"),
        ({"sr_factory": lambda: {"nearest": NearestSR(version="2")}}, "sr_models.nearest: there '1', now '2'"),
    ],
)
def test_a_folder_of_another_build_is_refused(built, change, named):
    before = contents(built)
    with pytest.raises(BuildError, match=named):
        build(built, **change)
    assert contents(built) == before


def test_a_folder_with_foreign_data_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(BuildError, match="choose an empty folder"):
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
    progress = build(tmp_path / "out", config, find_photos(photo_folder))
    assert progress[-1].done == 20
    assert [message.split(":")[0].rsplit("/")[-1] for message in progress[-1].left_out] == ["0.png", "4.png", "8.png"]
    rows = list(read_split(tmp_path / "out", "train"))
    assert len(rows) == 20
    assert {row.source_id for row in rows} == {f"{n}.png" for n in range(9) if n % 4}
    assert "left out as unreadable or too small: 3" in (tmp_path / "out" / "README.md").read_text()
    assert build(tmp_path / "out", config, find_photos(photo_folder))[-1].left_out == progress[-1].left_out


def test_a_split_without_a_usable_photo_is_an_error(tmp_path, photo_folder):
    for path in photo_folder.iterdir():
        path.write_bytes(b"not a picture")
    with pytest.raises(PhotoError, match="none of its 5 photos can be used"):
        build(tmp_path / "out", photos=find_photos(photo_folder))


# -- SR models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "message"), [("nan", "must be finite"), ("size", r"expected output \(\d, 3, 64, 64\) for x4")])
def test_a_model_that_breaks_its_protocol_stops_the_build(tmp_path, fault, message):
    config = dataclasses.replace(CONFIG, recipe=RecipeConfig(crop=64, model_share=1.0))
    with pytest.raises(SRModelError, match=message):
        build(tmp_path, config, sr_factory=lambda: {"broken": BrokenSR(fault)})
    assert not list(tmp_path.rglob("*.parquet"))


def test_check_output_clamps_and_passes_the_rest():
    model = NearestSR()
    lr = torch.rand(2, 3, 4, 5)
    checked = check_output(model, lr, torch.full((2, 3, 16, 20), 1.5))
    assert checked.max() == 1.0
    half = torch.full((2, 3, 16, 20), 0.5)
    assert torch.equal(check_output(model, lr, half), half)


def test_batches_are_full_and_of_one_model(tmp_path):
    models = {name: NearestSR(name) for name in ("a", "b")}
    config = dataclasses.replace(
        CONFIG, count=16, shard_size=16, validation=0.0, test=0.0, recipe=RecipeConfig(crop=64, model_share=1.0)
    )
    build(tmp_path, config, sr_factory=lambda: models)
    sizes = [model.batches for model in models.values()]
    assert sum(map(sum, sizes)) == 16
    assert all(size == 3 for batches in sizes for size in batches[:-1])


def test_diffusion_variants_differ_by_steps_and_follow_their_seeds(tmp_path, small_policy):
    small_policy.save_pretrained(tmp_path / "policy")
    models = diffusion_sr_factory(tmp_path / "policy")()
    assert sorted(models) == ["tiny-1step", "tiny-2step", "tiny-4step"]
    assert len({model.version for model in models.values()}) == 1
    lr = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = {name: check_output(model, lr, model(lr, [1, 2])) for name, model in models.items()}
    assert not torch.equal(outputs["tiny-1step"], outputs["tiny-4step"])
    model = models["tiny-2step"]
    assert torch.equal(model(lr, [1, 2]), outputs["tiny-2step"])
    assert not torch.equal(model(lr, [1, 3])[1], outputs["tiny-2step"][1])
    small_policy.config = dataclasses.replace(small_policy.config, residual_std=0.1)
    small_policy.save_pretrained(tmp_path / "policy")
    assert diffusion_sr_factory(tmp_path / "policy")()["tiny-1step"].version != model.version


# -- planning -----------------------------------------------------------------------------------------------------------


def test_plan_covers_every_index_once():
    jobs = plan_shards(PHOTOS, dataclasses.replace(CONFIG, count=101, shard_size=7))
    assert [index for job in jobs for index in job.indices] == list(range(101))
    assert max(len(job.indices) for job in jobs) == 7
    assert len({job.path for job in jobs}) == len(jobs)


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"count": 5, "shard_size": 0}, {"count": 5, "seed": -1}, {"count": 5, "validation": 0.6, "test": 0.4}]
)
def test_settings_are_checked_when_built(wrong):
    with pytest.raises(BuildError, match="got"):
        BuildConfig(**wrong)


def test_counts_and_workers_that_cannot_be_are_errors(tmp_path):
    with pytest.raises(BuildError, match="count must exceed"):
        plan_shards(PHOTOS, BuildConfig(count=2))
    with pytest.raises(BuildError, match="workers must be at least 1, got 0"):
        build(tmp_path, workers=0)


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
