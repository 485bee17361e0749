"""The driver: photos → data set, in parallel, resumable, the same bytes whatever makes the shards, in whatever order.

The unit of work is a shard. A sample is decided by (seed, its index) and the photo it falls to; SR models run on batches of the
shard's own samples in a fixed composition, so a shard's bytes depend on the configuration alone. Knows no SR model and
no terminal.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_synth.card import add_counts, dataset_card
from data_synth.engines import Engine
from data_synth.engines.processes import ProcessEngine
from data_synth.ground_truth import resolve_ground_truth
from data_synth.photos import PhotoScan, PhotoSource, PhotoSplit, scan_photos
from data_synth.plan import BuildConfig, BuildError, build_identity, divide_photos, plan_shards
from data_synth.quality import resolve_quality
from data_synth.recipe import Recipe
from data_synth.sample import Ingredients
from data_synth.schema.dataset import read_shard_metadata
from data_synth.schema.errors import SchemaError
from data_synth.schema.manifest import MANIFEST_NAME, Manifest, ShardRecord, read_manifest, write_manifest
from data_synth.schema.pixels import write_atomically
from data_synth.shards import NetworkFactory, Networks, ShardJob, ShardMaker
from data_synth.sr_cache import SRCache

SCAN_NAME = ".photo-scan.json"
"""What the photos were found to be, kept beside the data so that resuming need not read them all again."""

SCAN_THREADS = 8
"""Most photos that are decoded at once while all are looked through: a large PNG takes hundreds of MiB."""


@dataclass(frozen=True)
class BuildProgress:
    """After each shard.

    Attributes:
        done: samples there by now.
        total: samples in all.
        kept: of those done, samples that an earlier run had made.
        left_out: photos that cannot be used, as messages that name them.
    """

    done: int
    total: int
    kept: int
    left_out: tuple[str, ...]


class LoadedNetworks:
    """Networks loaded in this process; pickled, only how to load them travels."""

    def __init__(self, factory: NetworkFactory, loaded: Networks | None = None) -> None:
        self._factory, self._loaded = factory, loaded

    def __call__(self) -> Networks:
        """The networks, loaded once a process."""
        if self._loaded is None:
            self._loaded = self._factory()
        return self._loaded

    def __reduce__(self) -> tuple[type[LoadedNetworks], tuple[NetworkFactory]]:
        return LoadedNetworks, (self._factory,)


@dataclass(frozen=True)
class Build:
    """A planned build; nothing is made yet. See `plan_build`, which makes it.

    Attributes:
        out: the data set's folder.
        config: what is built, with nothing left open.
        choices: what was chosen for the map's features and the pseudo quality, and why; one line each.
        sources: the photos as they were given.
        scan: which of them can be used.
        split: how those are divided.
        networks: SR models and segmenter.
        jobs: the shards.
        maker: makes them.
        identity: everything that decides the bytes, as plain JSON: two builds with equal identity are the same data set.
    """

    out: Path
    config: BuildConfig
    choices: tuple[str, ...]
    sources: tuple[PhotoSource, ...]
    scan: PhotoScan
    split: PhotoSplit
    networks: LoadedNetworks
    jobs: tuple[ShardJob, ...]
    maker: ShardMaker
    identity: dict[str, Any]

    def run(self, engine: Engine) -> Iterator[BuildProgress]:
        """Make what is missing. The manifest says complete once the iterator is exhausted. Errors: see `build_dataset`."""
        _claim(self.out, self.config.seed, self.identity)
        metadata = {job.path: found for job in self.jobs if (found := self._kept(job))}
        missing = [job for job in self.jobs if job.path not in metadata]
        _sweep(self.out, missing)
        kept = sum(len(job.samples) for job in self.jobs if job.path in metadata)
        done = kept
        yield BuildProgress(done, self.config.count, kept, self.scan.left_out)
        for job, made in engine.run(self.maker, missing, self.networks):
            if not (self.out / job.path).exists():
                raise BuildError(f"{self.out / job.path} was made but is not here; --out must lie on storage all machines see")
            metadata[job.path] = made
            done += len(job.samples)
            yield BuildProgress(done, self.config.count, kept, self.scan.left_out)
        self._finish(metadata)

    def replay(self, index: int) -> tuple[Recipe, Ingredients]:
        """Sample ``index`` as it is drawn, and what it is made from. Writes nothing.

        Raises:
            BuildError: no sample has this index, or ``out`` holds a data set of another configuration.
        """
        _refuse_other(self.out, self.identity)
        for job in self.jobs:
            for position, assignment in enumerate(job.samples):
                if assignment.index == index:
                    return self.maker.replay(job, position, self.networks())
        raise BuildError(f"the data set has samples 0 to {self.config.count - 1}, got {index}")

    def _kept(self, job: ShardJob) -> dict[str, Any] | None:
        """The footer of a shard an earlier run finished; None when it has to be made."""
        try:
            metadata = read_shard_metadata(self.out / job.path)
        except SchemaError:
            return None  # absent or damaged: made again
        return metadata if metadata.get("build") == self.maker.digest and metadata["rows"] == len(job.samples) else None

    def _finish(self, metadata: Mapping[str, dict[str, Any]]) -> None:
        shards = tuple(
            ShardRecord(job.path, job.split, len(job.samples), (self.out / job.path).stat().st_size) for job in self.jobs
        )
        notes = {
            "photos": len({source for record in metadata.values() for source in record["photos"]}),
            "left_out": list(self.scan.left_out),
            "near_duplicates": sum(len(group) - 1 for group in self.scan.groups),
            "sources": [
                {"name": s.name, "photos": len(s.photos), "licence": s.licence, "origin": s.origin} for s in self.sources
            ],
            "counts": add_counts(metadata[job.path]["counts"] for job in self.jobs),
        }
        write_atomically(self.out / "README.md", dataset_card(shards, notes, self.identity).encode())
        write_manifest(self.out, Manifest(self.config.seed, self.identity, True, shards, notes))


def build_dataset(
    sources: Sequence[PhotoSource],
    out: Path,
    config: BuildConfig,
    *,
    networks: NetworkFactory = Networks,
    engine: Engine | None = None,
    sr_cache: Path | None = None,
) -> Iterator[BuildProgress]:
    """Build the data set in ``out``, or finish it: `plan_build`, then `Build.run`, one process when ``engine`` is None.

    Yields:
        Progress: once for the shards already there, then after every shard.

    Raises:
        BuildError: ``out`` holds a data set of another configuration (names the difference).
        PhotoError: too few usable photos.
        SRModelError: an SR model of another scale, or one that broke its protocol.
        EngineError: workers that cannot be started, or died.
    """
    build = plan_build(sources, out, config, networks=networks, sr_cache=sr_cache)
    yield from build.run(engine or ProcessEngine())


def plan_build(
    sources: Sequence[PhotoSource],
    out: Path,
    config: BuildConfig,
    *,
    networks: NetworkFactory = Networks,
    sr_cache: Path | None = None,
    strict: bool = False,
    on_scanned: Callable[[int], None] | None = None,
) -> Build:
    """Look through the photos, load the networks, and divide the work.

    Args:
        sources: photos, at least three usable ones when there are validation and test samples.
        out: an empty or new folder, or one that an interrupted build of the same settings left.
        config: what to build.
        networks: loads the SR models and the segmenter, in every process that needs them.
        sr_cache: folder that keeps SR outputs, so that other masks cost no SR time; None: none are kept.
        strict: the first photo that cannot be used is an error.
        on_scanned: told, while photos are looked through, how many have been.

    Raises:
        BuildError: ``out`` holds something else.
        ImageError: ``strict``, and a photo cannot be used.
        PhotoError: too few usable photos.
        SRModelError: an SR model of another scale.
        GroundTruthError, QualityError: features or a metric whose weights cannot be had.
    """
    _earlier_build(out)  # before anything is written beside it
    photos = [photo for source in sources for photo in source.photos]
    truth, quality = resolve_ground_truth(config.ground_truth), resolve_quality(config.quality)
    config = replace(config, ground_truth=truth.config, quality=replace(config.quality, metric=quality.metric))
    loaded = LoadedNetworks(networks)
    loaded()  # what cannot be loaded shows before all photos are looked through
    scan = scan_photos(
        photos,
        min_side=config.recipe.crop,
        workers=min(os.cpu_count() or 1, SCAN_THREADS),
        cache_file=out / SCAN_NAME,
        on_scanned=on_scanned,
        strict=strict,
    )
    split = divide_photos(scan, config)
    versions = {"features": truth.features.version, "quality": quality.version}
    identity = build_identity(scan, split, config, loaded(), versions)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    maker = ShardMaker(
        out=out.absolute(),
        digest=digest,
        seed=config.seed,
        sr_batch=config.sr_batch,
        recipe=config.recipe,
        ground_truth=config.ground_truth,
        quality=config.quality,
        sr_cache=SRCache(sr_cache.absolute()) if sr_cache else None,
    )
    choices = (f"map features: {truth.features.reason}", f"pseudo quality: {quality.reason}")
    return Build(out, config, choices, tuple(sources), scan, split, loaded, plan_shards(split, config), maker, identity)


# -- resuming -------------------------------------------------------------------------------------------------------


def _earlier_build(out: Path) -> Manifest | None:
    """The manifest an earlier build left in ``out``; None for an empty or new folder. Refuses a folder with anything else."""
    if (out / MANIFEST_NAME).exists():
        try:
            return read_manifest(out)
        except SchemaError as error:
            raise BuildError(f"{error}; choose another --out or delete the folder") from error
    if out.exists() and not out.is_dir():
        raise BuildError(f"{out}: must be a folder, got a file; choose another --out")
    others = sorted(path.name for path in out.glob("*") if not path.name.startswith("."))
    if others:
        raise BuildError(f"{out}: must be an empty or new folder, or a data set to finish, got one with {others[0]}")
    return None


def _refuse_other(out: Path, identity: dict[str, Any]) -> None:
    earlier = _earlier_build(out)
    if earlier and earlier.config != identity:
        difference = ", ".join(_differences(earlier.config, identity))
        raise BuildError(f"{out} holds a data set built otherwise ({difference}); choose another --out, or the same settings")


def _claim(out: Path, seed: int, identity: dict[str, Any]) -> None:
    """Take an empty folder, one that an equal build left, or one where no shard was ever finished; refuse any other."""
    earlier = _earlier_build(out)
    if earlier and (earlier.complete or any(out.glob("data/*.parquet"))):
        _refuse_other(out, identity)
    else:
        write_manifest(out, Manifest(seed, identity, False, (), {}))


def _differences(earlier: object, now: object, name: str = "") -> list[str]:
    if isinstance(earlier, dict) and isinstance(now, dict):
        keys = sorted({*earlier, *now})
        found = (_differences(earlier.get(key), now.get(key), f"{name}.{key}" if name else key) for key in keys)
        return [line for lines in found for line in lines]
    return [] if earlier == now else [f"{name}: there {earlier!r}, now {now!r}"]


def _sweep(out: Path, missing: Sequence[ShardJob]) -> None:
    """Remove what a killed run left half written."""
    for job in missing:
        shard = out / job.path
        for partial in shard.parent.glob(f".{shard.name}.*.partial"):
            partial.unlink(missing_ok=True)
