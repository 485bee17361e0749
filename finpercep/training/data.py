"""Dataset rows → training batches. gt, syn and sr of one photo stay together; augmentations never resample a pixel."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch

from data_synth.schema import Row, SchemaError
from finpercep.windows import Window

Samples = Sequence[Row]
"""The samples of one split (contract 1)."""


class Selected(Sequence[Row]):
    """Some of the samples of a split, in the order of ``indexes``; rows are read when asked for."""

    def __init__(self, samples: Samples, indexes: Sequence[int]) -> None:
        self.samples, self.indexes = samples, list(indexes)

    def __len__(self) -> int:
        return len(self.indexes)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self.samples[i] for i in self.indexes[index]]
        return self.samples[self.indexes[index]]


class Joined(Sequence[Row]):
    """The samples of several splits, one after the other."""

    def __init__(self, parts: Sequence[Samples]) -> None:
        self.parts, self.ends = parts, list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self.ends[-1]

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self.ends, index)
        return self.parts[part][index - (self.ends[part] - len(self.parts[part]))]


def repeated(samples: Samples, count: int) -> Selected:
    """Exactly ``count`` samples: evenly spread over a longer split, a shorter one over again."""
    length = len(samples)
    return Selected(samples, [place * length // count if count <= length else place % length for place in range(count)])


def spread(samples: Samples, count: int) -> Selected:
    """At most ``count`` samples, evenly spread over the split."""
    chosen = min(count, len(samples))
    return Selected(samples, [place * len(samples) // chosen for place in range(chosen)])


@dataclass(frozen=True)
class TripletBatch:
    """N samples on the device.

    Attributes:
        gt: (N, 3, H, W) float32 RGB in [0, 1]; ``syn`` and ``sr`` likewise.
        lr: (N, 3, h, w) the same, what sr was made from.
        lr_known: (N,) bool, whether a model with an LR input may see it: in training a coin is tossed for every sample.
        mask: (N, H, W) float32 in [0, 1]; 1 where syn is sr.
        map: (N, H, W) float32, M_gt of syn in [0, 1], 1 = degraded.
        quality_syn: (N,) full-reference pseudo quality of syn in [0, 1]; ``quality_sr`` likewise. That of gt is 1.
    """

    gt: torch.Tensor
    syn: torch.Tensor
    sr: torch.Tensor
    lr: torch.Tensor
    lr_known: torch.Tensor
    mask: torch.Tensor
    map: torch.Tensor
    quality_syn: torch.Tensor
    quality_sr: torch.Tensor


def training_batch(
    samples: Samples,
    step: int,
    *,
    batch_size: int,
    crop: int,
    seed: int,
    lr_known: float = 0.5,
    share: range | None = None,
) -> TripletBatch:
    """The batch of a step, decided by (seed, step) alone: every epoch visits each sample once, in its own order.

    A place of the batch has random numbers of its own, so that one of several processes reads its share alone.

    Args:
        samples: at least one.
        step: 0-based.
        batch_size: samples a batch.
        crop: side in px of the random crop, a multiple of the dataset's scale and no larger than the stored images.
        seed: see above.
        lr_known: share of the samples whose LR picture may be seen, so that one model serves with and without.
        share: places in the batch, 0 … ``batch_size`` − 1, that are wanted; None: all.
    """
    positions = [step * batch_size + place for place in (range(batch_size) if share is None else share)]
    rows = [samples[epoch_index(len(samples), position, seed)] for position in positions]
    rngs = [np.random.default_rng((seed, position)) for position in positions]
    planes = [augment(row, rng, crop) for row, rng in zip(rows, rngs, strict=True)]
    return _stack(planes, rows, lr_known=np.array([rng.uniform() < lr_known for rng in rngs]))


def epoch_index(length: int, position: int, seed: int) -> int:
    """Index of the sample at a running position: position // length is the epoch, each a fresh permutation."""
    epoch, offset = divmod(position, length)
    return int(np.random.default_rng((seed, epoch, 0xE)).permutation(length)[offset])


def whole_batch(samples: Samples, indexes: Sequence[int]) -> TripletBatch:
    """The given samples uncropped and unaugmented, for evaluation; every LR picture is known."""
    rows = [samples[index] for index in indexes]
    return _stack([_planes(row) for row in rows], rows, lr_known=np.ones(len(rows), dtype=bool))


Planes = dict[str, npt.NDArray[np.float32]]

PICTURES = ("gt", "syn", "sr", "lr")


