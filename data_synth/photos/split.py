"""Train, validation and test: by photo, never by crop, and near-duplicates in one part."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data_synth.photos.photo import Photo, PhotoError

_Unit = tuple[Photo, ...]
"""Photos that stay together: one, or a group of near-duplicates."""


@dataclass(frozen=True)
class PhotoSplit:
    """Photos divided so that no photo stands in two parts."""

    train: tuple[Photo, ...]
    validation: tuple[Photo, ...]
    test: tuple[Photo, ...]


def split_photos(
    photos: Sequence[Photo], *, validation: float, test: float, seed: int, groups: Iterable[Sequence[str]] = ()
) -> PhotoSplit:
    """Split by photo. Which part a photo falls into depends on names and the seed alone, up to the counts.

    Args:
        photos: at least one more than the number of non-empty parts.
        validation: share for validation, in [0, 1); at least one photo when positive.
        test: share for test, likewise.
        seed: shuffles the photos.
        groups: source ids of photos that stay in one part (`PhotoScan.groups`); ids of other photos are ignored. Counts are
            then met as nearly as groups allow.

    Raises:
        PhotoError: too few photos, or too few independent ones, to give every requested part one.
    """
    count_validation = max(1, round(len(photos) * validation)) if validation > 0 else 0
    count_test = max(1, round(len(photos) * test)) if test > 0 else 0
    held_out = count_validation + count_test
    if len(photos) <= held_out:
        raise PhotoError(f"a split with held-out photos needs at least {held_out + 1} photos, got {len(photos)}; add photos")
    left = sorted(_units(photos, groups), key=lambda unit: hashlib.sha256(f"{seed}:{unit[0].source_id}".encode()).digest())
    parts = []
    for count in (count_validation, count_test):
        part, left = _take(left, count)
        parts.append(part)
    if not left or not all(part or not count for part, count in zip(parts, (count_validation, count_test), strict=True)):
        raise PhotoError(
            f"a split needs photos that differ: near-duplicates stay together, and {len(photos)} photos form "
            f"{len(_units(photos, groups))} groups; add photos, or hold out fewer"
        )
    train, in_validation, in_test = (tuple(photo for unit in part for photo in unit) for part in (left, *parts))
    return PhotoSplit(train, in_validation, in_test)


def _units(photos: Sequence[Photo], groups: Iterable[Sequence[str]]) -> list[_Unit]:
    by_id = {photo.source_id: photo for photo in photos}
    units = []
    for group in groups:
        if members := tuple(by_id.pop(name) for name in sorted(group) if name in by_id):
            units.append(members)
    return units + [(photo,) for photo in by_id.values()]


def _take(units: list[_Unit], count: int) -> tuple[list[_Unit], list[_Unit]]:
    """Units in order as long as they fit; then, if that leaves a gap, the one more that comes nearest to ``count``.

    One unit always stays behind, for the parts that follow.
    """
    taken: list[_Unit] = []
    left: list[_Unit] = []
    missing = count
    for unit in units:
        fits = 0 < len(unit) <= missing
        (taken if fits else left).append(unit)
        missing -= len(unit) * fits
    if missing and len(left) > 1:
        nearest = min(left, key=len)
        if not taken or len(nearest) < 2 * missing:
            left.remove(nearest)
            taken.append(nearest)
    return taken, left
