"""Photo sources, the scan, near-duplicates and the split by photo."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from data_synth.photos import (
    DuplicateRule,
    Photo,
    PhotoError,
    find_photos,
    fingerprint,
    gather,
    near_duplicates,
    photo_source,
    readable,
    sample_photos,
    scan_photos,
    split_photos,
)
from data_synth.photos.duplicates import DuplicateError
from data_synth.photos.hub import HubTable, parse_table
from data_synth.schema.errors import ImageError
from data_synth.schema.pixels import PHOTO_SUFFIXES, decode_rgb, encode_png


@pytest.fixture(scope="module")
def samples():
    return {photo.source_id.removeprefix("sample:"): photo.read() for photo in sample_photos()}


def jpeg(pixels, quality=90, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def turned_exif() -> Image.Exif:
    """Metadata of a camera held upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


# -- split --


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


def test_split_without_groups_stays_what_it_was():
    """The packaged weights were trained on these splits: their held-out photos must stay held out."""

    def ids(photos, share):
        split = split_photos(photos, validation=share, test=share, seed=0)
        return [[photo.source_id for photo in part] for part in (split.validation, split.test, split.train)]

    assert ids([Photo(f"{i:04d}.webp") for i in range(20)], 0.1)[:2] == [["0008.webp", "0010.webp"], ["0015.webp", "0019.webp"]]
    assert ids(sample_photos(), 0.2) == [
        ["sample:chelsea"],
        ["sample:coffee"],
        ["sample:flower.jpg", "sample:astronaut", "sample:china.jpg", "sample:motorcycle", "sample:rocket"],
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=12, max_size=30), st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.25]))
def test_a_group_falls_into_one_part(sizes, seed, share):
    photos = [Photo(f"{group}-{member}") for group, size in enumerate(sizes) for member in range(size)]
    groups = [[photo.source_id for photo in photos if photo.source_id.startswith(f"{group}-")] for group in range(len(sizes))]
    groups[0].append("a photo of another folder")
    split = split_photos(photos, validation=share, test=share, seed=seed, groups=groups)
    parts = [{photo.source_id for photo in part} for part in (split.train, split.validation, split.test)]
    assert sum(len(part) for part in parts) == len(set.union(*parts)) == len(photos)
    for group in groups:
        assert sum(not part.isdisjoint(group) for part in parts) == 1
    wanted = max(1, round(len(photos) * share)) if share else 0
    smallest_left = min(sum(name.startswith(f"{group}-") for name in parts[0]) or 6 for group in range(len(sizes)))
    for part in parts[1:]:
        assert abs(len(part) - wanted) <= max(smallest_left, wanted and min(sizes))
    assert split == split_photos(photos[::-1], validation=share, test=share, seed=seed, groups=groups[::-1])


def test_too_few_photos_that_differ_are_an_error():
    photos = [Photo(name) for name in "abcdef"]
    with pytest.raises(PhotoError, match="6 photos form 2 groups"):
        split_photos(photos, validation=0.1, test=0.1, seed=0, groups=["abc", "def"])


# -- sources --


