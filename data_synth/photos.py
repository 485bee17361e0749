"""Photos in: image folders and the packaged sample photographs, as upright RGB, split by photo.

Knows nothing about degradations, artefacts or how samples are stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_synth.schema.errors import FinpercepError, ImageError
from data_synth.schema.pixels import PHOTO_SUFFIXES, RGB8, decode_rgb

SAMPLE_SCHEME = "sample:"
_SKIMAGE_PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle")
_SKLEARN_PHOTOS = ("china.jpg", "flower.jpg")


class PhotoError(FinpercepError):
    """A photo source that holds no usable photo."""


@dataclass(frozen=True)
class Photo:
    """One photograph that can be read when needed.

    Attributes:
        source_id: stable name, unique within its source: path relative to the folder, or ``sample:NAME``.
        path: the file; None for a packaged sample.
    """

    source_id: str
    path: Path | None = None

    def read(self) -> RGB8:
        """Decode to uint8 H×W×3 RGB. Raises `ImageError` naming the file when it cannot be read."""
        if self.path is not None:
            return decode_rgb(self.path)
        return _read_sample(self.source_id.removeprefix(SAMPLE_SCHEME))


@dataclass(frozen=True)
class PhotoSplit:
    """Photos of one source, divided so that no photo stands in two parts."""

    train: tuple[Photo, ...]
    validation: tuple[Photo, ...]
    test: tuple[Photo, ...]


def find_photos(folder: Path) -> list[Photo]:
    """All pictures below ``folder`` (recursive, hidden files left out), in a stable order.

    Raises:
        PhotoError: the folder does not exist or holds no picture.
    """
    if not folder.is_dir():
        raise PhotoError(f"{folder}: expected a folder of photos, found none; check the path")
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PHOTO_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not paths:
        raise PhotoError(f"{folder}: holds no picture ({', '.join(sorted(PHOTO_SUFFIXES))}); point to a folder that does")
    return [Photo(path.relative_to(folder).as_posix(), path) for path in paths]


def sample_photos() -> list[Photo]:
    """The colour photographs bundled with scikit-image and scikit-learn (public domain, CC0 or CC BY), no download."""
    names = [*_SKIMAGE_PHOTOS, *_SKLEARN_PHOTOS]
    return [Photo(f"{SAMPLE_SCHEME}{name}") for name in names]


def _read_sample(name: str) -> RGB8:
    try:
        if name in _SKLEARN_PHOTOS:
            from sklearn.datasets import load_sample_image

            return np.array(load_sample_image(name), dtype=np.uint8)
        if name in _SKIMAGE_PHOTOS:
            import skimage.data

            loaded = skimage.data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(skimage.data, name)()
            return np.array(loaded[..., :3], dtype=np.uint8)
    except ImportError as error:
        raise PhotoError("the sample photos come with scikit-image and scikit-learn: pip install 'finpercep[train]'") from error
    raise PhotoError(f"no sample photo is called {name!r}; there are {', '.join([*_SKIMAGE_PHOTOS, *_SKLEARN_PHOTOS])}")


def split_photos(photos: Sequence[Photo], *, validation: float, test: float, seed: int) -> PhotoSplit:
    """Split by photo, never by crop. Which part a photo falls into depends on its name and the seed alone up to the counts.

    Args:
        photos: at least one more than the number of non-empty parts.
        validation: share for validation, in [0, 1); at least one photo when positive.
        test: share for test, likewise.
        seed: shuffles the photos.

    Raises:
        PhotoError: too few photos to give every requested part one.
    """
    ordered = sorted(photos, key=lambda photo: hashlib.sha256(f"{seed}:{photo.source_id}".encode()).digest())
    count_validation = max(1, round(len(ordered) * validation)) if validation > 0 else 0
    count_test = max(1, round(len(ordered) * test)) if test > 0 else 0
    held_out = count_validation + count_test
    if len(ordered) <= held_out:
        raise PhotoError(f"a split with held-out photos needs at least {held_out + 1} photos, got {len(ordered)}; add photos")
    return PhotoSplit(
        train=tuple(ordered[held_out:]),
        validation=tuple(ordered[:count_validation]),
        test=tuple(ordered[count_validation:held_out]),
    )


def readable(photos: Sequence[Photo], *, min_side: int) -> Iterator[tuple[Photo, RGB8 | ImageError]]:
    """Read photos one by one; a damaged or too small one comes back as its error, so the caller can report and go on."""
    for photo in photos:
        try:
            pixels = photo.read()
        except ImageError as error:
            yield photo, error
            continue
        if min(pixels.shape[:2]) < min_side:
            size = f"{pixels.shape[1]}x{pixels.shape[0]}"
            yield photo, ImageError(f"{photo.source_id}: photo must be at least {min_side} px on each side, got {size}")
        else:
            yield photo, pixels
