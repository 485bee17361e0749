"""Raw pictures in, assessments out. Owns normalisation's borders (uint8 → [0, 1]), tiling of large pictures, and the device.

Command line, server and local reward all score through here, so the same picture gets the same numbers everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch

from data_synth.schema.pixels import RGB8
from finpercep.checkpoint import LadderRung, read_ladder
from finpercep.errors import ConfigError, ImageError, RewardError, SchemaError
from finpercep.regions import Region, find_regions
from finpercep.reward import RewardWeights, fuse
from finpercep.reward_model.frozen import frozen_copy
from finpercep.reward_model.model import MIN_SIDE, FinPercepRM
from finpercep.tiling import map_in_bands, perceive_in_tiles, to_batch

TILE = 1024
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
    """One rung, frozen and in eval mode, so that a score never depends on the batch it rides in.

    Attributes:
        model: the rung as it was trained; its weights are not changed after the predictor is made.
        network: the same function with less work (`frozen_copy`); what scores.
        tile: side of a large picture's tiles, in px, without their margin.
        margin: px around a tile that are looked at too. Results are those of the untiled picture where the margin covers what the
            model's positions see; see `finpercep.tiling` for models that look at the whole image.
        untiled: most pixels of a picture that goes through whole.
    """

    min_side = MIN_SIDE

    def __init__(
        self,
        model: FinPercepRM,
        *,
        name: str,
        rung: str,
        digest: str,
        device: torch.device | str = "cpu",
        tile: int = TILE,
        margin: int = TILE_MARGIN,
        untiled: int = UNTILED_PIXELS,
    ) -> None:
        if tile <= 0 or tile % model.config.deep_stride or margin < 0 or margin % model.config.deep_stride:
            raise ConfigError(f"tile and margin must be multiples of {model.config.deep_stride} px, got {tile} and {margin}")
        self.model = model.eval().requires_grad_(False).to(device)
        self.network = frozen_copy(self.model)
        self.name, self.rung, self.digest, self.device = name, rung, digest, torch.device(device)
        self.tile, self.margin, self.untiled = tile, margin, untiled

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
        images = images.to(self.device, torch.float32)
        if self.device.type == "cpu":
            images = images.contiguous(memory_format=torch.channels_last)  # a quarter faster, and the same numbers
        output = self.network(images, None if lr is None else lr.to(self.device, torch.float32))
        return ScoreBatch(output.score, output.map)

    @torch.no_grad()
    def score_one(self, image: torch.Tensor, lr: torch.Tensor | None = None) -> ScoreBatch:
        """Score one image, without gradients; one of more than about a megapixel goes through in tiles.

        Args:
            image: (3, H, W), uint8 or floats in [0, 1], anywhere; sides at least 32 px.
            lr: (3, h, w) the same, where it is known and the rung `takes_lr`.

        Returns:
            Score (1,) and map (1, H, W).
        """
        if image.shape[-2] * image.shape[-1] > self.untiled:
            return self._tiled(image, lr)
        return self.score(to_batch(image), None if lr is None else to_batch(lr))

    @torch.no_grad()
    def assess(self, pixels: RGB8, weights: RewardWeights | None = None, *, lr: RGB8 | None = None) -> Assessment:
        """Assess one picture, of any size (`score_one`).

        Args:
            pixels: uint8 H×W×3.
            weights: of the reward.
            lr: uint8 h×w×3, the low-resolution picture it was made from, for a rung that `takes_lr`.

        Raises:
            ImageError: a side below 32 px, or an LR picture that is larger than the picture.
            ConfigError: an LR picture for a rung that takes none.
            RewardError: the model's result is not finite.
        """
        height, width = pixels.shape[:2]
        if min(height, width) < self.min_side:
            raise ImageError(f"image must be at least {self.min_side} px on each side, got {width}x{height}")
        weights = weights or RewardWeights()
        if lr is not None:
            self._check_lr(lr, height, width)
        batch = self.score_one(as_image(pixels), None if lr is None else as_image(lr))
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

    def _check_lr(self, lr: RGB8, height: int, width: int) -> None:
        if not self.takes_lr:
            raise ConfigError(f"{self.rung} takes no LR picture; leave it away, or take a rung that was trained with lr_input")
        if lr.shape[0] > height or lr.shape[1] > width:
            raise ImageError(f"the LR picture must not be larger than {width}x{height}, got {lr.shape[1]}x{lr.shape[0]}")

    def _tiled(self, image: torch.Tensor, lr: torch.Tensor | None) -> ScoreBatch:
        size = (image.shape[-2], image.shape[-1])
        difference = None
        if lr is not None:  # of the whole picture, so that it does not depend on the tiles
            difference = self.network.lr_difference(to_batch(image).to(self.device), to_batch(lr).to(self.device))
        seen = perceive_in_tiles(self.network, image, self.tile, self.margin, difference)
        score, logits = self.network.score(seen, size), seen.coarse_logits
        del seen  # f_N: as large as the map
        return ScoreBatch(score, None if logits is None else map_in_bands(self.network, logits, size))


def as_image(pixels: RGB8) -> torch.Tensor:
    """uint8 H×W×3 → uint8 (3, H, W), a view where the array may be written to."""
    return torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).permute(2, 0, 1)


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
