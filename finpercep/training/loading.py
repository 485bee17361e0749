"""The dataset (contract 1) for people's own PyTorch loops: map-style, or as a stream from a folder or the Hugging Face hub.

    loader = DataLoader(TripletDataset("fgr", "train", crop=128, seed=0), batch_size=8, shuffle=True, num_workers=2)
    loader = DataLoader(TripletStream("someone/fgr", "train", crop=128, seed=0), batch_size=8, num_workers=2)

A sample is a dict that PyTorch's default collate stacks (see `triplet`). Augmentations move pixels and resample none; the crop
lies on the LR grid, so that the LR picture is cropped with the others exactly. Seed, epoch and a sample's index decide its
augmentation, the same in both classes, whatever the order and the workers. `finpercep train-rm` does not come here: the step
alone decides its batches, for exact resuming (`finpercep.training.data`).
"""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed
from torch.utils.data import Dataset, IterableDataset

from data_synth.schema import COLUMNS, Row, SchemaError, Split, read_split
from data_synth.schema.dataset import decode_row
from finpercep.errors import ConfigError, MissingExtraError
from finpercep.training.data import Augmentation, draw_augmentation, scale_of

Triplet = dict[str, Any]
"""What `triplet` returns."""


def triplet(row: Row, augmentation: Augmentation) -> Triplet:
    """One sample as tensors.

    Returns:
        ``gt``, ``syn``, ``sr``: 3×H×W float32 RGB in [0, 1]. ``lr``: 3×h×w, the same.
        ``mask``: H×W float32 in [0, 1], 1 where sr replaces gt. ``map``: H×W float32 in [0, 1], M_gt of syn, 1 = degraded; it
        is that of sr only where syn shows sr: a clean sample's syn is gt, its mask and sr are as of any.
        ``quality_gt``, ``quality_syn``, ``quality_sr``: float32 scalars in [0, 1], of the whole stored images.
        ``source_id``: the photo. ``index``: the sample's number in the dataset.
    """
    pictures = {name: _image(augmentation.apply(getattr(row, name).transpose(2, 0, 1))) for name in ("gt", "syn", "sr")}
    planes = {name: torch.from_numpy(augmentation.apply(getattr(row, name))) for name in ("mask", "map")}
    qualities = {name: torch.tensor(getattr(row, name)) for name in ("quality_gt", "quality_syn", "quality_sr")}
    lr = _image(augmentation.apply(row.lr.transpose(2, 0, 1), scale_of(row)))
    return {**pictures, "lr": lr, **planes, **qualities, "source_id": row.source_id, "index": row.index}


def _image(pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 255)


