"""One shard: its samples' recipes, SR outputs, pixels and qualities, written as one Parquet file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from data_synth.card import sample_counts
from data_synth.ground_truth import GroundTruthConfig
from data_synth.photos import Photo
from data_synth.quality import QualityConfig, pseudo_quality
from data_synth.recipe import PhotoSize, Recipe, RecipeConfig, sample_recipe
from data_synth.sample import Ingredients, Sample, apply_recipe, crop_photo, make_lr
from data_synth.schema.dataset import Row, write_shard
from data_synth.schema.manifest import Split
from data_synth.schema.pixels import RGB8
from data_synth.segments import Segmenter
from data_synth.sr_cache import SRCache, cached_super_resolve
from data_synth.sr_models.protocol import SRModel

_PHOTOS_IN_MEMORY = 4


@dataclass(frozen=True)
class Networks:
    """What a build calls on that has to be loaded, once in every process.

    Attributes:
        models: SR models by name.
        segmenter: finds objects for masks.
    """

    models: Mapping[str, SRModel] = field(default_factory=dict)
    segmenter: Segmenter | None = None


NetworkFactory = Callable[[], Networks]
"""Loads them; picklable (a module-level function, or a partial of one)."""


@dataclass(frozen=True)
class Assignment:
    """A sample to make: its index, its photo, and the photo it may take foreign detail from."""

    index: int
    photo: Photo
    donor: Photo | None


@dataclass(frozen=True)
class ShardJob:
    """A shard to make: plain data, sent to workers. ``path`` is relative to the data set's folder."""

    split: Split
    path: str
    samples: tuple[Assignment, ...]


@dataclass(frozen=True)
class ShardMaker:
    """Makes shards of one build. ``digest`` identifies the build and marks its shards; the rest: see `BuildConfig`."""

    out: Path
    digest: str
    seed: int
    sr_batch: int
    recipe: RecipeConfig
    ground_truth: GroundTruthConfig
    quality: QualityConfig
    sr_cache: SRCache | None = None

    def make(self, job: ShardJob, networks: Networks) -> dict[str, Any]:
        """Make and write one shard; returns the metadata written into its footer: build, counts, photos.

        Raises:
            ImageError: a photo that could be read when the build was planned cannot be read now.
            SRModelError: an SR model broke its protocol.
        """
        with _one_torch_thread():
            drawn = [self.draw(assignment, networks) for assignment in job.samples]
            recipes = [recipe for recipe, _ in drawn]
            prepared = self.super_resolve(drawn, range(len(drawn)), networks.models)
            samples = [apply_recipe(recipe, prepared[i], self.ground_truth) for i, recipe in enumerate(recipes)]
            quality_sr = pseudo_quality([s.sr for s in samples], [s.gt for s in samples], self.quality)
            quality_syn = pseudo_quality([s.syn for s in samples], [s.gt for s in samples], self.quality)
        rows = shard_rows(job, recipes, samples, quality_sr, quality_syn)
        metadata = {
            "build": self.digest,
            "counts": sample_counts(recipes, [sample.map for sample in samples]),
            "photos": sorted({recipe.source_id for recipe in recipes}),
        }
        write_shard(self.out / job.path, rows, metadata)
        return metadata

    def replay(self, job: ShardJob, position: int, networks: Networks) -> tuple[Recipe, Ingredients]:
        """One sample of the shard as it was drawn, and what it is made from, for `apply_recipe` and `sr_steps`."""
        with _one_torch_thread():
            drawn = [self.draw(assignment, networks) for assignment in job.samples]
            return drawn[position][0], self.super_resolve(drawn, [position], networks.models)[position]

    def draw(self, assignment: Assignment, networks: Networks) -> tuple[Recipe, Ingredients]:
        """The recipe of a sample, and its ingredients but for the SR output."""
        donor = assignment.donor
        recipe = sample_recipe(
            np.random.default_rng((self.seed, assignment.index)),
            _size(assignment.photo),
            self.recipe,
            networks.models,
            find_donor=(lambda: _size(donor)) if donor else None,
            has_segments=networks.segmenter is not None,
        )
        gt = crop_photo(recipe.crop, _read_photo(assignment.photo))
        ingredients = Ingredients(
            gt=gt,
            lr=make_lr(recipe, gt),
            donor=crop_photo(recipe.donor, _read_photo(donor)) if recipe.donor and donor else None,
            segments=networks.segmenter(gt) if networks.segmenter and recipe.mask.shape == "segments" else None,
        )
        return recipe, ingredients

    def super_resolve(
        self, drawn: Sequence[tuple[Recipe, Ingredients]], wanted: Sequence[int], models: Mapping[str, SRModel]
    ) -> dict[int, Ingredients]:
        """The wanted samples' ingredients with SR outputs. Models run on whole batches, whatever is wanted of them."""
        complete = {i: drawn[i][1] for i in wanted}
        for batch in self._sr_batches([recipe for recipe, _ in drawn]):
            if complete.keys().isdisjoint(batch):
                continue
            recipes = [drawn[i][0] for i in batch]
            name = recipes[0].model.name if recipes[0].model else ""
            lr = np.stack([drawn[i][1].lr for i in batch])
            outputs = cached_super_resolve(self.sr_cache, models[name], lr, [recipe.sr_call() for recipe in recipes])
            for i, sr in zip(batch, outputs, strict=True):
                if i in complete:
                    complete[i] = replace(complete[i], sr_output=sr)
        return complete

    def _sr_batches(self, recipes: Sequence[Recipe]) -> list[list[int]]:
        """Positions of the shard's samples by SR model, in batches: their composition depends on the recipes alone."""
        positions: dict[str, list[int]] = defaultdict(list)
        for i, recipe in enumerate(recipes):
            if recipe.model:
                positions[recipe.model.name].append(i)
        return [
            members[start : start + self.sr_batch]
            for _, members in sorted(positions.items())
            for start in range(0, len(members), self.sr_batch)
        ]


@lru_cache(maxsize=_PHOTOS_IN_MEMORY)
def _read_photo(photo: Photo) -> RGB8:
    return photo.read()


def _size(photo: Photo) -> PhotoSize:
    height, width = _read_photo(photo).shape[:2]
    return PhotoSize(photo.source_id, height, width)


def shard_rows(
    job: ShardJob,
    recipes: Sequence[Recipe],
    samples: Sequence[Sample],
    quality_sr: npt.NDArray[np.float32],
    quality_syn: npt.NDArray[np.float32],
) -> list[Row]:
    """The rows of a shard, one a sample, from what `ShardMaker.make` made."""
    parts = zip(job.samples, recipes, samples, quality_sr.tolist(), quality_syn.tolist(), strict=True)
    return [
        Row(
            gt=sample.gt,
            lr=sample.lr,
            sr=sample.sr,
            syn=sample.syn,
            mask=sample.mask,
            map=sample.map,
            recipe=recipe.to_json(),
            source_id=recipe.source_id,
            index=assignment.index,
            quality_gt=1.0,
            quality_sr=of_sr,
            quality_syn=of_syn,
        )
        for assignment, recipe, sample, of_sr, of_syn in parts
    ]


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Processes, not threads, fill the cores; and sums split among threads could differ in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
