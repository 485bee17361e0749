"""CONTRACT 1: what is on disk can be read back, by us and by plain `datasets`, and nothing about it changes silently."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_synth.card import dataset_card
from data_synth.schema import COLUMNS, CONTRACT_VERSION, Manifest, Row, SchemaError, ShardRecord, read_manifest, read_split
from data_synth.schema.dataset import read_shard_metadata, write_shard
from data_synth.schema.manifest import shard_path, write_manifest
from finpercep.errors import WireError

IMAGE = "struct<bytes: binary, path: string>"
FROZEN = {
    "version": 1,
    "columns": [
        ("gt", IMAGE),
        ("lr", IMAGE),
        ("sr", IMAGE),
        ("syn", IMAGE),
        ("mask", IMAGE),
        ("map", IMAGE),
        ("recipe", "string"),
        ("source_id", "string"),
        ("index", "int64"),
        ("quality_gt", "float"),
        ("quality_sr", "float"),
        ("quality_syn", "float"),
    ],
}
"""Contract 1, version 1. A change here breaks data sets that people have built: raise CONTRACT_VERSION instead."""


def make_row(index: int) -> Row:
    rng = np.random.default_rng(index)
    rgb = [rng.integers(0, 256, (size, size + 16, 3), dtype=np.uint8) for size in (32, 8, 32, 32)]
    mask = (rng.integers(0, 256, (32, 48)) / 255).astype(np.float32)
    degradation = (rng.integers(0, 65536, (32, 48)) / 65535).astype(np.float32)
    rgb[1] = rgb[1][:, :12]
    return Row(*rgb, mask, degradation, json.dumps({"n": index}), f"photo-{index}", index, 1.0, 0.25, 0.5)


@pytest.fixture
def folder(tmp_path):
    """Two training shards of 10 and 3 rows, one validation shard."""
    parts = [("train", 0, 2, range(10)), ("train", 1, 2, range(10, 13)), ("validation", 0, 1, range(13, 15))]
    shards = []
    for split, number, total, indices in parts:
        path = shard_path(split, number, total)
        write_shard(tmp_path / path, [make_row(i) for i in indices], {"note": split})
        shards.append(ShardRecord(path, split, len(indices), (tmp_path / path).stat().st_size))
    write_manifest(tmp_path, Manifest(3, {"count": 15}, True, tuple(shards), {"photos": 15}))
    notes = {"photos": 15, "left_out": [], "near_duplicates": 0, "sources": [], "counts": {}}
    settings = {"seed": 3, "recipe": {"crop": 48, "degradation": {"scale": 4}}, "ground_truth": {"alpha": 0.5, "features": "x"}}
    (tmp_path / "README.md").write_text(dataset_card(shards, notes, settings))
    return tmp_path


def assert_same(row: Row, expected: Row) -> None:
    for name in COLUMNS:
        value, wanted = getattr(row, name), getattr(expected, name)
        if isinstance(wanted, np.ndarray):
            assert value.dtype == wanted.dtype, name
            assert np.array_equal(value, wanted), name
        else:
            assert value == wanted, name


def test_round_trip_is_exact(folder):
    train = read_split(folder, "train")
    assert len(train) == 13
    for index, row in enumerate(train):
        assert_same(row, make_row(index))
    assert_same(train[11], make_row(11))
    assert_same(train[-1], make_row(12))
    assert [row.index for row in train[8:12]] == [8, 9, 10, 11]
    assert len(read_split(folder, "validation")) == 2
    with pytest.raises(IndexError, match="0…12, got 13"):
        train[13]


def test_samples_travel_to_loader_workers(folder):
    train = read_split(folder, "train")
    assert len(pickle.dumps(train)) < 2000
    assert_same(pickle.loads(pickle.dumps(train))[4], make_row(4))


def test_manifest_round_trip(folder):
    manifest = read_manifest(folder)
    assert (manifest.seed, manifest.config, manifest.complete) == (3, {"count": 15}, True)
    assert [(shard.split, shard.rows) for shard in manifest.shards] == [("train", 10), ("train", 3), ("validation", 2)]
    assert read_shard_metadata(folder / manifest.shards[1].path) == {"note": "train", "rows": 3}


def test_plain_load_dataset_reads_it(folder, tmp_path_factory):
    """In a process of its own, offline: what a user of `datasets` who has never heard of us gets."""
    script = """