class _Augmenting:
    """What both classes share: settings, the epoch, and a row's augmentation."""

    def __init__(self, crop: int | None, seed: int, augment: bool) -> None:
        if crop is not None and crop < 1:
            raise ConfigError(f"crop must be at least 1, got {crop}")
        if seed < 0:
            raise ConfigError(f"seed must not be negative, got {seed}")
        self.crop, self.seed, self.augment = crop, seed, augment
        # In shared memory: workers that live on from epoch to epoch have a copy of everything else.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Before each epoch: gives it augmentations of its own. Reaches persistent workers too."""
        self._epoch.fill_(epoch)

    def _sample(self, row: Row) -> Triplet:
        scale, (height, width) = scale_of(row), row.map.shape
        crop = self.crop or min(height, width)
        if crop % scale:
            raise ConfigError(f"crop must be a multiple of the dataset's scale, {scale}, got {crop}")
        if crop > min(height, width):
            raise ConfigError(f"crop must fit the stored images, {height}x{width}, got {crop}")
        if self.augment:
            rng = np.random.default_rng((self.seed, int(self._epoch), row.index))
            return triplet(row, draw_augmentation(rng, (height, width), crop, grid=scale))
        if self.crop is None:
            return triplet(row, Augmentation(0, 0, height, width))
        top, left = (scale * ((side - crop) // scale // 2) for side in (height, width))
        return triplet(row, Augmentation(top, left, crop, crop))


class TripletDataset(_Augmenting, Dataset[Triplet]):
    """One split of a dataset folder, map-style."""

    def __init__(self, folder: str | Path, split: Split, *, crop: int | None, seed: int, augment: bool = True) -> None:
        """Open the split; pictures are read when a sample is asked for.

        Args:
            folder: a finished dataset.
            split: train, validation or test.
            crop: side in px of the square crop, a multiple of the dataset's scale. None: as large as the images allow.
            seed: of the augmentations.
            augment: random crop, quarter turns and flips. False: the middle of the image, or with ``crop=None`` all of it.

        Raises:
            SchemaError: the folder breaks contract 1.
            ConfigError: a setting outside its range; a crop that does not fit shows at the first sample.
        """
        super().__init__(crop, seed, augment)
        self.rows = read_split(Path(folder), split)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Triplet:
        return self._sample(self.rows[position])


class TripletStream(_Augmenting, IterableDataset[Triplet]):
    """One split read front to back through `datasets`, from a folder or the hub, without storing it: each sample once an epoch.

    Shards are divided among the ranks of a distributed run where they come out even, samples otherwise; a rank's shards go to the
    workers of its `DataLoader`. Ranks may differ in length by some samples; all must use the same number of workers. The order is
    decided by the seed, the epoch and that division.
    """

    def __init__(
        self,
        source: str | Path,
        split: Split,
        *,
        crop: int | None,
        seed: int,
        augment: bool = True,
        shuffle_buffer: int = 128,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """Open the split; nothing but its description is read or downloaded.

        Args:
            source: a dataset folder, or the id of a dataset on the hub.
            split, crop, seed, augment: as for `TripletDataset`.
            shuffle_buffer: samples that a worker holds, encoded, and draws from at random; the order of the shards is shuffled
                too. 0: the stored order.
            rank, world_size: this process among those that share the split. By default, those of `torch.distributed`, if it runs
                by now.

        Raises:
            SchemaError: ``source`` breaks contract 1, or cannot be opened.
            ConfigError: a setting outside its range.
            MissingExtraError: `datasets` is not installed.
        """
        super().__init__(crop, seed, augment)
        if shuffle_buffer < 0:
            raise ConfigError(f"shuffle_buffer must not be negative, got {shuffle_buffer}")
        running = distributed.is_available() and distributed.is_initialized()
        rank = rank if rank is not None else distributed.get_rank() if running else 0
        world_size = world_size if world_size is not None else distributed.get_world_size() if running else 1
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank must lie in 0…world_size − 1, got rank {rank} of {world_size}")
        self.source = str(source)
        self._records = _open_stream(self.source, split, rank, world_size)
        if shuffle_buffer:
            # A shard's samples come from different photos as it is; interleaving shards would cost threads, and seconds an epoch.
            one = (
                {"max_buffer_input_shards": 1} if "max_buffer_input_shards" in signature(self._records.shuffle).parameters else {}
            )
            self._records = self._records.shuffle(seed=seed, buffer_size=shuffle_buffer, **one)

    def set_epoch(self, epoch: int) -> None:
        """As for `TripletDataset`; and the order is another."""
        super().set_epoch(epoch)
        self._records.set_epoch(epoch)

    def __iter__(self) -> Iterator[Triplet]:
        for number, record in enumerate(self._records):
            yield self._sample(decode_row(record, f"{self.source}, sample {record.get('index', number)}"))


def _open_stream(source: str, split: Split, rank: int, world_size: int) -> Any:
    """Encoded records of the split: a `datasets.IterableDataset`, this rank's part."""
    try:
        import datasets
        from datasets.distributed import split_dataset_by_node
    except ImportError as error:
        raise MissingExtraError("datasets", "train") from error
    if Path(source).is_dir():
        read_split(Path(source), split)  # names what is wrong with it; `datasets` would just read on
    try:
        records: Any = datasets.load_dataset(source, split=split, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise SchemaError(source, split, "a dataset folder, or the id of a dataset on the hub", str(error).strip()) from error
    found = list(records.features or records.resolve_features().features)
    for name, dtype in COLUMNS.items():
        if name not in found:
            raise SchemaError(source, name, f"a column of type {dtype}", f"columns {found}")
        if dtype == "image":
            records = records.cast_column(name, datasets.Image(decode=False))  # decoded by the contract's own reader
    return split_dataset_by_node(records, rank, world_size)
