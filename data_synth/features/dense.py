"""Dense features of a network (DINOv3 in the paper), compared token by token and brought to image resolution without blocks.

A token stands for a whole patch, and its value depends on where the patch grid lies. So the grid is laid k×k times, each time
patch/k px further, and a pixel gets the mean over all patches that cover it. The mean over k evenly spaced grids removes the
patch period and its harmonics by construction, whatever the network; only between cells of patch/k px is it interpolated.
The literal alternative, a feature vector a pixel, would need hundreds of megabytes and blur the difference more.

Knows no model's name, no file and no cache: it gets a ready network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from data_synth.features.protocol import GroundTruthError

_PYRAMID_REDUCTIONS = (4, 8, 16)  # coarser levels see objects, finer ones little more than the weight-free features


@dataclass(frozen=True)
class DenseFeatures:
    """The `FeatureDifference` of a timm network: 1 − cos of its tokens, or the mean of that over the levels of a pyramid.

    Attributes:
        network: in evaluation mode, with timm's `forward_intermediates`.
        levels: which intermediates are compared.
        reductions: px a token of each level stands for; the largest is the patch.
        normed: apply the network's final norm, as its dense features want.
        mean, std: of the network's input, per channel of RGB in [0, 1].
        shifts: grids laid along either axis; divides the patch.
        device: where the network lies.
    """

    network: Any
    levels: tuple[int, ...]
    reductions: tuple[int, ...]
    normed: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shifts: int
    device: str = "cpu"

    @property
    def patch(self) -> int:
        """Side of a patch in px: period of the token grid."""
        return max(self.reductions)

    @property
    def reach(self) -> None:
        """Attention looks at the whole image."""
        return

    @torch.no_grad()
    def __call__(self, pair: torch.Tensor) -> torch.Tensor:
        """Difference of ``pair`` (2×3×H×W float32 RGB in [0, 1]): H×W float32 in [0, 2], exactly 0 for equal images.

        Raises:
            GroundTruthError: the image is smaller than two patches, or the features are not finite.
        """
        height, width = pair.shape[-2:]
        if min(height, width) < 2 * self.patch:
            raise GroundTruthError(
                f"dense features need at least {2 * self.patch} px on each side, got {width}x{height}; "
                "use larger crops or `weight-free`"
            )
        if torch.equal(pair[0], pair[1]):
            return torch.zeros((height, width))  # batched arithmetic may differ in the last bit between equal images
        cell = self.patch // self.shifts
        grids = self._padded_grids(pair)
        cells = -(-height // cell), -(-width // cell)
        total = torch.zeros(cells, device=self.device)
        for down, row in enumerate(grids):
            differences = self._cells(torch.stack(row))
            for right, difference in enumerate(differences):
                total += difference[down : down + cells[0], right : right + cells[1]]
        mean = (total / self.shifts**2)[None, None]
        full = F.interpolate(mean, scale_factor=float(cell), mode="bilinear", align_corners=False) if cell > 1 else mean
        result = full[0, 0, :height, :width].cpu()
        if not torch.isfinite(result).all():
            raise GroundTruthError("dense features must be finite, got NaN or infinite values; check the feature weights")
        return result

    def _padded_grids(self, pair: torch.Tensor) -> list[list[torch.Tensor]]:
        """The pair as each grid sees it: grid (down, right) starts that many cells before the image; mirrored outside."""
        cell, patch = self.patch // self.shifts, self.patch
        sides = [(-(-side // patch) + 1) * patch for side in pair.shape[-2:]]
        mean, std = (pair.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        before = patch - cell
        after = [side - length for side, length in zip(sides, pair.shape[-2:], strict=True)]
        padded = F.pad((pair - mean) / std, (before, after[1], before, after[0]), mode="reflect").to(self.device)
        starts = [before - shift * cell for shift in range(self.shifts)]
        return [[padded[..., y : y + sides[0], x : x + sides[1]] for x in starts] for y in starts]

    def _cells(self, pairs: torch.Tensor) -> torch.Tensor:
        """Difference of K pairs (K×2×3×h×w) in cells of patch/shifts px: K×h'×w', constant over each token."""
        levels: Sequence[torch.Tensor] = self.network.forward_intermediates(
            pairs.flatten(0, 1), indices=list(self.levels), norm=self.normed, output_fmt="NCHW", intermediates_only=True
        )
        cell = self.patch // self.shifts
        differences = [
            _in_cells(_token_difference(tokens.unflatten(0, (-1, 2))), reduction, cell)
            for tokens, reduction in zip(levels, self.reductions, strict=True)
        ]
        return torch.stack(differences).mean(0)


def _token_difference(tokens: torch.Tensor) -> torch.Tensor:
    """1 − cos as ‖f − g‖²/2 of unit vectors, K×2×C×h×w → K×h×w; exactly 0 for equal tokens."""
    unit = F.normalize(tokens.float(), dim=2)
    return 0.5 * (unit[:, 0] - unit[:, 1]).square().sum(1)


def _in_cells(difference: torch.Tensor, reduction: int, cell: int) -> torch.Tensor:
    """Tokens of ``reduction`` px repeated, or averaged, to cells of ``cell`` px: K×h×w → K×h'×w'."""
    if reduction < cell:
        return F.avg_pool2d(difference[:, None], cell // reduction)[:, 0]
    return difference.repeat_interleave(reduction // cell, 1).repeat_interleave(reduction // cell, 2)


def choose_levels(reductions: Sequence[int]) -> tuple[int, ...]:
    """Which intermediates to compare, given the px a token of each stands for.

    A plain transformer (one reduction throughout): its last block. A pyramid: the last level at each of 4, 8 and 16 px.

    Raises:
        GroundTruthError: there is none.
    """
    if len(set(reductions)) == 1:
        return (len(reductions) - 1,)
    last = {reduction: level for level, reduction in enumerate(reductions)}
    chosen = tuple(last[reduction] for reduction in _PYRAMID_REDUCTIONS if reduction in last)
    if not chosen:
        raise GroundTruthError(
            f"a feature network needs levels at {_PYRAMID_REDUCTIONS} px, got {tuple(reductions)}; choose another"
        )
    return chosen


def usable_shifts(wanted: int, patch: int) -> int:
    """The largest divisor of the patch that is not above ``wanted``: grids must be evenly spaced for the period to vanish."""
    return max(divisor for divisor in range(1, wanted + 1) if patch % divisor == 0)
