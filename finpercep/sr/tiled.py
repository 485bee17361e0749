"""Sampling images too large for one piece: every step is taken tile by tile, and where tiles overlap their means are blended.

The state is one canvas, and its noise is drawn for the canvas as it is drawn for an untiled image: tiles share starting noise and
step noise, so they agree where they overlap and no seam forms (the idea of MultiDiffusion, arXiv 2302.08113). Peak memory is
one tile's activations above the canvas, the conditions and the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from diffusers.utils.torch_utils import randn_tensor

from finpercep.sr.noise_path import Generators

if TYPE_CHECKING:
    from finpercep.sr.diffusion import DiffusionPolicy


@dataclass(frozen=True)
class Tile:
    """An area of the LR image, in px; may be asked for the same area of something larger or smaller."""

    top: int
    left: int
    height: int
    width: int

    def of(self, canvas: torch.Tensor, whole: tuple[int, int]) -> torch.Tensor:
        """The view of this area in ``canvas`` (…, H, W), which shows the LR image of size ``whole`` at another resolution."""
        (rows, columns), (height, width) = canvas.shape[-2:], whole
        top, left = self.top * rows // height, self.left * columns // width
        return canvas[..., top : top + self.height * rows // height, left : left + self.width * columns // width]


def tiles_of(size: tuple[int, int], tile: int, overlap: int, multiple: int) -> list[Tile]:
    """Tiles that cover an LR image of ``size`` (multiples of ``multiple``); tile and overlap are rounded up to multiples too."""
    side, shared = (-(-value // multiple) * multiple for value in (tile, overlap))
    side = max(side, shared + multiple)
    heights, widths = (_spans(length, side, shared) for length in size)
    return [Tile(top, left, height, width) for top, height in heights for left, width in widths]


def _spans(length: int, side: int, shared: int) -> list[tuple[int, int]]:
    if length <= side:
        return [(0, length)]
    starts = [*range(0, length - side, side - shared), length - side]
    return [(start, side) for start in starts]


@torch.no_grad()
def sample_in_tiles(
    policy: DiffusionPolicy, lr: torch.Tensor, generators: Generators, tiles: Sequence[Tile], initial_noise: float = 1.0
) -> torch.Tensor:
    """As `DiffusionPolicy.sample` of ``lr``, whose sides divide by the policy's multiple; several tiles."""
    whole = (lr.shape[-2], lr.shape[-1])
    conditions = [policy.condition_of_tile(lr, tile) for tile in tiles]
    batch, channels, rows, columns = policy.state_shape(conditions[0])
    first = tiles[0]
    shape = (batch, channels, rows * whole[0] // first.height, columns * whole[1] // first.width)
    noise = _draw(shape, generators, policy.device)
    blend = _Blend(shape, policy.device)
    for tile, condition in zip(tiles, conditions, strict=True):
        blend.add(tile, whole, initial_noise * policy.start(condition, tile.of(noise, whole)))
    x = blend.mean()
    for index in range(policy.num_steps):
        blend, std = _Blend(shape, policy.device), torch.zeros(())
        for tile, condition in zip(tiles, conditions, strict=True):
            step = policy.transition(tile.of(x, whole), index, condition)
            blend.add(tile, whole, step.mean)
            std = step.std
        x = blend.mean() + std.to(x.device) * _draw(shape, generators, policy.device)
    images = _Blend((batch, 3, whole[0] * policy.scale, whole[1] * policy.scale), policy.device)
    for tile, condition in zip(tiles, conditions, strict=True):
        images.add(tile, whole, policy.decode(tile.of(x, whole), condition))
    return images.mean()


def _draw(shape: tuple[int, ...], generators: Generators, device: torch.device) -> torch.Tensor:
    return randn_tensor(shape, generator=list(generators), device=device)


class _Blend:
    """A weighted mean of overlapping parts; a part's weight falls linearly towards its edges."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self._sum = torch.zeros(shape, device=device)
        self._weight = torch.zeros((1, 1, *shape[-2:]), device=device)

    def add(self, tile: Tile, whole: tuple[int, int], part: torch.Tensor) -> None:
        weight = torch.ones((), device=part.device)
        for ramp in _ramps(part.shape[-2:], part.device):
            weight = weight * ramp
        tile.of(self._sum, whole).add_(weight * part)
        tile.of(self._weight, whole).add_(weight)

    def mean(self) -> torch.Tensor:
        return self._sum.div_(self._weight)


def _ramps(size: Sequence[int], device: torch.device) -> Iterator[torch.Tensor]:
    for length, shape in zip(size, ((-1, 1), (1, -1)), strict=True):
        position = torch.arange(length, device=device) + 0.5
        yield torch.minimum(position, length - position).reshape(shape)
