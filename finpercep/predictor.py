"""Raw pictures in, assessments out. Owns normalisation's borders (uint8 → [0, 1]), tiling of large pictures, and the device.

Command line, server and local reward all score through here, so the same picture gets the same numbers everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch

from data_synth.schema.pixels import RGB8
from finpercep.checkpoint import LadderRung, read_ladder
from finpercep.errors import ConfigError, ImageError, RewardError, SchemaError
from finpercep.regions import Region, find_regions
from finpercep.reward import RewardWeights, fuse
from finpercep.reward_model.model import MIN_SIDE, FinPercepRM, Perception

TILE = 768
TILE_MARGIN = 128
UNTILED_PIXELS = 1024 * 1024


@dataclass(frozen=True)
class ScoreBatch:
    """Scores of a batch; differentiable with respect to the images.

    Attributes:
        score: float32 (N,) in [0, 1], higher is better.
        map: float32 (N, H, W) in [0, 1], 1 = degraded; None for a rung without a map.
    """

    score: torch.Tensor
    map: torch.Tensor | None


@dataclass(frozen=True)
class Assessment:
    """What a rung says of one picture.

    Attributes:
        score: in [0, 1], higher is better.
        reward: the fused R_k under the weights it was asked with.
        map: float32 (H, W) in [0, 1], 1 = degraded, on the CPU; None for a rung without a map.
        max_degradation: mean of the top fraction of the map; None without a map.
        mean_degradation: mean of the map; None without a map.
        regions: connected degraded regions, worst first.
    """

    score: float
    reward: float
    map: torch.Tensor | None
    max_degradation: float | None
    mean_degradation: float | None
    regions: tuple[Region, ...]


class Predictor:
    """One rung, frozen and in eval mode, so that a score never depends on the batch it rides in."""

    min_side = MIN_SIDE

    def __init__(
        self, model: FinPercepRM, *, name: str, rung: str, digest: str, device: torch.device | str = "cpu", tile: int = TILE
    ) -> None:
        self.model = model.eval().requires_grad_(False).to(device)
        self.name, self.rung, self.digest, self.device, self.tile = name, rung, digest, torch.device(device), tile

    @property
    def has_map(self) -> bool:
        """Whether the rung has a degradation map; RM_0 has none."""
        return self.model.config.map_stride is not None

    @property
    def takes_lr(self) -> bool:
        """Whether the rung can also be shown the low-resolution picture an image was made from."""
        return self.model.config.lr_input

    def score(self, images: torch.Tensor, lr: torch.Tensor | None = None) -> ScoreBatch:
        """Score (N, 3, H, W) float RGB in [0, 1], sides at least 32 px, as one batch.

        ``lr``, if it is known and the rung `takes_lr`: (N, 3, h, w) the same, the pictures that the images were made from.
        """
        output = self.model(images.to(self.device, torch.float32), None if lr is None else lr.to(self.device, torch.float32))
        return ScoreBatch(output.score, output.map)

    @torch.no_grad()
    def assess(self, pixels: RGB8, weights: RewardWeights | None = None) -> Assessment:
        """Assess one uint8 H×W×3 picture; one of more than about a megapixel goes through in tiles.

        Raises:
            ImageError: a side below 32 px.
            RewardError: the model's result is not finite.
        """
        height, width = pixels.shape[:2]
        if min(height, width) < self.min_side:
            raise ImageError(f"image must be at least {self.min_side} px on each side, got {width}x{height}")
        weights = weights or RewardWeights()
        batch = self._untiled(pixels) if height * width <= UNTILED_PIXELS else self._tiled(pixels)
        rewards = fuse(batch.score, batch.map, weights)
        if not rewards.reward.isfinite().all():
            raise RewardError(f"{self.rung} (digest {self.digest}): the score of this image is not finite")
        if batch.map is None:
            return Assessment(float(batch.score), float(rewards.reward), None, None, None, ())
        degradation_map = batch.map[0].cpu()
        return Assessment(
            score=float(batch.score),
            reward=float(rewards.reward),
            map=degradation_map,
            max_degradation=float(rewards.max_degradation),
            mean_degradation=float(rewards.mean_degradation),
            regions=find_regions(degradation_map),
        )

    def _untiled(self, pixels: RGB8) -> ScoreBatch:
        return self.score(_to_batch(pixels))

    def _tiled(self, pixels: RGB8) -> ScoreBatch:
        """Perceive tile by tile with a margin, stitch f_N and the coarse map, and score the whole picture at once.

        Exact up to the margin: tiles start on f_N's grid, and only positions at least a margin away from a cut are kept.
        """
        height, width = pixels.shape[:2]
        stride = self.model.config.deep_stride
        map_stride = self.model.config.map_stride or stride
        deep: torch.Tensor | None = None
        logits: torch.Tensor | None = None
        for keep, context in _tiles(height, width, self.tile, TILE_MARGIN):
            (top, bottom, left, right), (c_top, c_bottom, c_left, c_right) = keep, context
            seen = self.model.perceive(_to_batch(pixels[c_top:c_bottom, c_left:c_right]).to(self.device))
            if deep is None:
                deep = seen.deep.new_zeros((1, seen.deep.shape[1], -(-height // stride), -(-width // stride)))
                logits = seen.deep.new_zeros((1, *(side * (stride // map_stride) for side in deep.shape[-2:])))
            for target, source, step in ((deep, seen.deep, stride), (logits, seen.coarse_logits, map_stride)):
                if target is not None and source is not None:
                    per_deep = stride // step  # the last tile's padding is kept: the map's edge is interpolated with it
                    rows = slice(top // step, -(-bottom // stride) * per_deep)
                    columns = slice(left // step, -(-right // stride) * per_deep)
                    row, column = (top - c_top) // step, (left - c_left) // step
                    part = target[..., rows, columns]
                    part.copy_(source[..., row : row + part.shape[-2], column : column + part.shape[-1]])
        assert deep is not None
        stitched = Perception(deep, logits if self.has_map else None)
        full = self.model.upsample_logits(stitched.coarse_logits, (height, width))
        return ScoreBatch(self.model.score(stitched, (height, width)), None if full is None else full.sigmoid())


Span = tuple[int, int, int, int]


def _tiles(height: int, width: int, tile: int, margin: int) -> Iterator[tuple[Span, Span]]:
    """(kept area, area with context) of every tile, as (top, bottom, left, right); tile and margin are multiples of every stride.

    A last tile thinner than half a tile is joined to the one before, so that no context is smaller than the model accepts.
    """
    for top, bottom in _spans(height, tile):
        for left, right in _spans(width, tile):
            context = (max(0, top - margin), min(height, bottom + margin), max(0, left - margin), min(width, right + margin))
            yield (top, bottom, left, right), context


def _spans(length: int, tile: int) -> list[tuple[int, int]]:
    starts = list(range(0, length, tile))
    if len(starts) > 1 and length - starts[-1] < tile // 2:
        starts.pop()
    return list(zip(starts, [*starts[1:], length], strict=True))


def _to_batch(pixels: RGB8) -> torch.Tensor:
    return torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255


def load_predictors(folder: Path, device: torch.device | str = "cpu") -> dict[str, Predictor]:
    """All rungs of a ladder by name, RM_0 first; the last is the default.

    Raises:
        WeightsError: no ladder there, or a rung's weights cannot be read.
        SchemaError: a file breaks contract 2, or a rung is not the one the ladder names.
    """
    ladder = read_ladder(folder)
    return {entry.rung: _load_entry(folder, ladder.name, entry, device) for entry in ladder.rungs}


def load_predictor(folder: Path, rung: str | None = None, device: torch.device | str = "cpu") -> Predictor:
    """One rung of a ladder, by default the last; the others are not read.

    Raises:
        ConfigError: the ladder has no such rung.
        WeightsError, SchemaError: as `load_predictors`.
    """
    ladder = read_ladder(folder)
    entries = {entry.rung: entry for entry in ladder.rungs}
    chosen = ladder.rungs[-1].rung if rung is None else rung
    if chosen not in entries:
        raise ConfigError(f"{folder} has the rungs {', '.join(entries)}, got {chosen!r}")
    return _load_entry(folder, ladder.name, entries[chosen], device)


def _load_entry(folder: Path, name: str, entry: LadderRung, device: torch.device | str) -> Predictor:
    model = FinPercepRM.load(folder / entry.path)
    if model.digest != entry.digest:
        raise SchemaError(str(folder / "ladder.json"), f"digest of {entry.rung}", entry.digest, model.digest)
    return Predictor(model, name=name, rung=entry.rung, digest=entry.digest, device=device)


def packaged_model_folder() -> Path:
    """Folder of the ladder that ships with the package."""
    return Path(str(files("finpercep"))) / "weights" / "ladder"
