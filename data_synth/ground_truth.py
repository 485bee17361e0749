"""M_gt: how badly, and where, I_syn departs from I_GT.   M_gt = Normalize(α·Diff_pixel + (1 − α)·Diff_feat)   (method §3)

The features are chosen by name (`data_synth.features`): weight-free by default, DINOv3 as in the paper, or any timm model.
Normalize is a fixed, data-set-level scale with a visibility floor, since a per-image min–max would make an invisible difference
look as bad as a gross one; min–max remains an option. Knows nothing about recipes or files.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch

from data_synth.features.protocol import FeatureDifference, GroundTruthError
from data_synth.features.resolve import WEIGHT_FREE, ResolvedFeatures, default_gain, load_features, resolve_features
from data_synth.features.weight_free import WeightFreeFeatures, blur
from data_synth.images import Field, FloatImage

__all__ = [
    "Field",
    "GroundTruthConfig",
    "GroundTruthError",
    "ResolvedGroundTruth",
    "feature_difference",
    "ground_truth_map",
    "pixel_difference",
    "resolve_ground_truth",
]


@dataclass(frozen=True)
class GroundTruthConfig:
    """Settings of `ground_truth_map`.

    Attributes:
        alpha: weight of the pixel difference, in [0, 1].
        pixel_gain: the pixel difference is multiplied by this, so that both terms are of one size for typical SR faults.
        pixel_pooling: Gaussian (px) the pixel difference is averaged with, since |a − b| has a zero crossing every other
            pixel where eyes see one defect; 0 is the paper's literal per-pixel L1.
        features: ``weight-free``, ``dinov3[:SIZE][@FILE]``, ``timm:MODEL[@FILE]`` or ``auto``, see `resolve_features`.
        feature_gain: the feature difference is multiplied by this. None: 1 for weight-free features; for a network what makes
            typical faults as large as with weight-free ones, measured when it is loaded, see `default_gain`.
        feature_shifts: a network's patch grid is laid this often along either axis, so that no blocks show; costs its square.
            Lowered to a divisor of the patch.
        feature_device: where a network runs: ``cpu``, ``cuda``, ``cuda:1``, …; ``auto`` is the GPU where there is one.
        feature_scales: Gaussian scales of the weight-free gradient features, in px.
        feature_constant: length of the constant channel appended to the gradient features; differences between features
            much shorter than this are invisible.
        colour_constant: the same for the opponent colours.
        colour_share: weight of the colours in the weight-free difference, in [0, 1]; the gradients have the rest.
        floor: combined difference that is just not visible; at and below it the map is 0.
        scale: combined difference that counts as fully degraded; at and above it the map is 1.
        per_image: stretch every map to its own maximum instead (an ablation).
    """

    alpha: float = 0.5
    pixel_gain: float = 4.0
    pixel_pooling: float = 1.0
    features: str = WEIGHT_FREE
    feature_gain: float | None = None
    feature_shifts: int = 4
    feature_device: str = "auto"
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
        gains = (self.pixel_gain, 1.0 if self.feature_gain is None else self.feature_gain)
        if not all(math.isfinite(gain) and gain > 0 for gain in gains):
            raise GroundTruthError(f"gains must be positive, got pixel_gain {gains[0]}, feature_gain {gains[1]}")
        if self.pixel_pooling < 0 or self.feature_shifts < 1:
            raise GroundTruthError(
                f"pixel_pooling >= 0 and feature_shifts >= 1 are required, got {self.pixel_pooling} and {self.feature_shifts}"
            )
        if not self.feature_scales or min(self.feature_scales) <= 0:
            raise GroundTruthError(f"feature_scales must be positive and at least one, got {self.feature_scales}")


@dataclass(frozen=True)
class ResolvedGroundTruth:
    """Settings with nothing left open, for a build to hand to its workers and to record.

    Attributes:
        config: ``features`` is no longer ``auto``, nor ``feature_gain`` None.
        features: what they are, with the digest of their weights and the reason of the choice.
    """

    config: GroundTruthConfig
    features: ResolvedFeatures


def resolve_ground_truth(config: GroundTruthConfig) -> ResolvedGroundTruth:
    """Settle which features this machine uses, and their gain; loads them.

    Raises:
        GroundTruthError: features that are unknown or whose weights cannot be had.
    """
    features = resolve_features(config.features, device=config.feature_device)
    settled = dataclasses.replace(config, features=features.name)
    return ResolvedGroundTruth(dataclasses.replace(settled, feature_gain=_gain(settled)), features)


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
        GroundTruthError: shapes differ, or the features cannot be had.
    """
    if gt.shape != syn.shape or mask.shape != gt.shape[:2]:
        raise GroundTruthError(f"gt, syn and mask must be of one size, got {gt.shape}, {syn.shape}, {mask.shape}")
    result = np.zeros(mask.shape, dtype=np.float32)
    if not mask.any():
        return result
    window = _window(mask, _reach(config))  # nothing outside can matter, and most masks are small
    inside = mask[window] > 0
    pair = torch.from_numpy(np.stack([gt[window], syn[window]])).permute(0, 3, 1, 2).contiguous()
    difference = _combined_difference(pair, config).numpy()
    scale = max(config.floor + 1e-6, float(difference[inside].max())) if config.per_image else config.scale
    normalised = np.clip((difference - np.float32(config.floor)) / np.float32(scale - config.floor), 0, 1)
    result[window] = np.where(inside, normalised, np.float32(0))
    return result


