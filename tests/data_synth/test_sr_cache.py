"""The SR cache: what comes out is what went in, whatever happens to the files."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_synth.schema.errors import StorageError
from data_synth.sr_cache import SRCache, batch_key, cached_super_resolve
from data_synth.sr_models.protocol import Crop, Span, SRCall, SRModelError

KEY = "ab" + "0" * 62


@dataclasses.dataclass
class SmallNet:
    """A real network (one convolution, pixel shuffle), whose output depends on its calls and on its company. Counts its calls."""

    name: str = "small"
    version: str = "1"
    scale: int = 2
    family: str = "regression"
    settings: Mapping[str, Span] = dataclasses.field(default_factory=lambda: {"gain": Span(0, 1)})
    calls: int = 0
    fault: float = 0.0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(3 * self.scale**2, 3, 3, 3, generator=generator) / 5

    def covers(self, source_id: str) -> bool:
        return True

    def __call__(self, lr: torch.Tensor, calls: Sequence[SRCall]) -> torch.Tensor:
        self.calls += 1
        features = torch.nn.functional.conv2d(lr - lr.mean(), self.weight, padding=1)
        up = torch.pixel_shuffle(features, self.scale) + 0.5 + self.fault
        gains = torch.tensor([call.settings["gain"] + call.seed / 100 for call in calls])
        return up + 0.1 * gains[:, None, None, None]


def a_batch(seed: int, shape: tuple[int, ...] = (3, 8, 12, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def some_calls(count: int = 3) -> list[SRCall]:
    return [SRCall(seed, {"gain": 0.25 * seed}, Crop(f"photo-{seed}", 4 * seed, 8, 32)) for seed in range(count)]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    images=st.integers(1, 4),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    levels=st.sampled_from([1, 2, 256]),
)
def test_batches_come_back_exactly(tmp_path_factory, seed, images, height, width, levels):
    cache = SRCache(tmp_path_factory.mktemp("cache"))
    batch = np.random.default_rng(seed).integers(0, levels, (images, height, width, 3), dtype=np.uint8)
    assert cache.get(KEY) is None
    cache.put(KEY, batch)
    kept = cache.get(KEY)
    assert kept.dtype == np.uint8
    assert np.array_equal(kept, batch)


def test_photographs_take_less_room_than_their_pixels(tmp_path, china, chelsea):
    batch = np.stack([china[:256, :256], china[100:356, 300:556], chelsea[:256, :256]])
    cache = SRCache(tmp_path)
    cache.put(KEY, batch)
    assert np.array_equal(cache.get(KEY), batch)
    (entry,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert entry.parent.name == KEY[:2]
    assert entry.stat().st_size < 0.75 * batch.nbytes


def test_the_output_is_the_models_rounded_to_8_bits_and_then_kept(tmp_path):
    lr, calls = a_batch(0), some_calls()
    model = SmallNet()
    raw = model(torch.from_numpy(lr).permute(0, 3, 1, 2).float() / 255, calls)
    expected = np.rint(raw.clamp(0, 1).permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
    model.calls = 0
    plain = cached_super_resolve(None, model, lr, calls)
    assert np.array_equal(plain, expected)
    first = cached_super_resolve(SRCache(tmp_path), model, lr, calls)
    assert model.calls == 2
    again = cached_super_resolve(SRCache(tmp_path), model, lr, calls)
    assert model.calls == 2
    for batch in (plain, first, again):
        assert (batch.shape, batch.dtype) == ((3, 16, 24, 3), np.uint8)
        assert np.array_equal(batch, plain)


def changed_call(**values):
    return lambda calls: [dataclasses.replace(calls[0], **values), *calls[1:]]


@pytest.mark.parametrize(
    "change",
    [
        changed_call(seed=7),
        changed_call(settings={"gain": 1e-9}),
        changed_call(settings={"gains": 0.0}),
        changed_call(crop=Crop("photo-0", 0, 8, 32, flip=True)),
        changed_call(crop=Crop("photo-1", 0, 8, 32)),
        lambda calls: calls[::-1],
    ],
)
def test_another_call_is_another_entry(change):
    lr, calls = a_batch(0), some_calls()
    assert batch_key(SmallNet(), lr, change(calls)) != batch_key(SmallNet(), lr, calls)


def test_another_model_or_picture_is_another_entry():
    lr, calls = a_batch(0), some_calls()
    brighter = lr.copy()
    brighter[1, 2, 3, 0] ^= 1
    models = [SmallNet(), SmallNet(name="other"), SmallNet(version="2"), SmallNet(scale=4)]
    keys = [batch_key(model, lr, calls) for model in models]
    keys += [batch_key(SmallNet(), brighter, calls), batch_key(SmallNet(), lr.reshape(3, 12, 8, 3), calls)]
    assert len(set(keys)) == len(keys)


def test_another_pytorch_is_another_entry(monkeypatch):
    """A build names its version among what decides the bytes; pictures of another must not come into it."""
    lr, calls = a_batch(0), some_calls()
    before = batch_key(SmallNet(), lr, calls)
    monkeypatch.setattr(torch, "__version__", "1.0")
    assert batch_key(SmallNet(), lr, calls) != before


def test_the_key_does_not_depend_on_how_things_lie_in_memory():
    lr, calls = a_batch(0), some_calls()
    twice = [dataclasses.replace(call, settings={"a": 1.0, "b": 2.0}) for call in calls]
    turned = [dataclasses.replace(call, settings={"b": 2.0, "a": 1.0}) for call in calls]
    strided = np.asfortranarray(lr)
    assert batch_key(SmallNet(), lr, twice) == batch_key(SmallNet(), strided, turned)


def entry_of(cache: SRCache):
    (path,) = [path for path in cache.folder.rglob("*") if path.is_file()]
    return path


@pytest.mark.parametrize("damage", ["empty", "short", "flipped", "foreign", "no pictures", "other size"])
def test_a_damaged_entry_is_made_again(tmp_path, damage):
    cache, model, lr, calls = SRCache(tmp_path), SmallNet(), a_batch(1), some_calls()
    made = cached_super_resolve(cache, model, lr, calls)
    path = entry_of(cache)
    good = path.read_bytes()
    if damage == "other size":  # a whole entry, but not this batch's
        cache.put(path.stem, made[:, ::2])
    else:
        middle = len(good) // 4
        path.write_bytes(
            {
                "empty": b"",
                "short": good[: len(good) // 2],
                "flipped": good[:middle] + bytes([good[middle] ^ 0x40]) + good[middle + 1 :],
                "foreign": b"\x89PNG\r\n",
                "no pictures": b"PK\x05\x06" + bytes(18),
            }[damage]
        )
        assert cache.get(path.stem) is None
    assert np.array_equal(cached_super_resolve(cache, model, lr, calls), made)
    assert model.calls == 2
    assert path.read_bytes() == good


def test_no_flipped_bit_gives_wrong_pixels(tmp_path):
    """Every third bit of an entry, one after the other: each byte is hit, and each place in a byte."""
    cache, batch = SRCache(tmp_path), a_batch(2, (2, 3, 2, 3))
    cache.put(KEY, batch)
    path = entry_of(cache)
    good = path.read_bytes()
    found = 0
    for position in range(0, 8 * len(good), 3):
        data = bytearray(good)
        data[position // 8] ^= 1 << position % 8
        path.write_bytes(bytes(data))
        kept = cache.get(KEY)
        assert kept is None or np.array_equal(kept, batch), position
        found += kept is None
    assert found > len(good)


def test_what_is_not_an_image_is_not_kept(tmp_path):
    model = SmallNet(fault=float("nan"))
    with pytest.raises(SRModelError, match="finite"):
        cached_super_resolve(SRCache(tmp_path), model, a_batch(0), some_calls())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    assert SRCache(tmp_path / "file").get(KEY) is None
    with pytest.raises(StorageError, match=r"cannot be written: .*; make room, or choose another folder"):
        SRCache(tmp_path / "file").put(KEY, a_batch(0))


def write_and_read(folder, worker):
    """Writes the same entry over and over, and reads it in between; returns how often it was not whole."""
    cache, batch = SRCache(folder), a_batch(5)
    wrong = 0
    for _ in range(40):
        cache.put(KEY, batch)
        kept = cache.get(KEY)
        wrong += kept is None or not np.array_equal(kept, batch)
    os._exit(wrong)


def test_writers_do_not_disturb_each_other(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=write_and_read, args=(tmp_path, number)) for number in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert np.array_equal(SRCache(tmp_path).get(KEY), a_batch(5))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
