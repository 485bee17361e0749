"""``finpercep.json``, the manifest of CONTRACT 1: which version, how it was built, which shards belong to it.

Knows nothing about rows or pictures.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from data_synth.schema.errors import SchemaError
from data_synth.schema.pixels import write_atomically

CONTRACT = "finpercep-dataset"
CONTRACT_VERSION = 1
MANIFEST_NAME = "finpercep.json"

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class ShardRecord:
    """One Parquet file of the manifest. ``path`` is relative to the data set's folder; ``bytes`` its size on disk."""

    path: str
    split: Split
    rows: int
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """``finpercep.json``: written incomplete before the first shard, complete after the last.

    Attributes:
        seed: the build's seed.
        config: the build's whole configuration, plain JSON.
        complete: all shards are there.
        shards: empty until complete.
        notes: counts for readers (samples by origin, photos left out, …); nothing depends on them.
    """

    seed: int
    config: dict[str, Any]
    complete: bool
    shards: tuple[ShardRecord, ...]
    notes: dict[str, Any]


def shard_path(split: Split, number: int, total: int) -> str:
    """Where shard ``number`` of ``total`` of a split lies, relative to the data set's folder."""
    return f"data/{split}-{number:05d}-of-{total:05d}.parquet"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``finpercep.json``, atomically."""
    record = {
        "contract": CONTRACT,
        "version": CONTRACT_VERSION,
        "seed": manifest.seed,
        "config": manifest.config,
        "complete": manifest.complete,
        "shards": [vars(shard) for shard in manifest.shards],
        "notes": manifest.notes,
    }
    write_atomically(folder / MANIFEST_NAME, (json.dumps(record, indent=2, sort_keys=True) + "\n").encode())


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``finpercep.json``.

    Raises:
        SchemaError: it is missing, not of this contract and version, or a field is missing or of the wrong type.
    """
    path = folder / MANIFEST_NAME
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise SchemaError(str(path), "(file)", "the manifest of a data set built by `finpercep synth`", "no such file") from error
    except ValueError as error:
        raise SchemaError(str(path), "(file)", "JSON", str(error)) from error
    if not isinstance(record, dict):
        raise SchemaError(str(path), "(file)", "a JSON object", type(record).__name__)
    for field, expected in (("contract", CONTRACT), ("version", CONTRACT_VERSION)):
        if record.get(field) != expected:
            raise SchemaError(str(path), field, repr(expected), record.get(field))
    for field, kind in (("seed", int), ("config", dict), ("complete", bool), ("shards", list), ("notes", dict)):
        if not isinstance(record.get(field), kind):
            raise SchemaError(str(path), field, kind.__name__, record.get(field))
    shards = tuple(_shard_record(path, number, shard) for number, shard in enumerate(record["shards"]))
    return Manifest(record["seed"], record["config"], record["complete"], shards, record["notes"])


def _shard_record(path: Path, number: int, record: object) -> ShardRecord:
    kinds: dict[str, type] = {"path": str, "split": str, "rows": int, "bytes": int}
    if not isinstance(record, dict) or set(record) != set(kinds):
        raise SchemaError(str(path), f"shards[{number}]", f"an object with {sorted(kinds)}", record)
    for field, kind in kinds.items():
        if not isinstance(record[field], kind) or (field == "split" and record[field] not in SPLITS):
            raise SchemaError(
                str(path), f"shards[{number}].{field}", f"one of {SPLITS}" if field == "split" else kind.__name__, record[field]
            )
    return ShardRecord(**record)
