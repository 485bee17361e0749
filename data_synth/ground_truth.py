"""M_gt: how badly, and where, I_syn departs from I_GT.   M_gt = Normalize(α·Diff_pixel + (1 − α)·Diff_feat)   (method §3)

Features are weight-free here: oriented gradient energy at several scales and opponent colours, in the spirit of FSIM and GMSD;
the paper uses DINOv3. Normalize is a fixed, data-set-level scale with a visibility floor, since a per-image min–max would
make an invisible difference look as bad as a gross one; min–max remains an option. Knows nothing about recipes or files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from data_synth.degradations import FloatImage
from data_synth.schema.errors import FinpercepError

Field = npt.NDArray[np.float32]
"""H×W float32."""

_SUPPORT = 2.5  # a Gaussian is cut at this many standard deviations


class GroundTruthError(FinpercepError):
    """Images that cannot be compared, or settings that make no map."""


@dataclass(frozen=True)
class GroundTruthConfig:
    """Settings of `ground_truth_map`.

    Attributes:
        alpha: weight of the pixel difference, in [0, 1].
        pixel_gain: the pixel difference is multiplied by this, so that both terms are of one size for typical SR faults.
        pixel_pooling: Gaussian (px) the pixel difference is averaged with, since |a − b| has a zero crossing every other
            pixel where eyes see one defect; 0 is the paper's literal per-pixel L1.
        feature_scales: Gaussian scales of the gradient features, in px.
        feature_constant: length of the constant channel appended to the gradient features; differences between features
            much shorter than this are invisible.
        colour_constant: the same for the opponent colours.
        colour_share: weight of the colours in the cosine, in [0, 1]; the gradients have the rest.
        floor: combined difference that is just not visible; at and below it the map is 0.
        scale: combined difference that counts as fully degraded; at and above it the map is 1.
        per_image: stretch every map to its own maximum instead (an ablation).
    """

    alpha: float = 0.5
    pixel_gain: float = 4.0
    pixel_pooling: float = 1.0
    feature_scales: tuple[float, ...] = (0.8, 1.6, 3.2)
    feature_constant: float = 0.02
    colour_constant: float = 0.1
    colour_share: float = 0.3
    floor: float = 0.02
    scale: float = 0.3
    per_image: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise GroundTruthError(f"alpha must lie in [0, 1], got {self.alpha}")
        if not 0 <= self.floor < self.scale:
            raise GroundTruthError(f"0 <= floor < scale is required, got floor {self.floor}, scale {self.scale}")
        if not 0 <= self.colour_share <= 1:
            raise GroundTruthError(f"colour_share must lie in [0, 1], got {self.colour_share}")
        if self.feature_constant <= 0 or self.colour_constant <= 0:
            constants = f"{self.feature_constant} and {self.colour_constant}"
            raise GroundTruthError(f"both constants must be positive (flat regions have no direction), got {constants}")


def ground_truth_map(gt: FloatImage, syn: FloatImage, mask: Field, config: GroundTruthConfig) -> Field:
    """The degradation map of ``syn`` against ``gt``.

    Args:
        gt: H×W×3 float32 RGB in [0, 1].
        syn: the same shape.
        mask: H×W float32 in [0, 1]; where it is 0 the map is exactly 0.
        config: weights and scale.

    Returns:
        H×W float32 in [0, 1], 1 = degraded; exactly 0 everywhere for identical images.

    Raises:
        GroundTruthError: shapes differ.
    """
    if gt.shape != syn.shape or mask.shape != gt.shape[:2]:
        raise GroundTruthError(f"gt, syn and mask must be of one size, got {gt.shape}, {syn.shape}, {mask.shape}")
    result = np.zeros(mask.shape, dtype=np.float32)
    if not mask.any():
        return result
    window = _window(mask, config)  # nothing outside can matter, and most masks are small
    pair = torch.from_numpy(np.stack([gt[window], syn[window]])).permute(0, 3, 1, 2).contiguous()
    difference = config.alpha * config.pixel_gain * pixel_difference(pair, config)
    difference = difference + (1 - config.alpha) * feature_difference(pair, config)
    inside = difference[torch.from_numpy(mask[window] > 0)]
    scale = max(config.floor + 1e-6, float(inside.max())) if config.per_image else config.scale
    normalised = ((difference - config.floor) / (scale - config.floor)).clamp(0, 1).numpy()
    result[window] = np.where(mask[window] > 0, normalised, 0)
    return result


def _window(mask: Field, config: GroundTruthConfig) -> tuple[slice, slice]:
    """The mask's bounding box, widened by how far the features look."""
    widest = max(config.feature_scales)
    margin = 2 * math.ceil(_SUPPORT * widest) + 2
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    return (
        slice(max(0, int(rows[0]) - margin), min(height, int(rows[-1]) + 1 + margin)),
        slice(max(0, int(columns[0]) - margin), min(width, int(columns[-1]) + 1 + margin)),
    )


