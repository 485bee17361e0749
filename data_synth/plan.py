"""What a build makes before it makes anything: its settings, which sample falls to which photo and shard, and its identity."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from data_synth.ground_truth import GroundTruthConfig
from data_synth.photos import Photo, PhotoScan, PhotoSplit, split_photos
from data_synth.quality import QualityConfig
from data_synth.recipe import RecipeConfig
from data_synth.schema.errors import FinpercepError
from data_synth.schema.manifest import CONTRACT_VERSION, SPLITS, Split, shard_path
from data_synth.shards import Assignment, Networks, ShardJob
from data_synth.sr_models.protocol import SRModelError

GENERATOR_VERSION = 1
"""Raise it when the same recipe gives other pixels: a build that another version began cannot be finished then."""
_LIBRARIES = ("numpy", "scipy", "torch", "pillow", "scikit-image")
"""Libraries whose versions may decide a last bit."""


class BuildError(FinpercepError):
    """A build that cannot start or go on."""


@dataclass(frozen=True)
class BuildConfig:
    """What a data set is made from, beside its photos and networks.

    Attributes:
        count: samples in all splits together.
        seed: with a sample's index, decides everything about it.
        shard_size: samples a shard; also the unit of resuming.
        validation, test: shares of the *photos* held out, and of the samples.
        photo_run: samples taken from a photo before the next one's turn; decoding a large photo can cost more than a sample.
        sr_batch: LR images an SR model gets at once.
        recipe, ground_truth, quality: see there.
    """

    count: int
    seed: int = 0
    shard_size: int = 64
    validation: float = 0.1
    test: float = 0.1
    photo_run: int = 4
    sr_batch: int = 8
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    ground_truth: GroundTruthConfig = field(default_factory=GroundTruthConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)

    def __post_init__(self) -> None:
        for name in ("count", "shard_size", "photo_run", "sr_batch"):
            if getattr(self, name) < 1:
                raise BuildError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise BuildError(f"seed must not be negative, got {self.seed}")
        if self.validation < 0 or self.test < 0 or self.validation + self.test >= 1:
            raise BuildError(f"validation + test must lie in [0, 1), got {self.validation} + {self.test}")


def divide_photos(scan: PhotoScan, config: BuildConfig) -> PhotoSplit:
    """The usable photos, divided: near-duplicates stay together. Raises `PhotoError` when there are too few."""
    return split_photos(scan.usable, validation=config.validation, test=config.test, seed=config.seed, groups=scan.groups)


def plan_shards(split: PhotoSplit, config: BuildConfig) -> tuple[ShardJob, ...]:
    """Divide photos and sample indices among shards."""
    validation, test = (max(1, round(config.count * share)) if share > 0 else 0 for share in (config.validation, config.test))
    held_out = validation + test
    if held_out >= config.count:
        raise BuildError(
            f"count must exceed the {held_out} held-out samples, got {config.count}; raise count, or lower validation and test"
        )
    counts: dict[Split, int] = {"train": config.count - held_out, "validation": validation, "test": test}
    jobs: list[ShardJob] = []
    first = 0
    for name in SPLITS:
        samples = _assign(getattr(split, name), range(first, first + counts[name]), config.photo_run)
        total = -(-counts[name] // config.shard_size)
        for number in range(total):
            own = samples[number * config.shard_size : (number + 1) * config.shard_size]
            jobs.append(ShardJob(name, shard_path(name, number, total), own))
        first += counts[name]
    return tuple(jobs)


def _assign(photos: Sequence[Photo], indices: range, photo_run: int) -> tuple[Assignment, ...]:
    """Photos take turns of ``photo_run`` samples (fewer where some would get no turn).

    The donor is a neighbour, likely to be in memory, and another one on each round.
    """
    run = max(1, min(photo_run, len(indices) // max(1, len(photos))))
    samples = []
    for position, index in enumerate(indices):
        turn = position // run
        number, round_ = turn % len(photos), turn // len(photos)
        step = 1 + round_ % max(1, len(photos) - 1)
        donor = photos[(number + step) % len(photos)] if len(photos) > 1 else None
        samples.append(Assignment(index, photos[number], donor))
    return tuple(samples)


def build_identity(
    scan: PhotoScan, split: PhotoSplit, config: BuildConfig, networks: Networks, versions: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that decides the bytes, as plain JSON; ``versions`` are those of what the configuration only names.

    Raises:
        SRModelError: a model of another scale than the data set's.
    """
    scale = config.recipe.scale
    for name, model in networks.models.items():
        if model.scale != scale:
            raise SRModelError(f"SR model {name} is x{model.scale}, the data set is x{scale}; leave it out or change the scale")
    contents = dict(zip((photo.source_id for photo in scan.usable), scan.contents, strict=True))
    parts = {name: sorted(photo.source_id for photo in getattr(split, name)) for name in SPLITS}
    photos = "\n".join(f"{name} {source_id} {contents[source_id]}" for name, ids in parts.items() for source_id in ids)
    segmenter = networks.segmenter
    record = {
        "contract_version": CONTRACT_VERSION,
        **dataclasses.asdict(config),
        "photos": {"count": len(scan.usable), "digest": hashlib.sha256(photos.encode()).hexdigest()[:16]},
        "sr_models": {name: model.version for name, model in sorted(networks.models.items())},
        "segmenter": {"name": segmenter.name, "version": segmenter.version} if segmenter else None,
        "versions": {**versions, "generator": GENERATOR_VERSION, **{name: version(name) for name in _LIBRARIES}},
    }
    identity: dict[str, Any] = json.loads(json.dumps(record))
    truth = identity["ground_truth"]
    truth["features"] = truth["features"].partition("@")[0]  # not where the weights lie: their version says what they are
    return identity
