"""The driver: photos → data set, in parallel, resumable, the same bytes whatever the number of workers.

The unit of work is a shard. A sample is decided by (seed, its index) and the photo it falls to; SR models run on batches of the
shard's own samples in a fixed composition, so a shard's bytes depend on the configuration alone. Knows no SR model and
no terminal.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_synth.card import add_counts, dataset_card
from data_synth.ground_truth import GroundTruthConfig
from data_synth.photos import Photo, split_photos
from data_synth.quality import QualityConfig
from data_synth.recipe import RecipeConfig
from data_synth.schema.dataset import read_shard_metadata
from data_synth.schema.errors import FinpercepError, SchemaError
from data_synth.schema.manifest import (
    CONTRACT_VERSION,
    MANIFEST_NAME,
    SPLITS,
    Manifest,
    ShardRecord,
    Split,
    read_manifest,
    shard_path,
    write_manifest,
)
from data_synth.schema.pixels import write_atomically
from data_synth.shards import ShardJob, ShardMaker
from data_synth.sr_models import SRFactory, SRModel, no_models


class BuildError(FinpercepError):
    """A build that cannot start or go on."""


@dataclass(frozen=True)
class BuildConfig:
    """What a data set is made from, beside its photos and SR models.

    Attributes:
        count: samples in all splits together.
        seed: with a sample's index, decides everything about it.
        shard_size: samples a shard; also the unit of resuming.
        validation, test: shares of the *photos* held out, and of the samples.
        sr_batch: LR images an SR model gets at once.
        recipe, ground_truth, quality: see there.
    """

    count: int
    seed: int = 0
    shard_size: int = 64
    validation: float = 0.1
    test: float = 0.1
    sr_batch: int = 8
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    ground_truth: GroundTruthConfig = field(default_factory=GroundTruthConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)

    def __post_init__(self) -> None:
        for name in ("count", "shard_size", "sr_batch"):
            if getattr(self, name) < 1:
                raise BuildError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise BuildError(f"seed must not be negative, got {self.seed}")
        if self.validation < 0 or self.test < 0 or self.validation + self.test >= 1:
            raise BuildError(f"validation + test must lie in [0, 1), got {self.validation} + {self.test}")


@dataclass(frozen=True)
class BuildProgress:
    """After each shard.

    Attributes:
        done: samples there by now.
        total: samples in all.
        kept: of those done, samples that an earlier run had made.
        left_out: photos that could not be used so far, as messages that name them.
    """

    done: int
    total: int
    kept: int
    left_out: tuple[str, ...]


def build_dataset(
    photos: Sequence[Photo], out: Path, config: BuildConfig, *, sr_factory: SRFactory = no_models, workers: int = 1
) -> Iterator[BuildProgress]:
    """Build the data set in ``out``, or finish it. The manifest says complete once the iterator is exhausted.

    Args:
        photos: at least three when there are validation and test samples.
        out: an empty or new folder, or one that an interrupted build of the same settings left.
        config: what to build.
        sr_factory: makes the SR models, in every process that needs them.
        workers: processes; with one, the work is done in this process.

    Yields:
        Progress: once for the shards already there, then after every shard.

    Raises:
        BuildError: ``out`` holds a data set of another configuration (names the difference), or ``workers`` < 1.
        PhotoError: too few photos, or none of a split is usable.
        SRModelError: an SR model broke its protocol.
    """
    if workers < 1:
        raise BuildError(f"workers must be at least 1, got {workers}")
    models = sr_factory()
    identity = _identity(photos, config, models)
    _claim(out, config.seed, identity)
    jobs = plan_shards(photos, config)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    metadata = {job.path: found for job in jobs if (found := _kept_shard(out, job, digest))}
    missing = [job for job in jobs if job.path not in metadata]
    _sweep(out, missing)
    kept = sum(len(job.indices) for job in jobs) - sum(len(job.indices) for job in missing)
    done = kept
    yield BuildProgress(done, config.count, kept, _left_out(metadata))
    maker = ShardMaker(out, digest, config.seed, config.sr_batch, config.recipe, config.ground_truth, config.quality)
    for job, made in _make_shards(maker, missing, models, sr_factory, workers):
        metadata[job.path] = made
        done += len(job.indices)
        yield BuildProgress(done, config.count, kept, _left_out(metadata))
    _finish(out, config, identity, jobs, metadata)


def plan_shards(photos: Sequence[Photo], config: BuildConfig) -> list[ShardJob]:
    """Divide photos and sample indices among splits and shards."""
    parts = split_photos(photos, validation=config.validation, test=config.test, seed=config.seed)
    validation, test = (max(1, round(config.count * share)) if share > 0 else 0 for share in (config.validation, config.test))
    held_out = validation + test
    if held_out >= config.count:
        raise BuildError(
            f"count must exceed the {held_out} held-out samples, got {config.count}; raise count, or lower validation and test"
        )
    counts: dict[Split, int] = {"train": config.count - held_out, "validation": validation, "test": test}
    jobs: list[ShardJob] = []
    first = 0
    for split in SPLITS:
        total = -(-counts[split] // config.shard_size)
        for number in range(total):
            start = first + number * config.shard_size
            stop = min(first + counts[split], start + config.shard_size)
            jobs.append(ShardJob(split, shard_path(split, number, total), range(start, stop), first, getattr(parts, split)))
        first += counts[split]
    return jobs


def _make_shards(
    maker: ShardMaker, jobs: Sequence[ShardJob], models: Mapping[str, SRModel], sr_factory: SRFactory, workers: int
) -> Iterator[tuple[ShardJob, dict[str, Any]]]:
    if workers == 1 or len(jobs) <= 1:
        for job in jobs:
            yield job, maker.make(job, models)
        return
    spawn = multiprocessing.get_context("spawn")  # forking a process that has run torch can hang
    pool = ProcessPoolExecutor(min(workers, len(jobs)), spawn, initializer=_start_worker, initargs=(maker, sr_factory))
    try:
        futures = {pool.submit(_make_in_worker, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise BuildError("a worker process died, perhaps for lack of memory; run again with fewer workers to go on") from error
    finally:
        pool.shutdown(cancel_futures=True)


_worker: tuple[ShardMaker, Mapping[str, SRModel]] | None = None
"""What a worker process keeps between shards: models are loaded once."""


def _start_worker(maker: ShardMaker, sr_factory: SRFactory) -> None:
    global _worker
    _worker = (maker, sr_factory())


def _make_in_worker(job: ShardJob) -> dict[str, Any]:
    assert _worker is not None
    maker, models = _worker
    return maker.make(job, models)


# -- resuming -------------------------------------------------------------------------------------------------------


def _identity(photos: Sequence[Photo], config: BuildConfig, models: Mapping[str, SRModel]) -> dict[str, Any]:
    """Everything that decides the bytes, as plain JSON: two builds with equal identity are the same data set."""
    names = "\n".join(sorted(photo.source_id for photo in photos))
    record = {
        "contract_version": CONTRACT_VERSION,
        **dataclasses.asdict(config),
        "photos": {"count": len(photos), "digest": hashlib.sha256(names.encode()).hexdigest()[:16]},
        "sr_models": {name: model.version for name, model in sorted(models.items())},
    }
    identity: dict[str, Any] = json.loads(json.dumps(record))
    return identity


def _claim(out: Path, seed: int, identity: dict[str, Any]) -> None:
    """Take an empty folder, or one that an equal build left; refuse any other."""
    if (out / MANIFEST_NAME).exists():
        try:
            earlier = read_manifest(out)
        except SchemaError as error:
            raise BuildError(f"{error}; choose another --out or delete the folder") from error
        if earlier.config != identity:
            difference = ", ".join(_differences(earlier.config, identity))
            raise BuildError(f"{out} holds a data set built otherwise ({difference}); choose another --out, or the same settings")
        return
    if (out / "data").exists():
        raise BuildError(f"{out}: has a data folder but no {MANIFEST_NAME}; choose an empty folder")
    write_manifest(out, Manifest(seed, identity, False, (), {}))


def _differences(earlier: object, now: object, name: str = "") -> list[str]:
    if isinstance(earlier, dict) and isinstance(now, dict):
        keys = sorted({*earlier, *now})
        found = (_differences(earlier.get(key), now.get(key), f"{name}.{key}" if name else key) for key in keys)
        return [line for lines in found for line in lines]
    return [] if earlier == now else [f"{name}: there {earlier!r}, now {now!r}"]


def _kept_shard(out: Path, job: ShardJob, digest: str) -> dict[str, Any] | None:
    """The footer of a shard an earlier run finished; None when it has to be made."""
    try:
        metadata = read_shard_metadata(out / job.path)
    except SchemaError:
        return None  # absent or damaged: made again
    return metadata if metadata.get("build") == digest and metadata["rows"] == len(job.indices) else None


def _sweep(out: Path, missing: Sequence[ShardJob]) -> None:
    """Remove what a killed run left half written."""
    for job in missing:
        shard = out / job.path
        for partial in shard.parent.glob(f".{shard.name}.*.partial"):
            partial.unlink(missing_ok=True)


def _left_out(metadata: Mapping[str, dict[str, Any]]) -> tuple[str, ...]:
    return tuple(sorted({message for record in metadata.values() for message in record["left_out"]}))


def _finish(
    out: Path, config: BuildConfig, identity: dict[str, Any], jobs: Sequence[ShardJob], metadata: Mapping[str, dict[str, Any]]
) -> None:
    shards = tuple(ShardRecord(job.path, job.split, len(job.indices), (out / job.path).stat().st_size) for job in jobs)
    notes = {
        "photos": len({source for record in metadata.values() for source in record["photos"]}),
        "left_out": list(_left_out(metadata)),
        "counts": add_counts(metadata[job.path]["counts"] for job in jobs),
    }
    write_atomically(out / "README.md", dataset_card(shards, notes, config.seed).encode())
    write_manifest(out, Manifest(config.seed, identity, True, shards, notes))