def test_folders_are_searched_recursively(tmp_path):
    for name in ("b.png", "nested/a.PNG", ".hidden.png", ".thumbnails/b.png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_png(np.zeros((8, 8, 3), dtype=np.uint8)))
    assert [photo.source_id for photo in find_photos(tmp_path)] == ["b.png", "nested/a.PNG"]


def test_a_link_to_a_folder_is_gone_into_once(tmp_path):
    elsewhere, photos = tmp_path / "elsewhere", tmp_path / "photos"
    (elsewhere / "deep").mkdir(parents=True)
    photos.mkdir()
    for path in (elsewhere / "a.png", elsewhere / "deep" / "b.png", photos / "c.png"):
        path.touch()
    (photos / "linked").symlink_to(elsewhere)
    (photos / "twice").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(photos)
    assert [photo.source_id for photo in find_photos(photos)] == ["c.png", "linked/a.png", "linked/deep/b.png"]


def test_a_link_does_not_take_the_name_of_the_folder_beside_it(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    (tmp_path / "again").symlink_to(tmp_path / "photos")
    assert [photo.source_id for photo in find_photos(tmp_path)] == ["photos/a.png"]


def test_folders_without_pictures_are_named(tmp_path):
    with pytest.raises(PhotoError, match=str(tmp_path)):
        find_photos(tmp_path)
    with pytest.raises(PhotoError, match="found none"):
        find_photos(tmp_path / "missing")
    (tmp_path / "train.parquet").touch()
    with pytest.raises(PhotoError, match=f"write hf:{tmp_path}"):
        find_photos(tmp_path)


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


def test_sources_state_their_licence_and_origin(tmp_path):
    (tmp_path / "one.png").write_bytes(encode_png(np.zeros((8, 8, 3), dtype=np.uint8)))
    assert photo_source(str(tmp_path)).licence == "not stated"
    for name in ("LICENCE.txt", "Attribution.md", "notes.txt"):
        (tmp_path / name).touch()
    source = photo_source(str(tmp_path))
    assert source.licence == "see Attribution.md, LICENCE.txt of the folder"
    assert source.name == tmp_path.name
    samples = photo_source("samples")
    assert all(photo.source_id.removeprefix("sample:") in samples.licence for photo in samples.photos)
    assert "scikit-image" in samples.origin


def test_several_sources_have_unique_names_and_are_read(tmp_path, samples):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "sample:coffee").with_suffix(".png").write_bytes(encode_png(samples["coffee"]))
    alone = gather([])
    assert alone[0].photos == tuple(sample_photos())
    first, second, third = gather([str(folder), "samples", str(folder)])
    names = [photo.source_id for source in (first, second, third) for photo in source.photos]
    assert len(set(names)) == len(names) == 9
    assert names[0] == "0:sample:coffee.png"
    assert names[1] == "1:sample:astronaut"
    assert np.array_equal(second.photos[1].read(), samples["chelsea"])
    assert np.array_equal(first.photos[0].read(), samples["coffee"])


# -- Hugging Face data sets --


@pytest.fixture(scope="module")
def table_folder(tmp_path_factory, samples):
    """A data set on disk: rows of PNG, of a turned JPEG, of nothing, and of damage."""
    from datasets import Dataset, DatasetInfo, Features, Image, Value

    turned = jpeg(samples["coffee"], exif=turned_exif())
    rows = [encode_png(samples["chelsea"]), turned, None, b"damage"]
    cells = [row and {"bytes": row, "path": None} for row in rows]
    features = Features({"picture": Image(), "label": Value("int64")})
    info = DatasetInfo(license="CC BY 4.0", homepage="https://example.org/photos", features=features)
    folder = tmp_path_factory.mktemp("hub") / "little"
    Dataset.from_dict({"picture": cells, "label": [0, 1, 2, 3]}, features=features, info=info).save_to_disk(str(folder))
    return folder


def test_hub_rows_mean_what_files_mean(table_folder, samples):
    source = photo_source(f"hf:{table_folder}")
    assert [photo.source_id for photo in source.photos][:2] == ["hf:little/all/0000000", "hf:little/all/0000001"]
    assert (source.licence, source.origin) == ("CC BY 4.0", "Hugging Face data set https://example.org/photos")
    png, turned, empty, damaged = source.photos
    assert np.array_equal(png.read(), samples["chelsea"])
    assert turned.read().shape == (600, 400, 3)
    with pytest.raises(ImageError, match=r"row 2 of .*little: holds no picture"):
        empty.read()
    with pytest.raises(ImageError, match="hf:little/all/0000003: not a picture"):
        damaged.read()
    scan = scan_photos(source.photos, min_side=64)
    assert scan.usable == (png, turned)
    assert len(scan.left_out) == 2


def test_hub_photos_are_read_in_another_process(table_folder, tmp_path, samples):
    photo = pickle.dumps(photo_source(f"hf:{table_folder}").photos[0])
    assert len(photo) < 1000  # where the pixels are, not the pixels
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read()).read().sum())"
    done = subprocess.run([sys.executable, "-c", code], input=photo, capture_output=True, check=True)
    assert int(done.stdout) == samples["chelsea"].sum()


def test_hub_columns_and_splits_are_found_or_asked_for(tmp_path, samples, monkeypatch):
    import datasets
    from datasets import Dataset, DatasetDict, Features, Value
    from datasets import Image as ImageFeature

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    cell = {"bytes": encode_png(samples["coffee"]), "path": None}
    features = Features({"lr": ImageFeature(), "hr": ImageFeature(), "text": Value("string")})
    two = Dataset.from_dict({"lr": [cell], "hr": [cell], "text": ["x"]}, features=features)
    DatasetDict({"dev": two, "held_out": two}).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(PhotoError, match=r"no split 'train'; write hf:.*two:SPLIT with one of dev, held_out"):
        photo_source(f"hf:{tmp_path}/two")
    with pytest.raises(PhotoError, match=r"2 columns hold images; write hf:.*two:dev:COLUMN with one of lr, hr"):
        photo_source(f"hf:{tmp_path}/two:dev")
    with pytest.raises(PhotoError, match="column 'text' holds no images"):
        photo_source(f"hf:{tmp_path}/two:dev:text")
    assert np.array_equal(photo_source(f"hf:{tmp_path}/two:dev:hr").photos[0].read(), samples["coffee"])
    with pytest.raises(PhotoError, match=r"has no slices, got dev\[:1\]"):
        photo_source(f"hf:{tmp_path}/two:dev[:1]:hr")
    two.save_to_disk(str(tmp_path / "one"))
    with pytest.raises(PhotoError, match="is of no split, got validation"):
        photo_source(f"hf:{tmp_path}/one:validation:hr")
    two.select_columns(["hr"]).to_parquet(tmp_path / "alone.parquet")
    source = photo_source(f"hf:{tmp_path}/alone.parquet:train[:1]")
    assert source.photos[0].source_id == "hf:alone.parquet/train[:1]/0000000"
    assert np.array_equal(source.photos[0].read(), samples["coffee"])


