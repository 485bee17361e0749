"""From a feature name to an extractor: what `auto` chooses and why, what identifies it, and the gain that makes it comparable.

The range of 1 − cos differs from network to network, while α, floor and scale of the map mean the same whatever the features.
So the gain is measured when a network is loaded: three reference faults (detail lost, over-sharpened, noisy) on three packaged
photographs get the same mean difference as from the weight-free features. That is a principle, not a calibration against people:
no map here was compared with what viewers marked. The gain is rounded to two digits, so that the last bits of another machine's
arithmetic do not matter, and a build writes it down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from data_synth.device import resolve_device
from data_synth.features.loading import cached_dinov3, load_dense, parse_source, weights_version
from data_synth.features.protocol import FeatureDifference, GroundTruthError
from data_synth.features.weight_free import WEIGHT_FREE_VERSION, WeightFreeFeatures, blur

WEIGHT_FREE = "weight-free"
AUTO = "auto"

_REFERENCE_SIDE = 224
_REFERENCE_PHOTOS = ("china.jpg", "astronaut", "chelsea")  # architecture, a person, an animal
_FAINTEST = 1e-6


@dataclass(frozen=True)
class ResolvedFeatures:
    """Which features a data set's maps are made with; recorded in its manifest.

    Attributes:
        name: what to ask for to get the same again: ``weight-free``, ``dinov3:SIZE`` or ``timm:MODEL``, with @FILE as given.
        version: digest of the weights; of weight-free features the version of their code.
        reason: one line: what was chosen, and why.
    """

    name: str
    version: str
    reason: str


def resolve_features(name: str, *, device: str = "auto") -> ResolvedFeatures:
    """Decide what ``name`` means on this machine, loading weights where it needs any.

    ``auto`` never downloads: it takes DINOv3 if the local Hugging Face cache has the weights, the smallest size first, and else
    the weight-free features. Asked for by name, weights are downloaded.

    Args:
        name: ``weight-free``, ``auto``, ``dinov3[:SIZE][@FILE]`` or ``timm:MODEL[@FILE]``.
        device: where a network runs; ``auto`` is the GPU where there is one.

    Raises:
        GroundTruthError: an unknown name, or weights that cannot be had or do not fit.
        DeviceError: no such device on this machine.
    """
    chosen = _choose(name)
    if chosen == WEIGHT_FREE:
        why = "auto: no DINOv3 weights in the local cache (ask for dinov3 to download them)" if name == AUTO else "as asked"
        return ResolvedFeatures(WEIGHT_FREE, WEIGHT_FREE_VERSION, f"weight-free features, {why}")
    source = parse_source(chosen)
    where = str(resolve_device(device))
    why = "auto: its weights are in the local cache" if name == AUTO else "as asked"
    slow = "; without a GPU this takes seconds a sample" if where == "cpu" else ""
    return ResolvedFeatures(chosen, weights_version(source, where), f"{source.architecture} on {where}, {why}{slow}")


def load_features(name: str, *, shifts: int, device: str = "auto") -> FeatureDifference:
    """The extractor called ``name``, with default settings; networks are loaded once a process.

    Args:
        name: as for `resolve_features`.
        shifts: patch grids along either axis, see `DenseFeatures`; weight-free features have no grid.
        device: as for `resolve_features`.

    Raises:
        GroundTruthError: as for `resolve_features`, or the network gives no dense features.
    """
    chosen = _choose(name)
    return WeightFreeFeatures() if chosen == WEIGHT_FREE else load_dense(parse_source(chosen), shifts=shifts, device=device)


def default_gain(name: str, *, device: str = "auto") -> float:
    """What the difference of ``name`` is multiplied by; 1 for weight-free features, measured for networks (module docstring).

    Raises:
        GroundTruthError: as for `load_features`, or the network sees no reference fault.
    """
    chosen = _choose(name)
    return 1.0 if chosen == WEIGHT_FREE else _measured_gain(chosen, device)


def _choose(name: str) -> str:
    return (cached_dinov3() or WEIGHT_FREE) if name == AUTO else name


@cache
def _measured_gain(name: str, device: str) -> float:
    pairs = reference_faults()
    dense = mean_difference(load_features(name, shifts=1, device=device), pairs)
    if dense < _FAINTEST:
        raise GroundTruthError(
            f"features {name}: blurred, sharpened and noisy photos must differ from the originals, got a mean difference of "
            f"{dense:.1e}; are these trained weights?"
        )
    return float(f"{mean_difference(WeightFreeFeatures(), pairs) / dense:.1e}")


def mean_difference(features: FeatureDifference, pairs: Sequence[torch.Tensor]) -> float:
    """Mean of Diff_feat over pairs of images."""
    return float(np.mean([float(features(pair).mean()) for pair in pairs]))


def reference_faults() -> list[torch.Tensor]:
    """Typical SR faults on packaged photographs, always the same: pairs 2×3×H×W in [0, 1], the original first."""
    from data_synth.photos import Photo

    pairs = []
    for name in _REFERENCE_PHOTOS:
        photo = Photo(f"sample:{name}").read()
        top, left = ((side - _REFERENCE_SIDE) // 2 for side in photo.shape[:2])
        crop = photo[top : top + _REFERENCE_SIDE, left : left + _REFERENCE_SIDE]
        image = torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1).float() / 255
        noise = torch.from_numpy(np.random.default_rng(0).standard_normal(image.shape, dtype=np.float32))
        faults = (blur(image, 2.0), image + 1.5 * (image - blur(image, 1.5)), image + 0.06 * noise)
        pairs += [torch.stack([image, fault.clamp(0, 1)]) for fault in faults]
    return pairs
