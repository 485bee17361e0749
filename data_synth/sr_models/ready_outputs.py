"""A folder of finished SR pictures as an `SRModel`: how people use SeeSR, SUPIR, DiffBIR or ResShift results they already have.

An output is paired with its photo by name, and must show that photo at its size. It was made from an LR image of its own, not
known here: these samples teach what broken detail looks like, not what the build's LR image allows.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.nn import functional as F

from data_synth.library_errors import first_line
from data_synth.schema.errors import ImageError
from data_synth.schema.pixels import PHOTO_SUFFIXES, RGB8, decode_rgb, quiet_metadata
from data_synth.sr_models.protocol import Crop, Span, SRCall, SRModelError

_TAIL = re.compile(r"[-_. ]?(?:out(?:put)?|result|restored|(?:[xX]\d|\d[xX])|[sS][rR]|[hH][rR])$")
"""What SR programs append to the name of what they read: photo_out.png, photo_x4.png, photo-SR.png, photo_4x_out.png."""
_SCHEME = re.compile(r"^(?:\d+:)?(?:sample:|hf:)?")
"""What photo sources put before a name (`data_synth.photos`)."""
_KEPT_DECODED = 2
_GRID = 8
_SAME_SCENE = 0.6
"""Least correlation between 8×8 reductions of an output's crop and of its LR image. Over 300 photos and default degradations, a
photo and its LR image correlate by 0.89 at least (median 0.997), two photos by less than 0.6 in 95 of 100 cases."""
_FLAT = 0.03
"""Standard deviation, in [0, 1] units, below which a reduction says nothing about the scene."""


class ReadyOutputs:
    """`SRModel` that looks its outputs up. Make it with `ready_outputs`."""

    family = "ready"
    settings: Mapping[str, Span] = {}

    def __init__(self, folder: Path, files: Sequence[str], *, scale: int, name: str) -> None:
        self.folder, self.name, self.scale = folder, name, scale
        self._files = tuple(files)
        self._by_name = _by_key(files, lambda name: _keys(name)[:1])
        self._by_shortened_name = _by_key(files, lambda name: _keys(name)[1:])
        self._decoded: OrderedDict[str, RGB8] = OrderedDict()

    @cached_property
    def version(self) -> str:
        """Digest of every file's name and content. Reads all of them, once, when first asked."""
        digest = hashlib.sha256()
        for name in self._files:
            digest.update(name.encode() + b"\0")
            with (self.folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]

    def covers(self, source_id: str) -> bool:
        """Whether there is an output for this photo.

        Raises:
            SRModelError: there are two, and nothing says which is meant.
        """
        return self._find(source_id) is not None

    def __call__(self, lr: torch.Tensor, calls: Sequence[SRCall]) -> torch.Tensor:
        """The crops that ``calls`` name, N×3×h·scale×w·scale; ``lr`` (N×3×h×w) serves to notice an output of another scene."""
        if len(calls) != len(lr):
            raise SRModelError(f"SR model {self.name}: expected one call an image, got {len(calls)} for {len(lr)} images")
        return torch.stack([self._crop(image, call.crop) for image, call in zip(lr, calls, strict=True)])

    def _find(self, source_id: str) -> str | None:
        """The one output of a photo: under its relative path, or else under its bare name at the folder's top level.

        Sub-folders keep photos of one name apart, so an output in another one is another photo's. A name as it is goes before
        one without its ending: foo_x4.png belongs to foo_x4.jpg where foo.jpg has a foo.png.
        """
        path = PurePosixPath(_SCHEME.sub("", source_id))
        stem = path.with_suffix("") if path.suffix.lower() in PHOTO_SUFFIXES else path
        for key, outputs in itertools.product((str(stem), stem.name), (self._by_name, self._by_shortened_name)):
            candidates = outputs.get(key, ())
            if len(candidates) > 1:
                raise SRModelError(
                    f"{self.folder}: expected one output for photo {source_id}, got {len(candidates)}: {', '.join(candidates)}; "
                    "keep one"
                )
            if candidates:
                return candidates[0]
        return None

    def _crop(self, lr: torch.Tensor, crop: Crop) -> torch.Tensor:
        name = self._find(crop.source_id)
        if name is None:
            raise SRModelError(f"{self.folder}: holds no output for photo {crop.source_id}; ask covers() first")
        pixels = self._read(name)
        self._check_size(name, pixels, crop, lr)
        cut = pixels[crop.top : crop.top + crop.size, crop.left : crop.left + crop.size]
        cut = cut[:, ::-1] if crop.flip else cut
        sr = torch.from_numpy(np.ascontiguousarray(cut)).permute(2, 0, 1).float() / 255
        if not shows_same_scene(lr, sr):
            raise SRModelError(
                f"{self.folder / name}: shows something else than photo {crop.source_id} at ({crop.left}, {crop.top}); "
                "an output must have its photo's name, size and framing"
            )
        return sr.contiguous()

    def _check_size(self, name: str, pixels: RGB8, crop: Crop, lr: torch.Tensor) -> None:
        height, width = pixels.shape[:2]
        if crop.photo_size is not None and (height, width) != tuple(crop.photo_size):
            wanted = f"{crop.photo_size[1]}x{crop.photo_size[0]}"
            raise SRModelError(
                f"{self.folder / name}: expected the size of photo {crop.source_id}, {wanted}, got {width}x{height}"
            )
        if crop.top + crop.size > height or crop.left + crop.size > width:
            raise SRModelError(
                f"{self.folder / name}: expected the size of photo {crop.source_id}, which reaches at least to "
                f"{crop.left + crop.size}x{crop.top + crop.size}, got {width}x{height}"
            )
        if (crop.size, crop.size) != (lr.shape[-2] * self.scale, lr.shape[-1] * self.scale):
            raise SRModelError(
                f"SR model {self.name}: crop of {crop.size} px does not fit x{self.scale} of {tuple(lr.shape[-2:])}"
            )

    def _read(self, name: str) -> RGB8:
        """The decoded picture; the last few are kept, as the crops of a photo come together."""
        if name in self._decoded:
            self._decoded.move_to_end(name)
            return self._decoded[name]
        try:
            pixels = decode_rgb(self.folder / name)
        except ImageError as error:
            raise SRModelError(f"SR model {self.name}: {error}") from error
        self._decoded[name] = pixels
        if len(self._decoded) > _KEPT_DECODED:
            self._decoded.popitem(last=False)
        return pixels