def test_hub_folder_of_parquet_shards_with_a_card(tmp_path, samples, monkeypatch):
    import datasets
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    cells = [{"bytes": encode_png(samples[name]), "path": None} for name in ("coffee", "rocket")]
    rows = Dataset.from_dict({"image": cells}, features=Features({"image": ImageFeature()}))
    (tmp_path / "set" / "data").mkdir(parents=True)
    rows.to_parquet(tmp_path / "set" / "data" / "test-00000-of-00001.parquet")
    (tmp_path / "set" / "README.md").write_text("---\nlicense: cc0-1.0\n---\nPhotos.\n")
    source = photo_source(f"hf:{tmp_path / 'set'}")
    assert source.licence == "cc0-1.0"
    assert source.name == "hf:set/test"  # the only split
    assert np.array_equal(source.photos[1].read(), samples["rocket"])


def test_specifications_of_tables():
    assert parse_table("owner/name") == HubTable("owner/name")
    assert parse_table("owner/name:train[:10%]:image") == HubTable("owner/name", "train[:10%]", "image")
    assert parse_table("/data/set:test") == HubTable("/data/set", "test")
    with pytest.raises(PhotoError, match="is written hf:NAME_OR_PATH"):
        parse_table("a:b:c:d")


def test_an_unreachable_hub_is_one_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # read when the library is imported, so in another process
    code = "from data_synth.photos import *\ntry: photo_source('hf:nobody/nothing')\nexcept PhotoError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert len(done.stdout.splitlines()) == 1
    assert "hf:nobody/nothing: no such folder here, and the hub cannot be reached" in done.stdout


# -- near-duplicates --


