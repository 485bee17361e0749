"""Pseudo quality: one number an image, 1 = identical to gt, for the global head. From a full-reference metric of pyiqa.

GMSD needs no weights. LPIPS and DISTS see more, where their weights can be had. Each is a distance d ≥ 0 and becomes
exp(−d/τ) with its own τ, so that numbers of different metrics are about comparable. Knows nothing about maps or masks.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from data_synth.library_errors import first_line
from data_synth.schema.errors import FinpercepError
from data_synth.schema.pixels import RGB8

Metric = Literal["gmsd", "lpips", "dists"]
MetricChoice = Literal["gmsd", "lpips", "dists", "auto"]

_WEIGHT_FILES: dict[Metric, tuple[str, str]] = {
    "lpips": ("checkpoints/alexnet-owt-7be5be79.pth", "pyiqa/LPIPS_v0.1_alex-df73285e.pth"),
    "dists": ("checkpoints/vgg16-397923af.pth", "pyiqa/DISTS_weights-f5e65c96.pth"),
}
"""In torch's hub folder: the backbone as torchvision, the metric as pyiqa downloads it. In the order `auto` tries."""

_SMALLEST: dict[Metric, int] = {"gmsd": 8, "lpips": 64, "dists": 32}
"""Least side in px: AlexNet's and VGG's strides leave nothing of smaller images."""


class QualityError(FinpercepError):
    """Settings, weights or a measurement that give no quality."""


@dataclass(frozen=True)
class QualityConfig:
    """Settings of `pseudo_quality`. With the default τ an x4 bicubic-like image lands near 0.3, whatever the metric.

    Attributes:
        tau: GMSD at which quality has fallen to 1/e.
        batch_size: images measured at once; small batches stay in the processor's cache.
        metric: ``gmsd`` (Xue et al., 2013), ``lpips`` (Zhang et al., 2018, AlexNet), ``dists`` (Ding et al., 2020), or ``auto``:
            the first of lpips, dists, gmsd that needs no download.
        lpips_tau: LPIPS at which quality has fallen to 1/e; bicubic x4 is near 0.4 in the SR literature.
        dists_tau: the same for DISTS; bicubic x4 is near 0.23.
    """

    tau: float = 0.1
    batch_size: int = 2
    metric: MetricChoice = "gmsd"
    lpips_tau: float = 0.33
    dists_tau: float = 0.19

    def __post_init__(self) -> None:
        if min(self.tau, self.lpips_tau, self.dists_tau) <= 0 or self.batch_size < 1:
            taus = f"{self.tau}, {self.lpips_tau}, {self.dists_tau}"
            raise QualityError(f"every tau and batch_size must be positive, got {taus} and {self.batch_size}")
        if self.metric not in get_args(MetricChoice):
            raise QualityError(f"metric must be one of {', '.join(get_args(MetricChoice))}, got {self.metric!r}")

    def tau_of(self, metric: Metric) -> float:
        """The τ of one metric."""
        return {"gmsd": self.tau, "lpips": self.lpips_tau, "dists": self.dists_tau}[metric]


@dataclass(frozen=True)
class ResolvedQuality:
    """Which metric a data set's qualities come from; recorded in its manifest.

    Attributes:
        metric: never ``auto``.
        version: pyiqa's version, and a digest of the weights where the metric has any.
        reason: one line: what was chosen, and why.
    """

    metric: Metric
    version: str
    reason: str


def resolve_quality(config: QualityConfig) -> ResolvedQuality:
    """Decide which metric this machine uses. ``auto`` never downloads; asked for by name, weights are downloaded.

    Raises:
        QualityError: the metric's weights cannot be had.
    """
    metric = _choose(config.metric)
    why = "as asked"
    if config.metric == "auto":
        why = "auto: its weights are here" if metric in _WEIGHT_FILES else "auto: no LPIPS or DISTS weights in torch's hub folder"
    return ResolvedQuality(metric, _version(metric), f"{metric.upper()}, {why}")


def pseudo_quality(images: Sequence[RGB8], references: Sequence[RGB8], config: QualityConfig) -> npt.NDArray[np.float32]:
    """exp(−d/τ) of every image against its reference, d the metric as pyiqa implements it.

    Args:
        images: uint8 H×W×3 RGB, all of one size.
        references: one for each image, of its size.
        config: the metric, and how distance becomes quality.

    Returns:
        float32, one in (0, 1] an image; exactly 1 for an image equal to its reference.

    Raises:
        QualityError: images smaller than the metric can measure, a non-finite distance, or weights that cannot be had.
    """
    import torch

    metric = _choose(config.metric)
    for image in images:
        if min(image.shape[:2]) < _SMALLEST[metric]:
            raise QualityError(
                f"{metric} needs at least {_SMALLEST[metric]} px on each side, got {image.shape[1]}x{image.shape[0]}"
            )
    network = _metric(metric)
    distances: list[float] = []
    for start in range(0, len(images), config.batch_size):
        chunk = slice(start, start + config.batch_size)
        batch, reference = (
            torch.from_numpy(np.stack(part[chunk])).permute(0, 3, 1, 2).float() / 255 for part in (images, references)
        )
        with torch.no_grad():
            distances.extend(network(batch, reference).flatten().tolist())
    distance = np.array(distances, dtype=np.float64)
    if not np.isfinite(distance).all():
        raise QualityError(f"{metric} must be finite, got {distances}; are its weights damaged?")
    distance[[np.array_equal(image, reference) for image, reference in zip(images, references, strict=True)]] = 0
    return np.exp(-distance.clip(min=0) / config.tau_of(metric)).astype(np.float32)


def _choose(metric: MetricChoice) -> Metric:
    if metric != "auto":
        return metric
    import torch

    folder = Path(torch.hub.get_dir())
    present = (name for name, files in _WEIGHT_FILES.items() if all((folder / file).exists() for file in files))
    return next(present, "gmsd")


@cache
def _metric(metric: Metric) -> Any:
    import pyiqa  # seconds to import, so only when a quality is asked for

    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):  # it prints what it loads
        try:
            return pyiqa.create_metric(metric, device="cpu")
        except Exception as error:  # downloads and damaged files raise many unrelated types
            files = " and ".join(_WEIGHT_FILES.get(metric, ()))
            raise QualityError(
                f"the weights of {metric} could not be had ({first_line(error)}); go online once, put {files} into torch's "
                "hub folder, or choose metric gmsd"
            ) from error


@cache
def _version(metric: Metric) -> str:
    release = f"pyiqa-{metadata.version('pyiqa')}"
    if metric not in _WEIGHT_FILES:
        return release
    digest = hashlib.sha256()
    for name, tensor in sorted(_metric(metric).state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return f"{release}-{digest.hexdigest()[:16]}"
