"""The photos of a run: to train on, and to hold out. Near-duplicates are never on both sides."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finpercep.cli.console import warn
from finpercep.errors import ConfigError

if TYPE_CHECKING:
    from data_synth.photos import PhotoSource
    from data_synth.schema import RGB8

HELD_OUT = 0.1
"""Share of the photos that nothing is trained on: the monitor looks at them, or what was trained is measured on them."""

FEW = 5
"""Held-out photos below which the monitor's interval is so wide that a user wants to know."""


@dataclass(frozen=True)
class TrainingPhotos:
    """Photos to train on and photos that nothing is trained on, as pixels.

    Attributes:
        train: to train on.
        held_out: not to train on.
        source: those to train on as they lie in a folder.
        photo_of: number of the photo that each of ``held_out`` is of: a dataset has several images of one.
    """

    train: list[RGB8]
    held_out: list[RGB8]
    source: PhotoSource | None
    photo_of: list[int]


def photos_of(data: Path, min_side: int, *, hold_out: bool, seed: int) -> TrainingPhotos:
    """The photos of a run.

    Of a dataset, the clean images of its training split, and of the other splits; of a folder, all, or nine tenths and a tenth,
    two photos at least. A warning says if few are held out.

    Raises:
        ConfigError: none to train on, or of a dataset none to hold out; or photos smaller than ``min_side``.
        PhotoError: too few photos in the folder to hold any out.
    """
    from data_synth.photos import photo_source
    from data_synth.schema.manifest import MANIFEST_NAME
    from finpercep.cli.photo_pairs import load_photos

    if (data / MANIFEST_NAME).exists():
        train, _ = _clean_images(data, {"train"}, min_side)
        held_out, photo_of = _clean_images(data, {"validation", "test"}, min_side) if hold_out else ([], [])
        photos = TrainingPhotos(train, held_out, None, photo_of)
    elif hold_out:
        source = photo_source(str(data))
        photos = _divided(source, min_side, min_side, seed=seed, least=2)
    else:
        source = photo_source(str(data))
        photos = TrainingPhotos(load_photos(source.photos, min_side), [], source, [])
    if hold_out and (count := len(set(photos.photo_of))) < FEW:
        warn(f"the monitor has {count} held-out photos; on fewer than {FEW} it sees large changes alone: add photos to {data}")
    return photos


def photos_of_folders(folders: Sequence[Path], min_side: int, held_out_side: int, *, seed: int) -> TrainingPhotos:
    """Nine tenths of the photos of all ``folders`` together, and a tenth. A photo in two of them is on one side.

    Args:
        folders: of photos; at least one.
        min_side: least side in px of a photo to train on.
        held_out_side: of one that is held out.
        seed: decides the division.

    Raises:
        PhotoError: a folder without photos, or too few to hold any out.
        ConfigError: none is large enough.
    """
    from data_synth.photos import PhotoSource, gather

    sources = gather([str(folder.absolute()) for folder in folders])  # a name alone could be that of a packaged source
    name = ", ".join(source.name for source in sources)
    photos = tuple(photo for source in sources for photo in source.photos)
    return _divided(PhotoSource(name, photos), min_side, held_out_side, seed=seed)


def _divided(source: PhotoSource, min_side: int, held_out_side: int, *, seed: int, least: int = 1) -> TrainingPhotos:
    from data_synth.photos import scan_photos, split_photos
    from finpercep.cli.photo_pairs import load_photos

    groups = scan_photos(source.photos, min_side=1).groups  # what it cannot read, `load_photos` names
    share = max(HELD_OUT, least / len(source.photos))
    split = split_photos(source.photos, validation=0.0, test=share, seed=seed, groups=groups)
    train, held_out = load_photos(split.train, min_side), load_photos(split.test, held_out_side)
    return TrainingPhotos(train, held_out, dataclasses.replace(source, photos=split.train), list(range(len(held_out))))


def _clean_images(data: Path, splits: Collection[str], min_side: int) -> tuple[list[RGB8], list[int]]:
    """The clean images of those of a dataset's ``splits`` that it has, one a sample, and the number of the photo each is of."""
    from data_synth.schema import read_split
    from data_synth.schema.manifest import read_manifest

    there = dict.fromkeys(shard.split for shard in read_manifest(data).shards if shard.split in splits)
    rows = [(row.gt, row.source_id) for split in there for row in read_split(data, split)]
    photos, names = [gt for gt, _ in rows], [name for _, name in rows]
    if not photos:
        raise ConfigError(f"{data}: the dataset has no sample in {' or '.join(sorted(splits))}")
    if min(photos[0].shape[:2]) < min_side:
        raise ConfigError(f"{data}: --crop must be at most the dataset's sample size {photos[0].shape[0]}, got {min_side}")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return photos, [numbers[name] for name in names]
