"""Photo sources and the split by photo."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_synth.photos import Photo, PhotoError, find_photos, readable, sample_photos, split_photos
from data_synth.schema.errors import ImageError
from data_synth.schema.pixels import encode_png


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 60), st.integers(0, 2**32), st.floats(0, 0.3), st.floats(0, 0.3))
def test_no_photo_stands_in_two_splits(count, seed, validation, test):
    photos = [Photo(f"photo-{i}") for i in range(count)]
    try:
        split = split_photos(photos, validation=validation, test=test, seed=seed)
    except PhotoError:
        assert count < 5
        return
    parts = [{photo.source_id for photo in part} for part in (split.train, split.validation, split.test)]
    assert sum(len(part) for part in parts) == count
    assert len(set.union(*parts)) == count
    assert bool(parts[1]) == (validation > 0)
    assert bool(parts[2]) == (test > 0)


def test_split_depends_on_the_seed_not_on_the_order():
    photos = [Photo(f"photo-{i}") for i in range(40)]
    one = split_photos(photos, validation=0.2, test=0.2, seed=0)
    assert split_photos(photos[::-1], validation=0.2, test=0.2, seed=0) == one
    assert split_photos(photos, validation=0.2, test=0.2, seed=1) != one


def test_too_few_photos_say_how_many_are_needed():
    with pytest.raises(PhotoError, match="at least 3 photos, got 2"):
        split_photos([Photo("a"), Photo("b")], validation=0.1, test=0.1, seed=0)


def test_folders_are_searched_recursively(tmp_path):
    for name in ("b.png", "nested/a.PNG", ".hidden.png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_png(np.zeros((8, 8, 3), dtype=np.uint8)))
    assert [photo.source_id for photo in find_photos(tmp_path)] == ["b.png", "nested/a.PNG"]


def test_folders_without_pictures_are_named(tmp_path):
    with pytest.raises(PhotoError, match=str(tmp_path)):
        find_photos(tmp_path)
    with pytest.raises(PhotoError, match="found none"):
        find_photos(tmp_path / "missing")


def test_sample_photos_are_all_there_and_in_colour():
    for photo in sample_photos():
        pixels = photo.read()
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
        assert min(pixels.shape[:2]) >= 300
    with pytest.raises(PhotoError, match="no sample photo is called 'nobody'"):
        Photo("sample:nobody").read()


def test_damaged_and_small_photos_come_back_as_their_errors(tmp_path):
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (tmp_path / "fine.png").write_bytes(encode_png(np.zeros((40, 40, 3), dtype=np.uint8)))
    (tmp_path / "small.png").write_bytes(encode_png(np.zeros((10, 40, 3), dtype=np.uint8)))
    found = {photo.source_id: result for photo, result in readable(find_photos(tmp_path), min_side=32)}
    assert isinstance(found["fine.png"], np.ndarray)
    assert "damaged.png" in str(found["damaged.png"])
    assert isinstance(found["damaged.png"], ImageError)
    assert "at least 32 px on each side, got 40x10" in str(found["small.png"])
