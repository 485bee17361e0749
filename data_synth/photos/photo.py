"""A photograph: its name, and where its pixels come from. Plain data, sent to worker processes; read when needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data_synth.schema.errors import FinpercepError, ImageError
from data_synth.schema.pixels import RGB8, decode_rgb


class PhotoError(FinpercepError):
    """A photo source that holds no usable photo."""


class EncodedPhoto(Protocol):
    """Where an encoded photo lies when it is not a file of its own: a row of a data set, say. Hashable and picklable."""

    def encoded(self) -> bytes:
        """The picture as it was stored (JPEG, PNG, …). Raises `ImageError` or `PhotoError` when there is none."""
        ...


@dataclass(frozen=True)
class Photo:
    """One photograph that can be read when needed.

    Attributes:
        source_id: stable name, unique among the photos of a build: path relative to the folder, ``hf:NAME/SPLIT/ROW`` or
            ``sample:NAME``; ``0:`` and so on stand before it where several sources are combined.
        path: the file, if it is one.
        row: where it lies otherwise. With neither, it is the packaged sample its name says.
    """

    source_id: str
    path: Path | None = None
    row: EncodedPhoto | None = None

    def read(self) -> RGB8:
        """Decode to uint8 H×W×3 RGB. Raises `ImageError` naming the photo when it cannot be read."""
        if self.path is not None:
            return decode_rgb(self.path)
        if self.row is not None:
            return decode_rgb(self.row.encoded(), name=self.source_id)
        from data_synth.photos.samples import read_sample

        return read_sample(self.source_id)


def readable(photos: Sequence[Photo], *, min_side: int) -> Iterator[tuple[Photo, RGB8 | ImageError]]:
    """Read photos one by one; a damaged or too small one comes back as its error, so the caller can report and go on."""
    for photo in photos:
        try:
            pixels = photo.read()
        except ImageError as error:
            yield photo, error
            continue
        refusal = too_small(photo, pixels.shape[:2], min_side)
        yield photo, pixels if refusal is None else refusal


def too_small(photo: Photo, size: tuple[int, ...], min_side: int) -> ImageError | None:
    """What is wrong with a photo of ``size`` (height, width) when both sides must have ``min_side`` px; None: nothing."""
    if min(size) >= min_side:
        return None
    return ImageError(f"{photo.source_id}: photo must be at least {min_side} px on each side, got {size[1]}x{size[0]}")
