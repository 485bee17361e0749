"""How any picture becomes the contract's pixels: uint8 H×W×3, sRGB, upright.

Every entry into the system (photo folders, `/score` bodies, the command line) reads pictures through here, so a file
means the same pixels everywhere. Knows nothing about datasets, tensors or HTTP.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from data_synth.schema.errors import ImageError

RGB8 = npt.NDArray[np.uint8]

PHOTO_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".avif"})
MAX_PIXELS = 200_000_000
"""Default refusal limit, in pixels: twice the largest medium-format sensors; guards against decompression bombs."""


def decode_rgb(source: bytes | str | Path, *, max_pixels: int = MAX_PIXELS) -> RGB8:
    """Decode an encoded picture (bytes, or a file's path) to upright 8-bit sRGB.

    EXIF orientation is applied; an embedded ICC profile is converted to sRGB; transparency is composited over white;
    16-bit samples are scaled (65535 → 255); grey, palette and CMYK become RGB. Of an animation, the first frame counts.

    Returns:
        uint8 array, H×W×3, RGB.

    Raises:
        ImageError: not a picture, truncated, larger than ``max_pixels``, or of a sample type without a defined range.
    """
    name = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
                width, height = picture.size
                if width * height > max_pixels:
                    raise ImageError(f"{name}: image must have at most {max_pixels} pixels, got {width}x{height}")
                picture.load()
                return to_rgb8(picture)
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: is a folder, expected an image file") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not a picture in a format that can be read (PNG, JPEG, WebP, TIFF, …)") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: image dimensions are beyond what is safe to decode") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError(f"{name}: damaged picture: {error}") from error


def to_rgb8(picture: Image.Image) -> RGB8:
    """Convert a loaded Pillow image to upright 8-bit sRGB (see `decode_rgb`). Returns uint8 H×W×3."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16") or picture.mode == "I":
        return _grey16_to_rgb8(np.asarray(picture))
    if picture.mode == "F":
        raise ImageError("floating-point pictures have no defined range; save as 8- or 16-bit first")
    if "A" in picture.getbands() or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        flat = Image.alpha_composite(white, rgba).convert("RGB")
        flat.info["icc_profile"] = picture.info.get("icc_profile")
        picture = flat
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
    """Lossless PNG of uint8 H×W×3 (RGB), uint8 H×W or uint16 H×W (grey)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` is at every moment either absent, the old file, or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(data)
    partial.replace(path)
