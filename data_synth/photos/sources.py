"""`--photos` specifications → photo sources: photos, and what the dataset card says about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_synth.photos.folders import find_photos, folder_licence
from data_synth.photos.hub import HUB_SCHEME, hub_licence, hub_photos, parse_table
from data_synth.photos.photo import Photo
from data_synth.photos.samples import SAMPLE_LICENCE, SAMPLE_ORIGIN, sample_photos

SAMPLES = "samples"


@dataclass(frozen=True)
class PhotoSource:
    """Photos that came from one place.

    Attributes:
        name: what cards call it; a folder's own name, not where it lies.
        photos: at least one.
        licence: as the source states it, or ``not stated``.
        origin: where the photos come from, in a few words.
    """

    name: str
    photos: tuple[Photo, ...]
    licence: str = "not stated"
    origin: str = ""


def photo_source(specification: str) -> PhotoSource:
    """The source a ``--photos`` value names.

    Args:
        specification: ``samples``, ``hf:NAME_OR_PATH[:SPLIT[:COLUMN]]``, or a folder (``./samples`` for one of that name).

    Raises:
        PhotoError: there is no such source, or it holds no photo.
    """
    if specification == SAMPLES:
        return PhotoSource(SAMPLES, tuple(sample_photos()), SAMPLE_LICENCE, SAMPLE_ORIGIN)
    if specification.startswith(HUB_SCHEME):
        table = parse_table(specification.removeprefix(HUB_SCHEME))
        photos = tuple(hub_photos(table))
        licence, homepage = hub_licence(table)
        name = photos[0].source_id.rpartition("/")[0]
        return PhotoSource(name, photos, licence, f"Hugging Face data set {homepage}".rstrip())
    folder = Path(specification)
    return PhotoSource(folder.resolve().name, tuple(find_photos(folder)), folder_licence(folder), "folder of image files")


def gather(specifications: Sequence[str]) -> tuple[PhotoSource, ...]:
    """All sources, the packaged samples when none is named. Of several, photos are named ``0:…``, ``1:…``, so names stay unique.

    Raises:
        PhotoError: one of them cannot be used.
    """
    sources = tuple(photo_source(specification) for specification in specifications or [SAMPLES])
    if len(sources) == 1:
        return sources
    return tuple(
        replace(source, photos=tuple(replace(photo, source_id=f"{number}:{photo.source_id}") for photo in source.photos))
        for number, source in enumerate(sources)
    )
