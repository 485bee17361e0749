"""Dataset rows → training batches. gt, syn and sr of one photo stay together; augmentations never resample a pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from data_synth.schema import Row

Samples = Sequence[Row]
"""The samples of one split (contract 1)."""


@dataclass(frozen=True)
class TripletBatch:
    """N samples on the device.

    Attributes:
        gt: (N, 3, H, W) float32 RGB in [0, 1]; ``syn`` and ``sr`` likewise.
        mask: (N, H, W) float32 in [0, 1]; 1 where syn is sr.
        map: (N, H, W) float32, M_gt of syn in [0, 1], 1 = degraded.
        quality_syn: (N,) full-reference pseudo quality of syn in [0, 1]; ``quality_sr`` likewise. That of gt is 1.
    """

    gt: torch.Tensor
    syn: torch.Tensor
    sr: torch.Tensor
    mask: torch.Tensor
    map: torch.Tensor
    quality_syn: torch.Tensor
    quality_sr: torch.Tensor


def training_batch(
    samples: Samples, step: int, *, batch_size: int, crop: int, seed: int, share: range | None = None
) -> TripletBatch:
    """The batch of a step, decided by (seed, step) alone: every epoch visits each sample once, in its own order.

    A place of the batch has random numbers of its own, so that one of several processes reads its share alone.

    Args:
        samples: at least one.
        step: 0-based.
        batch_size: samples a batch.
        crop: side in px of the random crop, no larger than the stored images.
        seed: see above.
        share: places in the batch, 0 … ``batch_size`` − 1, that are wanted; None: all.
    """
    positions = [step * batch_size + place for place in share or range(batch_size)]
    rows = [samples[epoch_index(len(samples), position, seed)] for position in positions]
    rngs = [np.random.default_rng((seed, position)) for position in positions]
    return _stack([augment(row, rng, crop) for row, rng in zip(rows, rngs, strict=True)], rows)


def epoch_index(length: int, position: int, seed: int) -> int:
    """Index of the sample at a running position: position // length is the epoch, each a fresh permutation."""
    epoch, offset = divmod(position, length)
    return int(np.random.default_rng((seed, epoch, 0xE)).permutation(length)[offset])


def whole_batch(samples: Samples, indexes: Sequence[int]) -> TripletBatch:
    """The given samples uncropped and unaugmented, for evaluation."""
    rows = [samples[index] for index in indexes]
    return _stack([_planes(row) for row in rows], rows)


Planes = dict[str, npt.NDArray[np.float32]]


def _planes(row: Row) -> Planes:
    pictures = {name: getattr(row, name).transpose(2, 0, 1).astype(np.float32) / 255 for name in ("gt", "syn", "sr")}
    return {**pictures, "mask": row.mask, "map": row.map}


@dataclass(frozen=True)
class Augmentation:
    """A crop, then quarter turns, then perhaps its mirror image: pixels move, none is resampled.

    Attributes:
        top, left, height, width: the crop, in px of the stored image.
        turns: quarter turns anticlockwise.
        flip: left to right, after turning.
    """

    top: int
    left: int
    height: int
    width: int
    turns: int = 0
    flip: bool = False

    def apply(self, plane: npt.NDArray[Any], scale: int = 1) -> npt.NDArray[Any]:
        """The same place of any plane, …×H×W, as a copy. ``scale``: the crop's px to one of the plane's; must divide the crop."""
        rows = slice(self.top // scale, (self.top + self.height) // scale)
        columns = slice(self.left // scale, (self.left + self.width) // scale)
        turned = np.rot90(plane[..., rows, columns], self.turns, axes=(-2, -1))
        return np.ascontiguousarray(turned[..., ::-1] if self.flip else turned)


def draw_augmentation(rng: np.random.Generator, size: tuple[int, int], crop: int, grid: int = 1) -> Augmentation:
    """Draw a square crop of side ``crop`` from an image of (height, width) ``size``, its corner on multiples of ``grid`` px."""
    top, left = (grid * int(rng.integers((side - crop) // grid + 1)) for side in size)
    return Augmentation(top, left, crop, crop, turns=int(rng.integers(4)), flip=bool(rng.integers(2)))


def augment(row: Row, rng: np.random.Generator, crop: int) -> Planes:
    """Random crop on the pixel grid, quarter turns and flips, the same for every plane of the sample."""
    augmentation = draw_augmentation(rng, row.map.shape, crop)
    return {name: augmentation.apply(plane) for name, plane in _planes(row).items()}


def _stack(planes: Sequence[Planes], rows: Sequence[Row]) -> TripletBatch:
    stacked = {name: torch.from_numpy(np.stack([p[name] for p in planes])) for name in planes[0]}
    qualities = {name: torch.tensor([getattr(row, name) for row in rows]) for name in ("quality_syn", "quality_sr")}
    return TripletBatch(**stacked, **{name: q.float() for name, q in qualities.items()})
