"""Any picture → upright 8-bit sRGB."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, features

from data_synth.schema.errors import ImageError, StorageError
from data_synth.schema.pixels import decode_reduced, decode_rgb, encode_png, write_atomically

PICTURE = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@given(st.integers(0, 2**32), st.integers(1, 20), st.integers(1, 20))
def test_png_round_trip_is_exact(seed, height, width):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert np.array_equal(decode_rgb(encode_png(pixels)), pixels)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda stored: stored),
        (2, lambda stored: stored[:, ::-1]),
        (3, lambda stored: stored[::-1, ::-1]),
        (4, lambda stored: stored[::-1]),
        (5, lambda stored: stored.transpose(1, 0, 2)),
        (6, lambda stored: np.rot90(stored, -1)),
        (7, lambda stored: stored[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda stored: np.rot90(stored, 1)),
    ],
)
def test_exif_orientation_is_applied(orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_rgb(encoded(Image.fromarray(PICTURE), exif=exif))
    assert np.array_equal(decoded, upright(PICTURE))


def test_alpha_is_composited_over_white():
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0] = [(200, 0, 0, 255), (200, 0, 0, 0), (0, 0, 0, 128)]
    decoded = decode_rgb(encoded(Image.fromarray(rgba)))
    assert decoded[0, 0].tolist() == [200, 0, 0]
    assert decoded[0, 1].tolist() == [255, 255, 255]
    assert np.abs(decoded[0, 2].astype(int) - 127).max() <= 1


def test_palette_with_transparent_entry():
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putdata([0, 1])
    decoded = decode_rgb(encoded(picture, transparency=1))
    assert decoded.tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_16_bit_grey_keeps_its_range():
    samples = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    decoded = decode_rgb(encode_png(samples))
    assert decoded[0, :, 0].tolist() == [0, 1, 128, 255]
    assert np.array_equal(decoded[..., 0], decoded[..., 2])


def test_16_bit_grey_tiff():
    samples = np.array([[0, 65535, 32896]], dtype=np.uint16)
    assert decode_rgb(encoded(Image.fromarray(samples), "TIFF"))[0, :, 1].tolist() == [0, 255, 128]


def png16(samples: np.ndarray) -> bytes:
    """16-bit colour PNG (with or without alpha), which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 16, {3: 2, 4: 6}[samples.shape[2]], 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in samples)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def test_16_bit_colour_is_at_most_one_step_off():
    import tifffile

    rgb = np.random.default_rng(0).integers(0, 65536, (9, 7, 3), dtype=np.uint16)
    rgb[0, :2, 0] = 0, 65535
    truth = np.rint(rgb / 257.0)
    opaque = np.concatenate([rgb, np.full((9, 7, 1), 65535, dtype=np.uint16)], axis=2)
    tiff = io.BytesIO()
    tifffile.imwrite(tiff, rgb, photometric="rgb")
    for data in (png16(rgb), png16(opaque), tiff.getvalue()):
        decoded = decode_rgb(data)
        assert np.abs(decoded - truth).max() <= 1
        assert decoded[0, :2, 0].tolist() == [0, 255]


def test_separate_colour_planes():
    """8-bit ones are read; 16-bit ones, which Pillow misreads silently, are refused."""
    import tifffile

    for dtype in (np.uint8, np.uint16):
        tiff = io.BytesIO()
        planes = PICTURE.transpose(2, 0, 1).astype(dtype)
        tifffile.imwrite(tiff, planes, photometric="rgb", planarconfig="separate")
        if dtype is np.uint8:
            assert np.array_equal(decode_rgb(tiff.getvalue()), PICTURE)
        else:
            with pytest.raises(ImageError, match=r"my\.tif: 16-bit TIFF with separate colour planes"):
                decode_rgb(tiff.getvalue(), name="my.tif")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow is built without AVIF")
def test_avif_is_upright_and_composited():
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth = np.linspace(0, 255, 64 * 32, dtype=np.uint8).reshape(64, 32)
    stored = np.stack([smooth, smooth[::-1], np.full_like(smooth, 90)], axis=-1)
    decoded = decode_rgb(encoded(Image.fromarray(stored), "AVIF", quality=100, exif=exif))
    assert np.abs(decoded.astype(int) - np.rot90(stored, -1)).max() <= 6
    clear = decode_rgb(encoded(Image.new("RGBA", (16, 16), (10, 20, 30, 0)), "AVIF", quality=100))
    assert clear.min() >= 253


def test_palette_with_an_alpha_table():
    """A PNG palette with one alpha value an entry."""
    picture = Image.new("P", (3, 1))
    picture.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    picture.putdata([0, 1, 2])
    decoded = decode_rgb(encoded(picture, transparency=bytes([255, 0, 128])))
    assert decoded[0, :2].tolist() == [[200, 0, 0], [255, 255, 255]]
    assert np.abs(decoded[0, 2].astype(int) - [127, 127, 227]).max() <= 1