def altered(pixels):
    """Copies of a photo as they turn up in collections."""
    picture = Image.fromarray(pixels)
    width, height = picture.size
    yield np.array(picture.resize((width // 2, height // 2), Image.Resampling.BICUBIC))
    yield decode_rgb(jpeg(pixels, quality=20))
    yield np.array(picture.crop((width // 50, height // 50, width - width // 50, height - height // 50)))
    yield np.clip(pixels * 1.3, 0, 255).astype(np.uint8)
    yield np.array(ImageOps.mirror(picture))
    yield np.array(ImageOps.mirror(picture).resize((300, 300)).convert("L").convert("RGB"))


def test_copies_are_grouped_and_different_photos_are_not(samples):
    photos = list(samples.values())
    copies = [list(altered(photo)) for photo in photos]
    prints = [fingerprint(photo) for photo in photos] + [fingerprint(copy) for own in copies for copy in own]
    expected = [(i, *range(len(photos) + 6 * i, len(photos) + 6 * (i + 1))) for i in range(len(photos))]
    assert near_duplicates(prints) == expected
    assert near_duplicates(prints[: len(photos)]) == []
    assert near_duplicates(prints, DuplicateRule(distance=0, correlation=1.0)) != expected
    assert near_duplicates([]) == near_duplicates(prints[:1]) == []


def test_flat_pictures_are_not_all_one():
    """The hash of a flat picture is noise, and two skies look alike: only the very same picture counts."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :128].astype(np.float32)
    skies = []
    for i in range(30):
        slope = rng.uniform(-0.3, 0.3, 2)
        sky = 120 + i + slope[0] * y + slope[1] * x + rng.normal(0, 1.0, (96, 128))
        skies.append(np.repeat(np.clip(sky, 0, 255).astype(np.uint8)[..., None], 3, axis=2))
    black = np.zeros((64, 64, 3), dtype=np.uint8)
    prints = [fingerprint(picture) for picture in [*skies, black, black, black + 255]]
    assert near_duplicates(prints) == [(30, 31)]


def test_hashes_agree_with_imagehash_in_bits(samples):
    import imagehash

    one, other = samples["coffee"], samples["rocket"]
    expected = imagehash.phash(Image.fromarray(one)) - imagehash.phash(Image.fromarray(other))
    assert (fingerprint(one).hash ^ fingerprint(other).hash).bit_count() == expected
    assert fingerprint(one).mirrored == fingerprint(np.ascontiguousarray(one[:, ::-1])).hash


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 31))
def test_blocks_find_the_pairs_that_one_by_one_finds(seed, distance):
    from data_synth.photos import duplicates

    rng = np.random.default_rng(seed)
    near = rng.integers(0, 4, 40, dtype=np.uint64) << rng.integers(0, 60, 40, dtype=np.uint64)
    found = {(i, j) for first, second in duplicates._close(near, near, distance) for i, j in zip(first, second, strict=True)}
    assert found == {(i, j) for i in range(40) for j in range(i + 1, 40) if (int(near[i]) ^ int(near[j])).bit_count() <= distance}


def test_a_meaningless_rule_is_refused():
    for broken in ({"distance": 40}, {"correlation": 0.0}, {"flat": -1.0}):
        with pytest.raises(DuplicateError):
            DuplicateRule(**broken)


# -- scan --


@pytest.fixture
def folder(tmp_path, samples):
    """Six pictures: two photos, a smaller copy and a turned, re-encoded one, a damaged and a small one."""
    photos = tmp_path / "photos"
    photos.mkdir()
    coffee = Image.fromarray(samples["coffee"])
    (photos / "a.png").write_bytes(encode_png(samples["coffee"]))
    (photos / "b.png").write_bytes(encode_png(samples["rocket"]))
    coffee.resize((300, 200)).save(photos / "c.webp", quality=70)
    (photos / "d.jpg").write_bytes(jpeg(np.rot90(samples["coffee"], 1).copy(), exif=turned_exif()))
    (photos / "e.jpg").write_bytes(jpeg(samples["chelsea"])[:9000])
    (photos / "f.png").write_bytes(encode_png(samples["chelsea"][:40]))
    return photos


def test_scan_names_what_cannot_be_used_and_what_is_alike(folder):
    photos = find_photos(folder)
    counted = []
    scan = scan_photos(photos, min_side=128, on_scanned=counted.append)
    assert [photo.source_id for photo in scan.usable] == ["a.png", "b.png", "c.webp", "d.jpg"]
    assert scan.groups == (("a.png", "c.webp", "d.jpg"),)
    damaged, small = scan.left_out
    assert str(folder / "e.jpg") in damaged
    assert small == "f.png: photo must be at least 128 px on each side, got 451x40"
    assert counted == [1, 2, 3, 4, 5, 6]
    assert scan == scan_photos(photos, min_side=128, workers=5)
    with pytest.raises(ImageError, match=r"e\.jpg: damaged"):
        scan_photos(photos, min_side=128, strict=True)
    with pytest.raises(PhotoError, match="none of 2 photos can be used"):
        scan_photos(photos[-2:], min_side=128)
    with pytest.raises(PhotoError, match="the same name twice"):
        scan_photos([*photos, photos[0]], min_side=128)


def test_a_second_scan_decodes_only_what_changed(folder, tmp_path, samples):
    photos, cache = find_photos(folder), tmp_path / "photos.json"
    first = scan_photos(photos, min_side=128, cache_file=cache)
    records = json.loads(cache.read_text())["photos"]
    assert set(records) == {"a.png", "b.png", "c.webp", "d.jpg", "f.png"}  # a photo that failed is tried again
    records["b.png"][2:6] = [500, 500, *records["a.png"][4:6]]  # a lie a decoder would not tell
    records["b.png"][6] = records["a.png"][6]
    cache.write_text(json.dumps({"version": 2, "photos": records}))
    assert scan_photos(photos, min_side=128, cache_file=cache).groups == (("a.png", "b.png", "c.webp", "d.jpg"),)
    (folder / "b.png").write_bytes(encode_png(samples["china.jpg"]))
    assert scan_photos(photos, min_side=128, cache_file=cache).groups == first.groups
    assert scan_photos(photos, min_side=20, cache_file=cache).usable[-1].source_id == "f.png"
    for damage in ("", "[]", '{"version": 0}', '{"version": 1, "photos": {"a.png": [1]}}'):
        cache.write_text(damage)
        assert scan_photos(photos, min_side=128, cache_file=cache).groups == first.groups


def test_an_interrupted_scan_keeps_what_it_found(folder, tmp_path):
    def stop(done):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan_photos(find_photos(folder), min_side=128, cache_file=tmp_path / "photos.json", on_scanned=stop)
    assert set(json.loads((tmp_path / "photos.json").read_text())["photos"]) == {"a.png", "b.png", "c.webp"}


def test_samples_can_be_scanned():
    scan = scan_photos(sample_photos(), min_side=128)
    assert len(scan.usable) == 7
    assert scan.groups == ()


@pytest.mark.parametrize("suffix", sorted(PHOTO_SUFFIXES))
def test_a_picture_of_every_suffix_is_found_and_read(tmp_path, samples, suffix):
    pixels = next(iter(samples.values()))
    Image.fromarray(pixels).save(tmp_path / f"photo{suffix.upper()}")
    (photo,) = find_photos(tmp_path)
    assert photo.read().shape == pixels.shape