def _combined_difference(pair: torch.Tensor, config: GroundTruthConfig) -> torch.Tensor:
    """α·Diff_pixel + (1 − α)·Diff_feat with their gains, H×W; a term without weight is not computed."""
    difference = torch.zeros(pair.shape[-2:])
    if config.alpha > 0:
        difference.add_(pixel_difference(pair, config), alpha=config.alpha * config.pixel_gain)
    if config.alpha < 1:
        difference.add_(feature_difference(pair, config), alpha=(1 - config.alpha) * _gain(config))
    return difference


def pixel_difference(pair: torch.Tensor, config: GroundTruthConfig) -> torch.Tensor:
    """Diff_pixel: |gt − syn| averaged over channels and pooled; ``pair`` 2×3×H×W → H×W in [0, 1]."""
    return blur((pair[0] - pair[1]).abs_().mean(0, keepdim=True), config.pixel_pooling)[0]


def feature_difference(pair: torch.Tensor, config: GroundTruthConfig) -> torch.Tensor:
    """Diff_feat = 1 − cos(f, g) for the features f, g of either image, before its gain; ``pair`` 2×3×H×W → H×W in [0, 2]."""
    return _features(config)(pair)


def _features(config: GroundTruthConfig) -> FeatureDifference:
    if config.features == WEIGHT_FREE:
        return WeightFreeFeatures(config.feature_scales, config.feature_constant, config.colour_constant, config.colour_share)
    return load_features(config.features, shifts=config.feature_shifts, device=config.feature_device)


def _gain(config: GroundTruthConfig) -> float:
    return default_gain(config.features, device=config.feature_device) if config.feature_gain is None else config.feature_gain


def _reach(config: GroundTruthConfig) -> int | None:
    """How far (px) the map looks around a pixel; None: the whole image."""
    pooling = math.ceil(3 * config.pixel_pooling)
    if config.alpha == 1:
        return pooling
    reach = _features(config).reach
    return None if reach is None else max(reach, pooling)


def _window(mask: Field, reach: int | None) -> tuple[slice, slice]:
    """The mask's bounding box, widened by ``reach``; it starts and ends at even px, where half resolution does not notice."""
    if reach is None:
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    spans = []
    for axis, length in enumerate(mask.shape):
        inside = np.flatnonzero(mask.any(axis=1 - axis))
        start, stop = int(inside[0]) - reach, int(inside[-1]) + 1 + reach
        spans.append(slice(max(0, start - start % 2), min(length, stop + stop % 2)))
    return spans[0], spans[1]
