"""Image folders: all pictures below a path, and what the folder says about its licence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from data_synth.photos.photo import Photo, PhotoError
from data_synth.schema.pixels import PHOTO_SUFFIXES

_LICENCE_PREFIXES = ("licence", "license", "attribution", "copying", "readme")
_TABLE_SUFFIXES = frozenset({".parquet", ".arrow"})


def find_photos(folder: Path) -> list[Photo]:
    """All pictures below ``folder``, links to folders included, hidden files and folders left out, in a stable order.

    Raises:
        PhotoError: the folder does not exist or holds no picture.
    """
    if not folder.is_dir():
        raise PhotoError(f"{folder}: expected a folder of photos, found none; check the path")
    files = list(_files(folder))
    paths = sorted(path for path in files if path.suffix.lower() in PHOTO_SUFFIXES)
    if not paths:
        if any(path.suffix in _TABLE_SUFFIXES for path in files):
            raise PhotoError(f"{folder}: holds no picture, but looks like a Hugging Face data set; write hf:{folder}")
        raise PhotoError(f"{folder}: holds no picture ({', '.join(sorted(PHOTO_SUFFIXES))}); point to a folder that does")
    return [Photo(path.relative_to(folder).as_posix(), path) for path in paths]


def _files(folder: Path) -> Iterator[Path]:
    """Every place once, though a link lead back to it; folders come before links to folders."""
    seen = set()
    for name, folders, files in os.walk(folder, followlinks=True):
        place = Path(name)
        if (real := place.resolve()) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(
            (one for one in folders if not one.startswith(".")), key=lambda one: ((place / one).is_symlink(), one)
        )
        yield from (place / one for one in files if not one.startswith(".") and (place / one).is_file())


def folder_licence(folder: Path) -> str:
    """Which of the folder's files speak of its licence (LICENCE, ATTRIBUTION, README, …), or ``not stated``."""
    names = sorted(path.name for path in folder.iterdir() if path.name.lower().startswith(_LICENCE_PREFIXES) and path.is_file())
    return f"see {', '.join(names)} of the folder" if names else "not stated"