def test_8_bit_grey_becomes_rgb():
    grey = PICTURE[..., 0]
    assert np.array_equal(decode_rgb(encode_png(grey)), np.repeat(grey[..., None], 3, axis=2))


def test_cmyk_becomes_rgb():
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = decode_rgb(encoded(cmyk, "TIFF"))
    assert red.shape == (8, 8, 3)
    assert red[0, 0, 0] > 200
    assert red[0, 0, 1:].max() < 60


def test_embedded_profile_is_converted_to_srgb():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(decode_rgb(encoded(Image.fromarray(PICTURE), icc_profile=profile)), PICTURE)
    broken = decode_rgb(encoded(Image.fromarray(PICTURE), icc_profile=b"not a profile"))
    assert np.array_equal(broken, PICTURE)


def linear_profile() -> bytes:
    """sRGB's primaries with numbers that are proportional to light: its one parametric curve made the identity."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    curve = profile.index(b"para")
    profile[curve + 12 : curve + 32] = struct.pack(">5i", *(round(65536 * value) for value in (1, 1, 0, 1, 0)))
    return bytes(profile)


def test_a_palettes_profile_is_of_its_colours():
    picture = Image.fromarray(PICTURE).quantize(8)
    profile = linear_profile()
    as_rgb, as_palette = (decode_rgb(encoded(one, "PNG", icc_profile=profile)) for one in (picture.convert("RGB"), picture))
    assert np.array_equal(as_rgb, as_palette)
    assert not np.array_equal(as_rgb, np.asarray(picture.convert("RGB")))  # it is converted


def test_transparency_over_a_background_of_choice():
    picture = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    picture.putpixel((1, 1), (255, 255, 255, 255))
    assert (decode_rgb(encoded(picture)) == 255).all()
    assert decode_rgb(encoded(picture), background=0).sum() == 3 * 255


def test_first_frame_of_an_animation():
    frames = [Image.new("L", (4, 4), value) for value in (50, 200)]
    decoded = decode_rgb(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert decoded[0, 0].tolist() == [50, 50, 50]


def test_damaged_files_are_named(tmp_path):
    whole = encode_png(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for name, data in (("truncated.png", whole[: len(whole) // 2]), ("text.png", b"hello"), ("empty.png", b"")):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(ImageError, match=name):
            decode_rgb(path)
    with pytest.raises(ImageError, match="no such file"):
        decode_rgb(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="folder"):
        decode_rgb(tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_damage_of_any_kind_is_an_image_error(kind):
    """Bytes cut off or overwritten: a picture or an `ImageError`, no other error, no warning."""
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow is built without AVIF")
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    whole = encoded(Image.fromarray(PICTURE), kind, exif=exif)
    failures = 0
    for attempt in range(150):
        data = bytearray(whole)
        if attempt % 3 == 0:
            data = data[: rng.integers(len(data))]
        else:
            for place in rng.integers(0, min(len(data), 300), 3):
                data[place] = rng.integers(256)
        try:
            assert decode_rgb(bytes(data)).dtype == np.uint8
        except ImageError as error:
            failures += str(len(data)) in str(error)
    assert failures > 20


def test_reduced_pictures_are_the_whole_ones_made_small(china):
    turned = Image.Exif()
    turned[0x0112] = 6
    for kind, options in (("PNG", {}), ("JPEG", {"quality": 95}), ("WEBP", {"lossless": True}), ("JPEG", {"exif": turned})):
        data = encoded(Image.fromarray(china), kind, **options)
        reduced, size = decode_reduced(data, 160)
        assert size == china.shape[:2]
        whole = Image.fromarray(decode_rgb(data))
        assert max(reduced.shape) == 160
        expected = np.asarray(whole.resize(reduced.shape[1::-1], Image.Resampling.BOX)).astype(int)
        assert np.abs(reduced - expected).mean() < 2
    untouched, _ = decode_reduced(encode_png(PICTURE), 160)
    assert np.array_equal(untouched, PICTURE)
    with pytest.raises(ImageError, match="cut: damaged"):
        decode_reduced(encoded(Image.fromarray(china), "JPEG")[:5000], 160, name="cut")


def test_huge_pictures_are_refused_before_decoding():
    with pytest.raises(ImageError, match="at most 100 pixels, got 20x12"):
        decode_rgb(encode_png(PICTURE), max_pixels=100)


def test_floating_point_pictures_are_refused():
    with pytest.raises(ImageError, match=r"my\.tif: .*no defined range"):
        decode_rgb(encoded(Image.fromarray(np.zeros((4, 4), dtype=np.float32)), "TIFF"), name="my.tif")


def test_write_atomically_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "new" / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


# -- writing ------------------------------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file_and_no_debris(tmp_path):
    """As on a full disk: the process may write no file larger than 1000 bytes."""
    import resource

    path = tmp_path / "file"
    write_atomically(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(StorageError, match=r"file: cannot be written: File too large; make room"):
            write_atomically(path, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        write_atomically(tmp_path / "file" / "inner", b"")
