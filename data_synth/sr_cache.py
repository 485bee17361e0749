"""SR outputs kept on disk by content, so that a rebuild with other masks costs no SR time. Knows no model and no data set.

An entry is a whole batch: networks may give an image other last bits in other company, and a cached rebuild must equal the first
build byte for byte. Entries are never evicted; delete the folder, or any file in it, at any time.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data_synth.schema.pixels import RGB8, write_atomically
from data_synth.sr_models.protocol import SRCall, SRModel, check_output

_FORMAT = 1
"""Part of every key: raise it when what a key stands for changes."""


def batch_key(model: SRModel, lr: RGB8, calls: Sequence[SRCall]) -> str:
    """Digest of all that decides the outputs: the model's name, version and scale, PyTorch's version, LR pictures, and calls.

    Args:
        model: neither called nor loaded.
        lr: uint8 N×h×w×3 RGB.
        calls: N of them.

    Returns:
        SHA-256, as 64 hexadecimal digits.
    """
    record = {
        "format": _FORMAT,
        "model": [model.name, model.version, model.scale],
        "torch": torch.__version__,
        "shape": lr.shape,
        "calls": [{"seed": call.seed, "settings": dict(call.settings), "crop": asdict(call.crop)} for call in calls],
    }
    digest = hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())
    digest.update(b"\0")
    digest.update(np.ascontiguousarray(lr).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class SRCache:
    """Batches of SR pictures in ``folder``, which several processes may share; made on the first `put`.

    An entry is ``folder/ab/abcd….zip``: an archive, stored uncompressed, of one lossless WebP a picture. WebP takes half of PNG's
    time and four fifths of its room; the archive's checksums find any damage.
    """

    folder: Path

    def get(self, key: str) -> RGB8 | None:
        """The batch, uint8 N×H×W×3 RGB. None when there is none, or what is there is damaged."""
        try:
            with zipfile.ZipFile(self._path(key)) as archive:
                pictures = [_decode(archive.read(name)) for name in archive.namelist()]
                complete = len(pictures) == int(archive.comment)
            return np.stack(pictures) if complete else None
        except (OSError, zipfile.BadZipFile, zlib.error, struct.error, ValueError, RuntimeError, EOFError, SyntaxError):
            return None  # absent, or damaged in any of the ways in which the two formats' readers say so

    def put(self, key: str, batch: RGB8) -> None:
        """Keep a batch, uint8 N×H×W×3 RGB with N ≥ 1, in place of any that is there. Raises `StorageError`."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for number, picture in enumerate(batch):
                archive.writestr(zipfile.ZipInfo(f"{number:04d}.webp"), _encode(picture))  # no time stamp: equal bytes
            archive.comment = str(len(batch)).encode()  # the archive's own list of files has no checksum
        write_atomically(self._path(key), buffer.getvalue())

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.zip"


def cached_super_resolve(cache: SRCache | None, model: SRModel, lr: RGB8, calls: Sequence[SRCall]) -> RGB8:
    """What ``model`` makes of a batch, from the cache where it has it. An SR output is a picture: it is rounded to 8 bits.

    Args:
        cache: None calls the model every time.
        model: see `SRModel`.
        lr: uint8 N×h×w×3 RGB, N ≥ 1.
        calls: N of them.

    Returns:
        uint8 N×H×W×3 RGB, H = h·scale.

    Raises:
        SRModelError: the model broke its protocol; nothing is kept then.
        StorageError: the disk is full, or the cache's folder cannot be written to.
    """
    expected = (len(lr), lr.shape[1] * model.scale, lr.shape[2] * model.scale, 3)
    key = batch_key(model, lr, calls)
    if cache is not None and (kept := cache.get(key)) is not None and kept.shape == expected:
        return kept
    low = torch.from_numpy(np.ascontiguousarray(lr)).permute(0, 3, 1, 2).contiguous().float() / 255
    with torch.no_grad():
        high = check_output(model, low, model(low, calls))
    made: RGB8 = (high.cpu() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    if cache is not None:
        cache.put(key, made)
    return made


def _encode(picture: RGB8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", lossless=True, quality=0, method=0)  # fastest; larger by some per cent
    return buffer.getvalue()


def _decode(data: bytes) -> RGB8:
    with Image.open(io.BytesIO(data)) as picture:
        return np.array(picture.convert("RGB"))
