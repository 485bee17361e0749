"""Pictures whose artefacts people have marked: how a folder of them is laid out, and how judges' maps agree with the marks.

Two layouts are read; a folder has one of them.

    DIR/images/NAME.EXT   DIR/masks/NAME.png   [DIR/originals/NAME.EXT]        folders
    DIR/NAME.EXT          DIR/NAME.mask.png    [DIR/NAME.original.EXT]         one folder
    DIR/NAME.EXT          DIR/NAME.png         [DIR/NAME.original.EXT]         the same, where the picture is no PNG

A mask is a PNG of the picture's size; a pixel is marked from mid-grey (128 of 255) on. An original is the clean picture that the
artefacts came into, of the same size; with it there is a paired AUROC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_synth.schema import RGB8, decode_rgb
from data_synth.schema.pixels import PHOTO_SUFFIXES
from finpercep.errors import ConfigError, ImageError
from finpercep.training.map_tally import MapFigures, MapTally, PixelFigures, count_image, pixel_figures

MapOf = Callable[[RGB8], npt.NDArray[np.float32]]
"""A picture, uint8 H×W×3 RGB → its map, H×W in [0, 1], 1 = degraded."""

_MARKED = 128


@dataclass(frozen=True)
class MarkedPicture:
    """Files of one picture; ``original`` is None where there is none."""

    image: Path
    mask: Path
    original: Path | None


@dataclass(frozen=True)
class Marked:
    """A picture, decoded: uint8 H×W×3 RGB, bool H×W, and the original like the picture."""

    files: MarkedPicture
    pixels: RGB8
    marks: npt.NDArray[np.bool_]
    original: RGB8 | None


def find_marked(folder: Path) -> list[MarkedPicture]:
    """All pictures of a folder, by name (layouts: see above).

    Raises:
        ConfigError: no such folder, no picture, a picture without mask, or a mask or original without picture; names them.
    """
    if not folder.is_dir():
        raise ConfigError(f"--masks {folder}: expected a folder, found none")
    if (folder / "images").is_dir() or (folder / "masks").is_dir():
        images, masks, originals = (_by_stem(folder / name) for name in ("images", "masks", "originals"))
    else:
        images, masks, originals = _one_folder(folder)
    if not images:
        layouts = "images/NAME.EXT with masks/NAME.png, or NAME.EXT with NAME.mask.png"
        raise ConfigError(f"--masks {folder}: found no picture; expected {layouts}")
    _require_all(folder, "picture", images, "mask", masks)
    _require_all(folder, "mask", masks, "picture", images)
    _require_all(folder, "original", originals, "picture", images)
    return [MarkedPicture(images[name], masks[name], originals.get(name)) for name in sorted(images)]


Files = dict[str, Path]
"""Stem → file."""


def _by_stem(folder: Path) -> Files:
    files: Files = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix.lower() in PHOTO_SUFFIXES:
            if path.stem in files:
                raise ConfigError(f"{folder}: {files[path.stem].name} and {path.name} have one name; rename one")
            files[path.stem] = path
    return files


def _one_folder(folder: Path) -> tuple[Files, Files, Files]:
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in PHOTO_SUFFIXES]
    masks = {path.stem.removesuffix(".mask"): path for path in paths if path.stem.endswith(".mask")}
    originals = {path.stem.removesuffix(".original"): path for path in paths if path.stem.endswith(".original")}
    rest = [path for path in paths if path not in {*masks.values(), *originals.values()}]
    images: Files = {}
    for path in sorted(rest, key=lambda path: path.suffix.lower() == ".png"):
        if path.stem not in images:
            images[path.stem] = path
        elif path.suffix.lower() == ".png" and path.stem not in masks:
            masks[path.stem] = path
        else:
            raise ConfigError(f"{folder}: {images[path.stem].name} and {path.name} have one name; rename one")
    return images, masks, originals


def _require_all(folder: Path, what: str, these: Files, other: str, those: Files) -> None:
    lonely = sorted(set(these) - set(those))
    if lonely:
        more = f" and {len(lonely) - 3} more" if len(lonely) > 3 else ""
        names = ", ".join(these[name].name for name in lonely[:3])
        raise ConfigError(f"--masks {folder}: {len(lonely)} {what}(s) without a {other} of the same name: {names}{more}")


def read_marked(files: MarkedPicture) -> Marked:
    """Decode one picture.

    Raises:
        ImageError: a file that is no picture, sizes that differ, or a mask whose marks are too dark to count; names the file.
    """
    pixels = decode_rgb(files.image)
    grey = decode_rgb(files.mask, background=0).max(axis=2)  # marks of any colour; what is transparent is not marked
    original = None if files.original is None else decode_rgb(files.original)
    for path, other in ((files.mask, grey), (files.original, original)):
        if other is not None and other.shape[:2] != pixels.shape[:2]:
            (height, width), (own_height, own_width) = pixels.shape[:2], other.shape[:2]
            raise ImageError(f"{path}: must have the size of {files.image.name}, {width}x{height}, got {own_width}x{own_height}")
    if 0 < grey.max() < _MARKED:
        raise ImageError(f"{files.mask}: a marked pixel must be at least {_MARKED} of 255, and the brightest is {grey.max()}")
    return Marked(files, pixels, grey >= _MARKED, original)


@dataclass(frozen=True)
class MarkedCase:
    """One picture as a judge saw it; ``area`` is its marked share."""

    files: MarkedPicture
    area: float
    figures: PixelFigures


@dataclass(frozen=True)
class MaskReport:
    """One judge's figures on marked pictures, and every picture."""

    name: str
    map: MapFigures
    cases: tuple[MarkedCase, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without the cases."""
        return self.map.to_json()


def evaluate_masks(
    judges: Mapping[str, MapOf], pictures: Sequence[MarkedPicture], *, on_picture: Callable[[], None] = lambda: None
) -> list[MaskReport]:
    """Map every picture, and its original if there is one, with every judge; one picture is in memory at a time.

    Raises:
        ImageError: a picture that cannot be read or mapped; names it.
    """
    tallies = {name: MapTally() for name in judges}
    cases: dict[str, list[MarkedCase]] = {name: [] for name in judges}
    for marked in _each(pictures):
        for name, map_of in judges.items():
            seen, clean = _mapped(map_of, marked)
            counts = count_image(seen, marked.marks, original_map=clean)
            tallies[name].add(counts)
            cases[name].append(MarkedCase(marked.files, float(marked.marks.mean()), pixel_figures(counts)))
        on_picture()
    return [MaskReport(name, tallies[name].figures(), tuple(cases[name])) for name in judges]


def _each(pictures: Sequence[MarkedPicture]) -> Iterator[Marked]:
    for files in pictures:
        yield read_marked(files)


def _mapped(map_of: MapOf, marked: Marked) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
    try:
        return map_of(marked.pixels), None if marked.original is None else map_of(marked.original)
    except ImageError as error:
        raise ImageError(f"{marked.files.image}: {error}") from error