def ready_outputs(folder: Path, *, scale: int, name: str | None = None) -> ReadyOutputs:
    """The pictures below ``folder`` (recursive) as outputs of an x``scale`` model called ``name`` (by default the folder's name).

    An output belongs to the photo of the same relative path without suffix; one at the top level also to photos of the same bare
    name in sub-folders. An ending such as ``_out``, ``_x4`` or ``-SR`` is overlooked where no name matches with it.
    Reads every file's header: what is no picture is found here and not in the middle of a build.

    Raises:
        SRModelError: no such folder, no picture in it, or files that claim to be pictures and are not.
    """
    if not folder.is_dir():
        raise SRModelError(f"{folder}: expected a folder of SR outputs, found none; check the path")
    files = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in PHOTO_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not files:
        raise SRModelError(f"{folder}: holds no picture ({', '.join(sorted(PHOTO_SUFFIXES))}); point to a folder of SR outputs")
    _check_headers(folder, files)
    return ReadyOutputs(folder, files, scale=scale, name=name or folder.resolve().name)


def _check_headers(folder: Path, files: Sequence[str]) -> None:
    unreadable: list[str] = []
    with quiet_metadata():
        for name in files:
            try:
                with Image.open(folder / name):
                    pass
            except UnidentifiedImageError:
                unreadable.append(f"{name} (not a picture)")
            except Exception as error:  # each of Pillow's formats fails in its own way
                unreadable.append(f"{name} ({first_line(error)})")
    if unreadable:
        raise SRModelError(
            f"{folder}: expected pictures, got {len(unreadable)} of {len(files)} files that cannot be read, first "
            f"{unreadable[0]}; make them again, or remove them"
        )


def shows_same_scene(lr: torch.Tensor, sr: torch.Tensor) -> bool:
    """Whether ``sr`` (3×H×W) can be an upscaling of ``lr`` (3×h×w), both in [0, 1]: their coarse luminances agree.

    Coarse on purpose: what an SR model invents is finer. Flat images are compared by their mean alone.
    """
    low, high = (F.adaptive_avg_pool2d(image.mean(0, keepdim=True), _GRID).flatten() for image in (lr, sr))
    if min(low.std(), high.std()) < _FLAT:
        return bool((low.mean() - high.mean()).abs() < 0.3)
    return bool(torch.corrcoef(torch.stack([low, high]))[0, 1] > _SAME_SCENE)


def _by_key(files: Sequence[str], keys: Callable[[str], list[str]]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for name in files:
        for key in keys(name):
            found.setdefault(key, []).append(name)
    return {key: tuple(names) for key, names in found.items()}


def _keys(name: str) -> list[str]:
    """``a/b_x4_out.png`` → a/b_x4_out, and without its endings a/b_x4, a/b."""
    path = PurePosixPath(name).with_suffix("")
    keys = [str(path)]
    while (match := _TAIL.search(path.name)) and match.start() > 0:
        path = path.with_name(path.name[: match.start()])
        keys.append(str(path))
    return keys