def pixel_difference(pair: torch.Tensor, config: GroundTruthConfig) -> torch.Tensor:
    """Diff_pixel: |gt − syn| averaged over channels and pooled; ``pair`` 2×3×H×W → H×W in [0, 1]."""
    return _blur((pair[0] - pair[1]).abs().mean(0)[None, None], config.pixel_pooling)[0, 0]


def feature_difference(pair: torch.Tensor, config: GroundTruthConfig) -> torch.Tensor:
    """Diff_feat = 1 − cos(f, g) for the features f, g of either image; ``pair`` 2×3×H×W → H×W in [0, 2].

    Computed as ‖f − g‖²/2 of the unit vectors, which is the same and exactly 0 for equal features.
    """
    features = weight_free_features(pair, config)
    return 0.5 * (features[0] - features[1]).square().sum(0)


def weight_free_features(images: torch.Tensor, config: GroundTruthConfig) -> torch.Tensor:
    """Per-pixel unit feature vectors of N×3×H×W images: N×(8·scales + 4)×H×W.

    Two parts, each with its constant channel and normalised by itself, so that a saturated colour does not drown texture:
    gradients (weight 1 − colour_share of the cosine) and two opponent colours (colour_share).
    """
    luma = (images * images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    gradients = [_oriented_gradients(luma, scale) for scale in config.feature_scales]
    structure = torch.cat([*gradients, torch.full_like(luma, config.feature_constant)], dim=1)
    red, green, blue = images.unbind(1)
    opponents = torch.stack([(red - green) / math.sqrt(2), (red + green - 2 * blue) / math.sqrt(6)], dim=1)
    colour = torch.cat([_blur(opponents, 1.5), torch.full_like(luma, config.colour_constant)], dim=1)
    shares = math.sqrt(1 - config.colour_share), math.sqrt(config.colour_share)
    return torch.cat([shares[0] * _unit(structure), shares[1] * _unit(colour)], dim=1)


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    """Unit length over channels; the constant channel keeps lengths positive. `F.normalize` is much slower on this layout."""
    return vectors / vectors.square().sum(1, keepdim=True).sqrt()


def _oriented_gradients(luma: torch.Tensor, scale: float) -> torch.Tensor:
    """Gradient of N×1×H×W at a Gaussian scale (px, and times it) in 8 directions, half-wave rectified and pooled: N×8×H×W.

    Pooling over about the scale makes a shift far below it nearly invisible, a change of structure or sharpness not.
    """
    smooth = F.pad(_blur(luma, scale), (1, 1, 1, 1), mode="replicate")
    gx = scale / 2 * (smooth[..., 1:-1, 2:] - smooth[..., 1:-1, :-2])
    gy = scale / 2 * (smooth[..., 2:, 1:-1] - smooth[..., :-2, 1:-1])
    directions = torch.cat([gx, gy, (gx + gy) / math.sqrt(2), (gx - gy) / math.sqrt(2)], dim=1)
    return _blur(torch.cat([directions.relu(), (-directions).relu()], dim=1), max(1.0, scale))


def _blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Separable Gaussian over N×C×H×W with repeated borders; ``sigma`` in px, 0 for none."""
    if sigma <= 0:
        return images
    radius = max(1, math.ceil(_SUPPORT * sigma))
    positions = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (positions / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel[:, :, None, :], groups=images.shape[1])
    return F.conv2d(rows, kernel[:, :, :, None], groups=images.shape[1])
