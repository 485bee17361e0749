"""Photos on disk → (hr, lr) crops in memory: what SR pretraining and fine-tuning draw from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from data_synth.degradations import DegradationConfig, degrade, sample_degradation
from data_synth.photos import Photo, readable
from data_synth.schema.errors import ImageError
from data_synth.schema.pixels import RGB8
from finpercep.cli.console import warn
from finpercep.errors import ConfigError


def load_photos(photos: Sequence[Photo], min_side: int) -> list[RGB8]:
    """Read all photos into memory; unreadable or small ones are named in a warning and left out.

    Raises:
        ConfigError: none is left.
    """
    loaded: list[RGB8] = []
    for _, pixels in readable(photos, min_side=min_side):
        if isinstance(pixels, ImageError):
            warn(f"left out: {pixels}")
        else:
            loaded.append(pixels)
    if not loaded:
        raise ConfigError(f"no photo of at least {min_side} px on each side among {len(photos)}; add larger photos")
    return loaded


def digest_of_photos(photos: Sequence[RGB8]) -> str:
    """Of their pixels, in order: what a run must be continued with."""
    hashed = hashlib.blake2b(digest_size=16)
    for photo in photos:
        hashed.update(repr(photo.shape).encode())
        hashed.update(photo.tobytes())
    return hashed.hexdigest()


def degradation_config(scale: int, *, blind: bool) -> DegradationConfig:
    """What makes LR of photos: Real-ESRGAN's second-order model, or slight blur and noise alone."""
    return DegradationConfig(scale=scale) if blind else DegradationConfig.light(scale)


class PhotoPairs:
    """Draws random crops, flips them, and degrades them. Called with a generator; the draw depends on nothing else."""

    def __init__(self, photos: Sequence[RGB8], crop: int, degradation: DegradationConfig) -> None:
        self.photos, self.crop, self.degradation = photos, crop, degradation

    def __call__(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """One pair: hr 3×crop×crop and its lr, float32 in [0, 1]."""
        return self._draw(self.photos[int(rng.integers(len(self.photos)))], rng)

    def _draw(self, photo: RGB8, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        top, left = (int(rng.integers(side - self.crop + 1)) for side in photo.shape[:2])
        hr = photo[top : top + self.crop, left : left + self.crop].astype(np.float32) / np.float32(255)
        if rng.uniform() < 0.5:
            hr = hr[:, ::-1]
        hr = np.ascontiguousarray(hr)
        lr = degrade(hr, sample_degradation(rng, self.degradation))
        return torch.from_numpy(hr).permute(2, 0, 1), torch.from_numpy(lr).permute(2, 0, 1)

    def fixed(self, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """``count`` pairs for evaluation, decided by ``seed``, the photos taken in turn: hr N×3×crop×crop and lr."""
        photos = (self.photos[index % len(self.photos)] for index in range(count))
        pairs = [self._draw(photo, np.random.default_rng((seed, index))) for index, photo in enumerate(photos)]
        hr, lr = (torch.stack(side) for side in zip(*pairs, strict=True))
        return hr, lr

    def held_out(self, count: int, seed: int, photo_of: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`fixed`, and which photo each pair is of, int64 (N,); ``photo_of`` says it of each of the photos here."""
        return *self.fixed(count, seed), torch.tensor([photo_of[index % len(self.photos)] for index in range(count)])