import json, sys, numpy as np
from datasets import load_dataset
data = load_dataset(sys.argv[1])
row = data["train"][11]
print(json.dumps({
    "splits": {name: part.num_rows for name, part in data.items()},
    "features": {name: str(feature) for name, feature in data["train"].features.items()},
    "modes": {name: row[name].mode for name in ("gt", "lr", "sr", "syn", "mask", "map")},
    "map": int(np.asarray(row["map"]).astype(np.int64).sum()), "gt": int(np.asarray(row["gt"]).astype(np.int64).sum()),
    "index": row["index"], "quality_sr": row["quality_sr"],
}))
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path_factory.mktemp("hf"))}
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    expected = make_row(11)
    assert found["splits"] == {"train": 13, "validation": 2}
    assert list(found["features"]) == [name for name, _ in FROZEN["columns"]]
    assert found["features"]["map"].startswith("Image(")
    assert found["features"]["quality_syn"] == "Value('float32')"
    assert found["modes"] == {"gt": "RGB", "lr": "RGB", "sr": "RGB", "syn": "RGB", "mask": "L", "map": "I;16"}
    assert found["map"] == int(np.rint(expected.map.astype(np.float64) * 65535).sum())
    assert found["gt"] == int(expected.gt.sum())
    assert (found["index"], found["quality_sr"]) == (11, 0.25)


def test_columns_and_version_are_frozen(folder):
    assert FROZEN["version"] == CONTRACT_VERSION
    schema = pq.read_schema(folder / shard_path("train", 0, 2))
    assert [(field.name, str(field.type)) for field in schema] == FROZEN["columns"]
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert {name for name, feature in features.items() if feature["_type"] == "Image"} == {"gt", "lr", "sr", "syn", "mask", "map"}
    manifest = json.loads((folder / "finpercep.json").read_text())
    assert sorted(manifest) == ["complete", "config", "contract", "notes", "seed", "shards", "version"]
    assert (manifest["contract"], manifest["version"]) == ("finpercep-dataset", 1)


# -- what is wrong is named ---------------------------------------------------------------------------------------------


def edit_manifest(folder, change):
    path = folder / "finpercep.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "field", "received"),
    [
        (lambda r: r.update(version=2), "version", 2),
        (lambda r: r.update(contract="other"), "contract", "other"),
        (lambda r: r.update(seed="3"), "seed", "3"),
        (lambda r: r.pop("config"), "config", None),
        (lambda r: r["shards"][1].update(split="dev"), "shards[1].split", "dev"),
        (lambda r: r["shards"][0].update(rows="ten"), "shards[0].rows", "ten"),
        (lambda r: r["shards"][0].pop("bytes"), "shards[0]", None),
    ],
)
def test_wrong_manifest(folder, change, field, received):
    edit_manifest(folder, change)
    with pytest.raises(SchemaError) as caught:
        read_split(folder, "train")
    assert caught.value.where == str(folder / "finpercep.json")
    assert caught.value.field == field
    if received is not None:
        assert caught.value.received == received


def test_error_survives_a_process_border():
    error = pickle.loads(pickle.dumps(WireError("file", "field", "this", [1])))
    assert type(error) is WireError
    assert (error.where, error.field, error.received) == ("file", "field", [1])
    assert str(error) == "file: field: expected this, got [1]"


