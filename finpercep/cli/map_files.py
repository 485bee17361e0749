"""Where `finpercep score --map` puts its pictures: two files an image in a folder, or one overlay under a given name."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_synth.schema.pixels import PHOTO_SUFFIXES, RGB8, encode_png, write_atomically
from finpercep.errors import ConfigError
from finpercep.heatmap import map_samples, overlay


@dataclass(frozen=True)
class MapFiles:
    """Names decided before anything is scored, so that no file of one image overwrites another's.

    Attributes:
        folder: where ``STEM.map.png`` and ``STEM.overlay.png`` go; None when ``file`` is set.
        file: the overlay of the only image.
        stems: image → STEM.
        warnings: images whose STEM is not that of their file name, because another image has it.
    """

    folder: Path | None
    file: Path | None
    stems: dict[Path, str]
    warnings: tuple[str, ...]

    @classmethod
    def plan(cls, images: Sequence[Path], target: Path) -> MapFiles:
        """Decide all names.

        Raises:
            ConfigError: a picture's name for several images, or a name that is an input or cannot be written to.
        """
        if target.suffix.lower() in PHOTO_SUFFIXES and not target.is_dir():
            if len(images) != 1:
                raise ConfigError(f"--map {target} is one picture, and there are {len(images)} images; give a folder instead")
            if target.resolve() == images[0].resolve():
                raise ConfigError(f"--map {target} would overwrite the image itself; choose another name")
            return cls(None, target, {}, ())
        if target.exists() and not target.is_dir():
            raise ConfigError(f"--map {target} must be a folder or the name of a picture (x.png), and is another file")
        stems = _distinct_stems(images)
        inputs = {image.resolve() for image in images}
        for written in (target / f"{stem}.{kind}.png" for stem in stems.values() for kind in ("map", "overlay")):
            if written.resolve() in inputs:
                raise ConfigError(f"--map {target} would overwrite the image {written}; choose another folder")
        renamed = [f"{image}: its map is named {stem}, another image has the name {image.stem}" for image, stem in stems.items()]
        kept = [text for text, (image, stem) in zip(renamed, stems.items(), strict=True) if stem != image.stem]
        return cls(target, None, stems, tuple(kept))

    def write(self, image: Path, pixels: RGB8, degradation_map: npt.NDArray[np.float32]) -> None:
        """Write an image's map (H×W in [0, 1], 16-bit grey, 65535 = 1.0) and its overlay on ``pixels``."""
        blend = overlay(pixels, degradation_map)
        if self.file is not None:
            write_atomically(self.file, _encode(blend, self.file.suffix))
        if self.folder is not None:
            stem = self.stems[image]
            write_atomically(self.folder / f"{stem}.map.png", encode_png(map_samples(degradation_map)))
            write_atomically(self.folder / f"{stem}.overlay.png", encode_png(blend))


def _distinct_stems(images: Sequence[Path]) -> dict[Path, str]:
    """Image → stem; the first keeps its own, a later one of the same name gets ``-2``, ``-3``, ….

    Compared without case, since some file systems do not tell ``A.png`` from ``a.png``.
    """
    natural = {image.stem.casefold() for image in images}
    taken: set[str] = set()
    stems: dict[Path, str] = {}
    for image in dict.fromkeys(images):
        stem, number = image.stem, 1
        while stem.casefold() in taken or (number > 1 and stem.casefold() in natural):
            number += 1
            stem = f"{image.stem}-{number}"
        taken.add(stem.casefold())
        stems[image] = stem
    return stems


def _encode(pixels: RGB8, suffix: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, Image.registered_extensions()[suffix.lower()])
    return buffer.getvalue()
