"""One shard: its samples' recipes, SR outputs, pixels and qualities, written as one Parquet file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from data_synth.card import recipe_counts
from data_synth.ground_truth import GroundTruthConfig
from data_synth.photos import Photo, PhotoError, readable
from data_synth.quality import QualityConfig, pseudo_quality
from data_synth.recipe import Recipe, RecipeConfig, Sample, apply_recipe, crop_gt, make_lr, sample_recipe
from data_synth.schema.dataset import Row, write_shard
from data_synth.schema.errors import ImageError
from data_synth.schema.manifest import Split
from data_synth.schema.pixels import RGB8
from data_synth.sr_models import SRModel, check_output

_PHOTOS_IN_MEMORY = 8


@dataclass(frozen=True)
class ShardJob:
    """A shard to make: plain data, sent to workers.

    Attributes:
        split: its split.
        path: its file, relative to the data set's folder.
        indices: the samples in it.
        first: index of the split's first sample.
        photos: the split's photos; sample i falls to photo (i − first) mod their number, so all are used evenly.
    """

    split: Split
    path: str
    indices: range
    first: int
    photos: tuple[Photo, ...]


@lru_cache(maxsize=_PHOTOS_IN_MEMORY)
def _read_photo(photo: Photo, min_side: int) -> RGB8 | ImageError:
    return next(readable([photo], min_side=min_side))[1]


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

    def make(self, job: ShardJob, models: Mapping[str, SRModel]) -> dict[str, Any]:
        """Make and write one shard; returns the metadata written into its footer: build, counts, photos, left_out.

        Raises:
            PhotoError: no photo of the split is usable.
            SRModelError: an SR model broke its protocol.
        """
        with _one_torch_thread():
            left_out: set[str] = set()
            recipes = [self._draw(job, index, models, left_out) for index in job.indices]
            samples = self._apply(job, recipes, models)
            quality_sr = pseudo_quality([s.sr for s in samples], [s.gt for s in samples], self.quality)
            quality_syn = pseudo_quality([s.syn for s in samples], [s.gt for s in samples], self.quality)
        rows = [
            _row(index, recipe, sample, float(sr), float(syn))
            for index, recipe, sample, sr, syn in zip(job.indices, recipes, samples, quality_sr, quality_syn, strict=True)
        ]
        metadata = {
            "build": self.digest,
            "counts": recipe_counts(recipes),
            "photos": sorted({recipe.source_id for recipe in recipes}),
            "left_out": sorted(left_out),
        }
        write_shard(self.out / job.path, rows, metadata)
        return metadata

    def _draw(self, job: ShardJob, index: int, models: Mapping[str, SRModel], left_out: set[str]) -> Recipe:
        """The recipe of a sample. A photo that cannot be used hands its samples to the next one."""
        for step in range(len(job.photos)):
            photo = job.photos[(index - job.first + step) % len(job.photos)]
            pixels = _read_photo(photo, self.recipe.crop)
            if not isinstance(pixels, ImageError):
                rng = np.random.default_rng((self.seed, index))
                versions = {name: model.version for name, model in models.items()}
                return sample_recipe(rng, photo.source_id, pixels.shape[:2], self.recipe, versions)
            left_out.add(str(pixels))
        raise PhotoError(
            f"split {job.split}: none of its {len(job.photos)} photos can be used ({sorted(left_out)[0]}); add photos"
        )

    def _apply(self, job: ShardJob, recipes: Sequence[Recipe], models: Mapping[str, SRModel]) -> list[Sample]:
        photos = {photo.source_id: photo for photo in job.photos}

        def pixels_of(recipe: Recipe) -> RGB8:
            pixels = _read_photo(photos[recipe.source_id], self.recipe.crop)
            if isinstance(pixels, ImageError):
                raise pixels  # it could be read a moment ago: the disk, not the photo
            return pixels

        lrs = {i: make_lr(recipe, crop_gt(recipe, pixels_of(recipe))) for i, recipe in enumerate(recipes) if recipe.model}
        outputs = self._super_resolve(recipes, lrs, models)
        return [apply_recipe(recipe, pixels_of(recipe), outputs.get(i), self.ground_truth) for i, recipe in enumerate(recipes)]

    def _super_resolve(
        self, recipes: Sequence[Recipe], lrs: Mapping[int, RGB8], models: Mapping[str, SRModel]
    ) -> dict[int, npt.NDArray[np.float32]]:
        """SR outputs by position in the shard; batches hold samples of one model in order, so their composition is fixed."""
        positions: dict[str, list[int]] = defaultdict(list)
        for i in lrs:
            if call := recipes[i].model:
                positions[call.name].append(i)
        outputs: dict[int, npt.NDArray[np.float32]] = {}
        for name, members in sorted(positions.items()):
            for start in range(0, len(members), self.sr_batch):
                batch = members[start : start + self.sr_batch]
                lr = torch.from_numpy(np.stack([lrs[i] for i in batch])).permute(0, 3, 1, 2).float() / 255
                seeds = [call.seed for i in batch if (call := recipes[i].model)]
                sr = check_output(models[name], lr, models[name](lr, seeds)).cpu().permute(0, 2, 3, 1).numpy()
                outputs.update(zip(batch, sr, strict=True))
        return outputs


def _row(index: int, recipe: Recipe, sample: Sample, quality_sr: float, quality_syn: float) -> Row:
    return Row(
        gt=sample.gt,
        lr=sample.lr,
        sr=sample.sr,
        syn=sample.syn,
        mask=sample.mask,
        map=sample.map,
        recipe=recipe.to_json(),
        source_id=recipe.source_id,
        index=index,
        quality_gt=1.0,
        quality_sr=quality_sr,
        quality_syn=quality_syn,
    )


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Processes, not threads, fill the cores; and sums split among threads could differ in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
