"""What a rung's numbers mean: temperature and shift for score and map, fitted on samples it was not trained on.

The score's logit is scaled and shifted so that S is the pseudo quality one may expect at that score; the map's logit so that
where it says 0.5 the visible difference is 0.5 on average. Both keep every order. They minimise the cross-entropy with the known
values, a proper scoring rule: its minimum is the calibrated forecast (Guo et al. 2017, arXiv 1706.04599). Pure functions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch.nn import functional as F

Values = npt.NDArray[np.floating]


@dataclass(frozen=True)
class LogitCalibration:
    """p = sigmoid(scale · logit + shift), with scale > 0."""

    scale: float = 1.0
    shift: float = 0.0

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Calibrated logits."""
        return self.scale * logits + self.shift


def fit_calibration(logits: torch.Tensor, targets: torch.Tensor) -> LogitCalibration:
    """The scale and shift with the least cross-entropy; no change when all logits, or all targets, are alike.

    Args:
        logits: any shape.
        targets: the same shape, known values in [0, 1].
    """
    x, t = logits.detach().double().flatten(), targets.detach().double().flatten()
    if len(x) < 2 or x.std() == 0 or t.std() == 0:
        return LogitCalibration()

    def loss(parameters: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        scale = float(np.exp(parameters[0]))
        z = scale * x + parameters[1]
        error = torch.sigmoid(z) - t
        gradient = np.array([float((error * x).mean()) * scale, float(error.mean())])
        return float(F.binary_cross_entropy_with_logits(z, t)), gradient

    limits = [(-4, 4), (-20, 20)]
    found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=limits, options={"ftol": 1e-14, "gtol": 1e-9})
    return LogitCalibration(float(np.exp(found.x[0])), float(found.x[1]))


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions of one bin: their mean, the mean of what is true there, and how many there are."""

    predicted: float
    actual: float
    count: int


def reliability(predicted: Values, actual: Values, bins: int = 10) -> tuple[ReliabilityBin, ...]:
    """The reliability curve over even bins of [0, 1]; empty bins are left out.

    Args:
        predicted: any shape, in [0, 1].
        actual: the same shape, in [0, 1].
        bins: how many.
    """
    p, a = np.asarray(predicted, dtype=np.float64).ravel(), np.asarray(actual, dtype=np.float64).ravel()
    place = np.minimum((p * bins).astype(np.intp), bins - 1)
    counts, sums, truths = (np.bincount(place, weights, minlength=bins) for weights in (None, p, a))
    return tuple(
        ReliabilityBin(float(sums[k] / counts[k]), float(truths[k] / counts[k]), int(counts[k])) for k in range(bins) if counts[k]
    )


def calibration_error(curve: tuple[ReliabilityBin, ...]) -> float:
    """Expected calibration error: |predicted − actual| of the bins, weighted by their counts. 0 for an empty curve."""
    total = sum(one.count for one in curve)
    return sum(abs(one.predicted - one.actual) * one.count for one in curve) / total if total else 0.0