def where_syn_is_sr(row: Row) -> npt.NDArray[np.float32]:
    """The mask, H×W, without what the swap did not bring: a clean sample's syn is gt, and its sr as broken as any."""
    shown: npt.NDArray[np.float32] = row.mask * (row.syn == row.sr).all(axis=-1)
    return shown


def _planes(row: Row) -> Planes:
    pictures = {name: getattr(row, name).transpose(2, 0, 1).astype(np.float32) / 255 for name in PICTURES}
    return {**pictures, "mask": where_syn_is_sr(row), "map": row.map}


def scale_of(row: Row) -> int:
    """How much larger gt is than lr. Raises `SchemaError` unless it is a whole number, the same both ways."""
    (height, width), (low_height, low_width) = row.gt.shape[:2], row.lr.shape[:2]
    scale = height // low_height
    if (low_height * scale, low_width * scale) != (height, width):
        where = f"sample {row.index}"
        raise SchemaError(where, "lr", f"a whole fraction of gt's size, {(height, width)}", (low_height, low_width))
    return scale


class Augmentation(Window):
    """A window of a sample's planes."""

    def apply(self, plane: npt.NDArray[Any], scale: int = 1) -> npt.NDArray[Any]:
        """The same place of any plane, …×H×W, as a copy. ``scale``: the crop's px to one of the plane's; must divide the crop."""
        turned = np.rot90(plane[(..., *self.crop(scale))], self.turns, axes=(-2, -1))
        return np.ascontiguousarray(turned[..., ::-1] if self.flip else turned)


def draw_augmentation(rng: np.random.Generator, size: tuple[int, int], crop: int, grid: int = 1) -> Augmentation:
    """Draw a square crop of side ``crop`` from an image of (height, width) ``size``, its corner on multiples of ``grid`` px."""
    top, left = (grid * int(rng.integers((side - crop) // grid + 1)) for side in size)
    return Augmentation(top, left, crop, crop, turns=int(rng.integers(4)), flip=bool(rng.integers(2)))


@dataclass(frozen=True)
class Tint:
    """A mild change of colours, the same for every picture of a sample: contrast · ((1 − grey) · rgb + grey · mean(rgb)) + shift.

    Linear, so that it commutes with resizing and an LR picture still fits; never outside [0, 1], so that nothing is clipped.

    Attributes:
        contrast: in [0, 1].
        grey: in [0, 1].
        shift: in [0, 1 − contrast].
    """

    contrast: float
    grey: float
    shift: float

    def apply(self, picture: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Tint a 3×H×W picture in [0, 1]."""
        mixed = (1 - self.grey) * picture + self.grey * picture.mean(axis=0, keepdims=True)
        return (self.contrast * mixed + self.shift).astype(np.float32)


def draw_tint(rng: np.random.Generator) -> Tint | None:
    """None for half of the samples."""
    keep, contrast, grey, where = rng.uniform(size=4)
    contrast = 1 - 0.2 * contrast
    return None if keep < 0.5 else Tint(contrast, 0.4 * grey, where * (1 - contrast))


def augment(row: Row, rng: np.random.Generator, crop: int) -> Planes:
    """Random crop on the LR grid, quarter turns, flips and a tint, the same for every plane of the sample."""
    planes, scale = _planes(row), scale_of(row)
    augmentation, tint = draw_augmentation(rng, row.map.shape, crop, grid=scale), draw_tint(rng)
    moved = {name: augmentation.apply(plane, scale if name == "lr" else 1) for name, plane in planes.items()}
    return moved if tint is None else {name: tint.apply(moved[name]) if name in PICTURES else moved[name] for name in moved}


def _stack(planes: Sequence[Planes], rows: Sequence[Row], **drawn: npt.NDArray[Any]) -> TripletBatch:
    stacked = {name: torch.from_numpy(np.stack([p[name] for p in planes])) for name in planes[0]}
    qualities = {name: torch.tensor([getattr(row, name) for row in rows]) for name in ("quality_syn", "quality_sr")}
    for name in ("syn", "sr"):  # a crop that misses the fault is a clean picture, whatever the whole one is worth
        same = (stacked[name] == stacked["gt"]).flatten(1).all(dim=1)
        qualities[f"quality_{name}"] = torch.where(same, 1.0, qualities[f"quality_{name}"])
    tossed = {name: torch.from_numpy(values) for name, values in drawn.items()}
    return TripletBatch(**stacked, **{name: q.float() for name, q in qualities.items()}, **tossed)
