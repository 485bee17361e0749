"""How any picture becomes the contract's pixels: uint8 H×W×3, sRGB, upright.

Every entry into the system (photo folders, `/score` bodies, the command line) reads pictures through here, so a file
means the same pixels everywhere. Knows nothing about datasets, tensors or HTTP.
"""

from __future__ import annotations

import io
import struct
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from data_synth.schema.errors import ImageError, StorageError

RGB8 = npt.NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM")
"""What is read, by Pillow's names. Not all that it can: EPS starts another program, ICO is decoded when its header is read."""

PHOTO_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".avif", ".jp2", ".ppm"})
MAX_PIXELS = 200_000_000
"""Default refusal limit, in pixels: twice the largest medium-format sensors; guards against decompression bombs."""


_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, ArithmeticError, LookupError, TypeError, struct.error)
"""What Pillow's decoders raise on damaged files; each plugin has its own habits (AVIF: RuntimeError, TIFF: struct.error, …)."""

_TIFF_BITS, _TIFF_PLANES = 258, 284


def decode_rgb(
    source: bytes | str | Path, *, max_pixels: int = MAX_PIXELS, name: str | None = None, background: int = 255
) -> RGB8:
    """Decode an encoded picture (bytes, or a file's path) to upright 8-bit sRGB.

    EXIF orientation is applied; an embedded ICC profile is converted to sRGB; transparency is composited over ``background``;
    16-bit grey is scaled (65535 → 255) and rounded; of 16-bit colour Pillow keeps the high byte, at most one step of 255 off;
    grey, palette and CMYK become RGB. Of an animation, the first frame counts.

    Args:
        source: bytes, or a file's path.
        max_pixels: refusal limit.
        name: what errors call the picture; by default its path, or its length in bytes.
        background: grey level behind what is transparent.

    Returns:
        uint8 array, H×W×3, RGB.

    Raises:
        ImageError: not a picture, truncated, larger than ``max_pixels``, or of a sample type without a defined range.
    """
    with quiet_metadata(), _opened(source, max_pixels, name) as picture:
        picture.load()
        return to_rgb8(picture, background)


def decode_reduced(
    source: bytes | str | Path, side: int, *, max_pixels: int = MAX_PIXELS, name: str | None = None
) -> tuple[RGB8, tuple[int, int]]:
    """Decode as `decode_rgb` does, but small: all of the file is read (damage shows), at a fraction of the time for JPEG.

    Meant to run in threads: enter `quiet_metadata` around them all.

    Args:
        source: bytes, or a file's path.
        side: longer side of what comes back, in px; a smaller picture keeps its size.
        max_pixels: refusal limit.
        name: what errors call the picture.

    Returns:
        The reduced picture, uint8 h×w×3 RGB, and the whole one's (height, width) as stored, before EXIF orientation.

    Raises:
        ImageError: as `decode_rgb`.
    """
    with _opened(source, max_pixels, name) as picture:
        width, height = picture.size
        picture.draft(None, (2 * side, 2 * side))  # JPEG alone: decodes at 1/2, 1/4 or 1/8 of its size
        picture.load()
        upright = Image.fromarray(to_rgb8(picture))
    factor = side / max(upright.size)
    if factor < 1:
        small = (max(1, round(upright.width * factor)), max(1, round(upright.height * factor)))
        upright = upright.resize(small, Image.Resampling.BOX)
    return np.array(upright, dtype=np.uint8), (height, width)


def stored_size(source: bytes | str | Path, *, max_pixels: int = MAX_PIXELS, name: str | None = None) -> tuple[int, int]:
    """(height, width) as stored, before EXIF orientation, from the header alone: no pixel is decoded.

    Raises:
        ImageError: not a picture, or larger than ``max_pixels``.
    """
    with quiet_metadata(), _opened(source, max_pixels, name) as picture:
        return picture.height, picture.width


@contextmanager
def quiet_metadata() -> Iterator[None]:
    """Silence Pillow's warnings about size and damaged metadata: pixels are checked, the rest is not used.

    Warning filters belong to the whole process, so threads are started inside, not each with its own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
        yield


@cache
def _formats() -> tuple[str, ...]:
    """Of `FORMATS`, those that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def _opened(source: bytes | str | Path, max_pixels: int, name: str | None) -> Iterator[Image.Image]:
    """The picture, not decoded yet; whatever goes wrong until it is closed becomes an `ImageError`."""
    if name is None:
        name = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats()) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise ImageError(f"{name}: image must have at most {max_pixels} pixels, got {width}x{height}")
            if _is_misread(picture):
                raise ImageError(
                    f"{name}: 16-bit TIFF with separate colour planes cannot be read; save it interleaved, or as PNG"
                )
            yield picture
    except ImageError as error:
        raise error if str(error).startswith(name) else ImageError(f"{name}: {error}") from error
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: is a folder, expected an image file") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not a picture in a format that can be read (PNG, JPEG, WebP, TIFF, …)") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: image dimensions are beyond what is safe to decode") from error
    except _DAMAGED as error:
        raise ImageError(f"{name}: damaged picture: {error}") from error


def _is_misread(picture: Image.Image) -> bool:
    """16-bit planes, which Pillow decodes as 8-bit ones without a word: a wrong picture, not an error."""
    tags = getattr(picture, "tag_v2", {})
    return tags.get(_TIFF_PLANES) == 2 and max(tags.get(_TIFF_BITS, (8,))) > 8


def to_rgb8(picture: Image.Image, background: int = 255) -> RGB8:
    """Convert a loaded Pillow image to upright 8-bit sRGB (see `decode_rgb`). Returns uint8 H×W×3."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16") or picture.mode == "I":
        return _grey16_to_rgb8(np.asarray(picture))
    if picture.mode == "F":
        raise ImageError("floating-point pictures have no defined range; save as 8- or 16-bit first")
    if "A" in picture.getbands() or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        behind = Image.new("RGBA", rgba.size, (background, background, background, 255))
        flat = Image.alpha_composite(behind, rgba).convert("RGB")
        flat.info["icc_profile"] = picture.info.get("icc_profile")
        picture = flat
    if picture.mode == "P":
        picture = picture.convert("RGB")  # an embedded profile is of the colours, not of their numbers
    return np.array(_to_srgb(picture), dtype=np.uint8)


def _grey16_to_rgb8(samples: npt.NDArray[Any]) -> RGB8:
    if samples.min() < 0 or samples.max() > 65535:
        raise ImageError(f"integer samples must lie in 0…65535, got {samples.min()}…{samples.max()}")
    grey = np.rint(samples.astype(np.float64) / 257.0).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _to_srgb(picture: Image.Image) -> Image.Image:
    """RGB in sRGB. A broken or unusable profile is treated as absent, as viewers do."""
    profile = picture.info.get("icc_profile")
    if profile and picture.mode in {"RGB", "CMYK", "L"}:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            return picture.convert("RGB")
        if converted is not None:
            return converted
    return picture.convert("RGB")


def encode_png(pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> bytes:
    """Lossless PNG of uint8 H×W×3 (RGB), uint8 H×W or uint16 H×W (grey); a tenth larger than it could be, but fast."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` is at every moment either absent, the old file, or the whole new one.

    Any number of processes and machines may write the same path at once; the last one stays.

    Raises:
        StorageError: the disk is full, or the folder cannot be written to.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written: {error.strerror or error}; make room, or choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)  # debris would fill a full disk further
