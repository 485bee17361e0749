"""Loading for people's own loops: every plane stays where it belongs, every sample comes once."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data_synth.schema import Manifest, Row, SchemaError, ShardRecord, read_split
from data_synth.schema.dataset import write_shard
from data_synth.schema.manifest import shard_path, write_manifest
from finpercep.errors import ConfigError
from finpercep.training.data import Augmentation, draw_augmentation
from finpercep.training.loading import TripletDataset, TripletStream, triplet

HEIGHT, WIDTH, SCALE = 32, 48, 4
TRAIN = 22


def make_row(index: int) -> Row:
    """Pixels that say where they are: gt = (2y, 2x, index), and every other plane is a function of gt at that place."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    gt = np.stack([2 * y, 2 * x, np.full_like(x, index)], axis=-1).astype(np.uint8)
    lr = gt.reshape(HEIGHT // SCALE, SCALE, WIDTH // SCALE, SCALE, 3).mean(axis=(1, 3))
    assert (lr == lr.astype(np.uint8)).all()
    return Row(
        gt=gt, lr=lr.astype(np.uint8), sr=255 - gt, syn=gt[..., ::-1].copy(),
        mask=((x + y) / 255).astype(np.float32), map=((y * WIDTH + x) / 65535).astype(np.float32),
        recipe="{}", source_id=f"photo-{index}", index=index,
        quality_gt=1.0, quality_sr=index / 32, quality_syn=0.5,
    )  # fmt: skip


def write_dataset(folder, sizes=(9, 5, 8)):
    """Training shards of these sizes, and a validation shard of 2."""
    shards, first = [], 0
    parts = [("train", number, len(sizes), size) for number, size in enumerate(sizes)] + [("validation", 0, 1, 2)]
    for split, number, total, size in parts:
        path = shard_path(split, number, total)
        write_shard(folder / path, [make_row(index) for index in range(first, first + size)], {})
        shards.append(ShardRecord(path, split, size, (folder / path).stat().st_size))
        first += size
    write_manifest(folder, Manifest(0, {}, True, tuple(shards), {}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(autouse=True)
def _hub_cache(tmp_path, monkeypatch):
    """`datasets` keeps its notes here, and asks nobody."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub", raising=True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True, raising=False)


def assert_aligned(sample, crop: int) -> None:
    gt = (sample["gt"].double() * 255).round()
    y, x = gt[0] / 2, gt[1] / 2
    assert gt.shape == (3, crop, crop)
    assert (gt[2] == sample["index"]).all()
    assert torch.allclose(sample["map"].double() * 65535, y * WIDTH + x, atol=1e-3)
    assert torch.allclose(sample["mask"].double() * 255, x + y, atol=1e-3)
    assert torch.allclose(sample["sr"].double() * 255, 255 - gt, atol=1e-3)
    assert torch.allclose(sample["syn"].double() * 255, gt.flip(0), atol=1e-3)
    pooled = torch.nn.functional.avg_pool2d(gt[None], SCALE)[0]
    assert torch.allclose(sample["lr"].double() * 255, pooled, atol=1e-3)


@pytest.mark.parametrize("crop", [4, 16, 32])
def test_every_plane_moves_with_gt(folder, crop):
    data = TripletDataset(folder, "train", crop=crop, seed=1)
    placements = set()
    for epoch in range(8):
        data.set_epoch(epoch)
        for sample in data:
            assert_aligned(sample, crop)
            corners = sample["map"][0, 0], sample["map"][0, -1], sample["map"][-1, 0]
            placements.add(tuple(round(float(corner) * 65535) for corner in corners))
    places = ((HEIGHT - crop) // SCALE + 1) * ((WIDTH - crop) // SCALE + 1)
    assert len(placements) <= 8 * places  # 4 turns, 2 mirror images, and corners on the LR grid alone
    assert len(placements) >= (8 * places if crop == 32 else 100)


def test_a_sample_is_typed_as_it_says(folder):
    sample = TripletDataset(folder, "train", crop=16, seed=0)[3]
    shapes = {name: tuple(value.shape) for name, value in sample.items() if isinstance(value, torch.Tensor)}
    assert shapes == {
        "gt": (3, 16, 16), "syn": (3, 16, 16), "sr": (3, 16, 16), "lr": (3, 4, 4), "mask": (16, 16), "map": (16, 16),
        "quality_gt": (), "quality_sr": (), "quality_syn": (),
    }  # fmt: skip
    assert {sample[name].dtype for name in shapes} == {torch.float32}
    assert (sample["source_id"], sample["index"], float(sample["quality_sr"])) == ("photo-3", 3, 3 / 32)


def test_without_augmentation_the_middle_or_everything(folder):
    row = read_split(folder, "train")[2]
    whole = TripletDataset(folder, "train", crop=None, seed=0, augment=False)[2]
    assert np.array_equal(whole["gt"].numpy(), row.gt.transpose(2, 0, 1).astype(np.float32) / 255)
    assert whole["lr"].shape == (3, HEIGHT // SCALE, WIDTH // SCALE)
    middle = TripletDataset(folder, "train", crop=16, seed=0, augment=False)[2]
    assert_aligned(middle, 16)
    assert np.array_equal(middle["map"].numpy(), row.map[8:24, 16:32])
    largest = TripletDataset(folder, "train", crop=None, seed=0)[2]
    assert_aligned(largest, 32)


@pytest.mark.parametrize(("turns", "flip"), [(turns, flip) for turns in range(4) for flip in (False, True)])
def test_an_augmentation_is_a_crop_then_turns_then_a_mirror(turns, flip):
    plane = np.arange(12 * 20).reshape(12, 20)
    expected = np.rot90(plane[4:12, 8:16], turns)
    expected = np.fliplr(expected) if flip else expected
    assert np.array_equal(Augmentation(4, 8, 8, 8, turns, flip).apply(plane), expected)
    small = np.rot90(plane[1:3, 2:4], turns)
    assert np.array_equal(Augmentation(4, 8, 8, 8, turns, flip).apply(plane, 4), np.fliplr(small) if flip else small)


def test_draws_on_the_pixel_grid_are_those_of_contract_runs():
    """`train-rm` resumes runs begun before the LR grid existed: the draws must not change."""
    for seed in range(20):
        rng, again = np.random.default_rng(seed), np.random.default_rng(seed)
        drawn = draw_augmentation(rng, (33, 49), 16)
        top, left, turns, flip = again.integers(18), again.integers(34), again.integers(4), again.integers(2)
        assert drawn == Augmentation(int(top), int(left), 16, 16, int(turns), bool(flip))


def same(one, other) -> bool:
    return all(torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])) for name in one if name != "source_id")


def test_epochs_differ_and_come_back(folder):
    data = TripletDataset(folder, "train", crop=16, seed=1)
    first = list(data)
    data.set_epoch(1)
    assert not any(same(a, b) for a, b in zip(first, data, strict=True))
    data.set_epoch(0)
    assert all(same(a, b) for a, b in zip(first, data, strict=True))
    other_seed = TripletDataset(folder, "train", crop=16, seed=2)
    assert not any(same(a, b) for a, b in zip(first, other_seed, strict=True))


def test_a_plain_loader_collates_in_workers_that_live_on(folder):
    data = TripletDataset(folder, "train", crop=16, seed=1)
    loader = DataLoader(data, batch_size=4, shuffle=True, num_workers=2, persistent_workers=True)
    for epoch in range(2):
        data.set_epoch(epoch)
        batches = list(loader)
        assert batches[0]["gt"].shape == (4, 3, 16, 16)
        assert batches[0]["lr"].shape == (4, 3, 4, 4)
        assert batches[0]["quality_sr"].dtype == torch.float32
        assert len(batches[0]["source_id"]) == 4
        found = torch.cat([batch["index"] for batch in batches]).tolist()
        assert sorted(found) == list(range(TRAIN))
        maps = dict(zip(found, torch.cat([batch["map"] for batch in batches]), strict=True))
        assert all(torch.equal(maps[sample["index"]], sample["map"]) for sample in data)


# -- the stream ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle_buffer", [0, 1, 7, 100])
@pytest.mark.parametrize("epoch", [0, 3])
def test_the_stream_is_the_dataset_in_another_order(folder, shuffle_buffer, epoch):
    data = TripletDataset(folder, "train", crop=16, seed=1)
    stream = TripletStream(folder, "train", crop=16, seed=1, shuffle_buffer=shuffle_buffer)
    for part in (data, stream):
        part.set_epoch(epoch)
    streamed = list(stream)
    assert sorted(sample["index"] for sample in streamed) == list(range(TRAIN))
    assert all(same(sample, data[sample["index"]]) for sample in streamed)
    again = [sample["index"] for sample in stream]
    assert again == [sample["index"] for sample in streamed]
    if shuffle_buffer == 0 and epoch == 0:
        assert again == list(range(TRAIN))
    if shuffle_buffer == 100:
        stream.set_epoch(epoch + 1)
        assert [sample["index"] for sample in stream] != again


@pytest.mark.parametrize(
    ("world_size", "workers", "shuffle_buffer"), [(1, 2, 4), (1, 2, 0), (2, 0, 4), (2, 2, 4), (2, 2, 0), (3, 0, 4), (3, 2, 4)]
)
def test_ranks_and_workers_share_every_sample_out_once(folder, shuffle_buffer, world_size, workers):
    """Three shards: they go round evenly among 1 and 3 ranks, not among 2; with 3 ranks a second worker has nothing to do."""
    for epoch in (0, 2):
        found = []
        for rank in range(world_size):
            stream = TripletStream(
                folder, "train", crop=16, seed=1, shuffle_buffer=shuffle_buffer, rank=rank, world_size=world_size
            )
            stream.set_epoch(epoch)
            part = [int(index) for batch in DataLoader(stream, batch_size=3, num_workers=workers) for index in batch["index"]]
            assert part
            found += part
        assert sorted(found) == list(range(TRAIN))


def test_epochs_reach_a_streams_persistent_workers(folder):
    stream = TripletStream(folder, "train", crop=16, seed=1, shuffle_buffer=10)
    loader = DataLoader(stream, batch_size=None, num_workers=1, persistent_workers=True)
    expected = TripletDataset(folder, "train", crop=16, seed=1)
    orders = []
    for epoch in (0, 1):
        for part in (stream, expected):
            part.set_epoch(epoch)
        samples = list(loader)
        assert all(same(sample, expected[int(sample["index"])]) for sample in samples)
        orders.append([int(sample["index"]) for sample in samples])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(TRAIN))
    assert orders[0] != orders[1]


# -- what is wrong is named ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TripletDataset, TripletStream])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": 18}, "multiple of the dataset's scale, 4, got 18"),
        ({"crop": 36}, "must fit the stored images, 32x48, got 36"),
        ({"crop": 0}, "crop must be at least 1, got 0"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_bad_settings(folder, kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        next(iter(kind(folder, "train", **({"crop": 16, "seed": 0} | settings))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shuffle_buffer": -1}, "shuffle_buffer must not be negative"),
        ({"rank": 2, "world_size": 2}, "got rank 2 of 2"),
        ({"rank": 1}, "got rank 1 of 1"),
    ],
)
def test_bad_stream_settings(folder, settings, message):
    with pytest.raises(ConfigError, match=message):
        TripletStream(folder, "train", crop=16, seed=0, **settings)


@pytest.mark.parametrize("kind", [TripletDataset, TripletStream])
def test_broken_folders_are_refused_when_opened(tmp_path, folder, kind):
    with pytest.raises(SchemaError, match="shards of split 'test'"):
        kind(folder, "test", crop=16, seed=0)
    with pytest.raises(SchemaError, match=r"finpercep\.json"):
        kind(tmp_path, "train", crop=16, seed=0)


def test_a_source_that_is_nowhere():
    with pytest.raises(SchemaError, match="nobody/nothing-of-the-kind: train: expected a dataset folder, or the id"):
        TripletStream("nobody/nothing-of-the-kind", "train", crop=16, seed=0)


def test_an_lr_of_another_shape():
    row = dataclasses.replace(make_row(0), lr=np.zeros((8, 8, 3), dtype=np.uint8))
    with pytest.raises(SchemaError, match=r"sample 0: lr: expected a whole fraction of gt's size, \(32, 48\), got \(8, 8\)"):
        triplet(row, Augmentation(0, 0, 16, 16))


def test_importing_it_does_not_import_datasets():
    script = "import sys, finpercep.training.loading; print([name for name in ('datasets', 'pyarrow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