def test_missing_and_damaged_manifest(folder):
    (folder / "finpercep.json").write_text("{")
    with pytest.raises(SchemaError, match="expected JSON"):
        read_split(folder, "train")
    (folder / "finpercep.json").write_text("[]")
    with pytest.raises(SchemaError, match="a JSON object"):
        read_split(folder, "train")
    (folder / "finpercep.json").unlink()
    with pytest.raises(SchemaError, match=r"finpercep\.json: \(file\): .*no such file"):
        read_split(folder, "train")


def test_unfinished_data_set(folder):
    edit_manifest(folder, lambda record: record.update(complete=False))
    with pytest.raises(SchemaError, match="complete"):
        read_split(folder, "train")


def test_absent_split(folder):
    with pytest.raises(SchemaError, match=r"shards of split 'test', got .*train.*validation"):
        read_split(folder, "test")


def rewrite(path, change):
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path, row_group_size=8)


def test_missing_column(folder):
    path = folder / shard_path("train", 1, 2)
    rewrite(path, lambda table: table.drop_columns(["map"]))
    with pytest.raises(SchemaError, match="map: expected a column of type struct") as caught:
        read_split(folder, "train")
    assert caught.value.where == str(path)


def test_wrong_column_type(folder):
    path = folder / shard_path("train", 1, 2)
    rewrite(path, lambda table: table.set_column(8, "index", table["index"].cast(pa.int32())))
    with pytest.raises(SchemaError, match="index: expected int64, got 'int32'"):
        read_split(folder, "train")


def test_lost_rows(folder):
    rewrite(folder / shard_path("train", 0, 2), lambda table: table.slice(0, 9))
    with pytest.raises(SchemaError, match="rows: expected 10, got 9"):
        read_split(folder, "train")


def test_missing_and_truncated_shard(folder):
    path = folder / shard_path("train", 0, 2)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(SchemaError, match="damaged file") as caught:
        read_split(folder, "train")
    assert caught.value.where == str(path)
    path.unlink()
    with pytest.raises(SchemaError, match="no such file"):
        read_split(folder, "train")


def set_pictures(path, column, pictures):
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = pa.array([None if data is None else {"bytes": data, "path": None} for data in pictures], type=image)
    position = list(COLUMNS).index(column)
    rewrite(path, lambda table: table.set_column(position, column, values))


def png(pixels):
    from data_synth.schema import encode_png

    return encode_png(pixels)


@pytest.mark.parametrize(
    ("column", "data", "message"),
    [
        ("map", b"\x89PNG broken", "map: expected a readable PNG"),
        ("gt", None, "gt: expected PNG bytes"),
        ("map", png(np.zeros((32, 48), dtype=np.uint8)), "map: expected a picture of mode I;16, got 'L'"),
        ("sr", png(np.zeros((32, 48), dtype=np.uint8)), "sr: expected a picture of mode RGB, got 'L'"),
        ("mask", png(np.zeros((16, 48), dtype=np.uint8)), r"mask: expected the size of gt, \(32, 48\), got \(16, 48\)"),
    ],
)
def test_wrong_picture_is_named_with_its_row(folder, column, data, message):
    path = folder / shard_path("train", 1, 2)
    good = [record["bytes"] for record in pq.read_table(path)[column].to_pylist()]
    set_pictures(path, column, [good[0], data, good[2]])
    train = read_split(folder, "train")
    assert_same(train[10], make_row(10))
    with pytest.raises(SchemaError, match=message) as caught:
        train[11]
    assert caught.value.where == f"{path}, row 1"


def test_foreign_parquet(folder):
    path = folder / shard_path("train", 1, 2)
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pytest.raises(SchemaError, match="footer entry"):
        read_split(folder, "train")


def test_schema_is_light():
    """The server and the client import it: neither torch nor `datasets` nor Arrow may come along."""
    script = "import sys, data_synth.schema; print([m for m in ('torch', 'datasets', 'pyarrow', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_copying_the_folder_keeps_it_whole(folder, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved, ignore=shutil.ignore_patterns("elsewhere"))
    assert len(read_split(moved, "train")) == 13
