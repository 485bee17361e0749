"""How well scores agree with people: SRCC, KRCC, PLCC and RMSE after a logistic fit, with bootstrap intervals. Pure functions.

The fit is the monotone 4-parameter logistic of the VQEG FR-TV phase I report (2000) and ITU-T Tutorial "Objective perceptual
assessment of video quality" (2004), eq. for Q_p:  Q(x) = b2 + (b1 − b2) / (1 + exp(−(x − b3) / |b4|)).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.special import expit
from scipy.stats import kendalltau, rankdata

from finpercep.errors import ConfigError

Array = npt.NDArray[np.float64]

MIN_IMAGES = 8
"""Fewer opinions than this cannot carry four fitted parameters."""
_EVALUATIONS = 2000


@dataclass(frozen=True)
class Logistic:
    """Q(x) = low + (high − low) / (1 + exp(−(x − centre) / width)), ``width`` > 0; it falls where ``high`` < ``low``."""

    high: float
    low: float
    centre: float
    width: float

    def __call__(self, scores: Array) -> Array:
        """Predicted opinions, of ``scores``' shape."""
        return np.asarray(_logistic(scores, self.high, self.low, self.centre, self.width))


def _logistic(x: Array, high: float, low: float, centre: float, width: float) -> Array:
    return np.asarray(low + (high - low) * expit((x - centre) / max(abs(width), 1e-12)))


def _slopes(x: Array, high: float, low: float, centre: float, width: float) -> Array:
    """Derivatives of `_logistic` by its four parameters, (N, 4)."""
    size = max(abs(width), 1e-12)
    at = (x - centre) / size
    rise = expit(at)
    steep = (high - low) * rise * (1 - rise) / size
    return np.stack([rise, 1 - rise, -steep, -steep * at * np.sign(width)], axis=1)


def fit_logistic(scores: Array, opinions: Array, start: Logistic | None = None) -> Logistic | None:
    """Least-squares fit. Returns None where there is none to be had: one side is constant, or no start converges.

    Args:
        scores: (N,).
        opinions: (N,).
        start: where to begin; by default rising and falling curves, steep and flat, at three places; the best fit counts.
    """
    spread, scale = float(np.std(scores)), float(np.std(opinions))
    if not (spread > 0 and scale > 0):
        return None
    # Standardised, so that one tolerance suits every scale of scores and opinions.
    x, y = (scores - scores.mean()) / spread, (opinions - opinions.mean()) / scale
    fits = [fit for first in _starts(start, scores, opinions) if (fit := _fit_from(x, y, first)) is not None]
    if not fits:
        return None
    high, low, centre, width = min(fits, key=lambda fit: float(((_logistic(x, *fit) - y) ** 2).sum()))
    back = (float(np.mean(opinions)), float(np.mean(scores)))
    return Logistic(back[0] + scale * high, back[0] + scale * low, back[1] + spread * centre, spread * abs(width))


def _starts(start: Logistic | None, scores: Array, opinions: Array) -> Sequence[tuple[float, ...]]:
    spread, scale, x0, y0 = float(np.std(scores)), float(np.std(opinions)), float(np.mean(scores)), float(np.mean(opinions))
    if start is not None:
        return [((start.high - y0) / scale, (start.low - y0) / scale, (start.centre - x0) / spread, start.width / spread)]
    top, bottom, middle = ((float(f(opinions)) - y0) / scale for f in (np.max, np.min, np.median))
    # No steeper start than the usual quarter of a standard deviation: on noisy opinions it ends in a step, which means nothing.
    centres = (np.percentile(scores, [25, 50, 75]) - x0) / spread
    curves = [(*ends, c, w) for ends in ((top, bottom), (bottom, top)) for c in centres for w in (0.25, 1.0)]
    return [*curves, (middle + 2, middle - 2, float(centres[1]), 3.0)]


def _fit_from(x: Array, y: Array, start: tuple[float, ...]) -> tuple[float, float, float, float] | None:
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):  # both concern the covariance, which is not asked for
            warnings.simplefilter("ignore", OptimizeWarning)
            high, low, centre, width = curve_fit(_logistic, x, y, p0=start, jac=_slopes, maxfev=_EVALUATIONS)[0]
    except RuntimeError:  # no convergence from here
        return None
    fit = float(high), float(low), float(centre), float(width)
    return fit if np.isfinite(fit).all() else None


def spearman(a: Array, b: Array) -> float | None:
    """Rank correlation, ties sharing their mean rank; None where one side is constant."""
    return pearson(rankdata(a), rankdata(b))


def kendall(a: Array, b: Array) -> float | None:
    """Kendall's tau-b, which allows for ties; None where one side is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.clip(kendalltau(a, b, variant="b").statistic, -1, 1))


def pearson(a: Array, b: Array) -> float | None:
    """Linear correlation; None where one side is constant."""
    a, b = a - a.mean(), b - b.mean()
    length = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / length if length > 0 and np.ptp(a) > 0 and np.ptp(b) > 0 else None


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % bootstrap interval (percentiles); None where it is undefined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Agreement:
    """Agreement of scores with mean opinions.

    Attributes:
        srcc: Spearman's rank correlation; its sign says whether the score goes the right way.
        krcc: Kendall's tau-b.
        plcc: Pearson's correlation of opinions with the scores after the logistic fit.
        rmse: root mean square error after the fit, on the opinions' scale.
        logistic: the fit; None where there is none.
        images: how many.
        replicates: how many resamples stand behind the intervals.
        unfitted: how many of them had no fit, and are left out of PLCC's and RMSE's interval.
    """

    srcc: Estimate
    krcc: Estimate
    plcc: Estimate
    rmse: Estimate
    logistic: Logistic | None
    images: int
    replicates: int
    unfitted: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def agreement(scores: Array, opinions: Array, *, seed: int = 0, replicates: int = 1000) -> Agreement:
    """All figures. Images are resampled with replacement; the logistic is fitted anew to every resample.

    Args:
        scores: (N,), higher is better.
        opinions: (N,), mean opinion scores, higher is better.
        seed: of the resampling.
        replicates: number of resamples.

    Raises:
        ConfigError: fewer than `MIN_IMAGES` images.
    """
    if len(scores) < MIN_IMAGES:
        raise ConfigError(f"agreement with human scores needs at least {MIN_IMAGES} images, got {len(scores)}")
    scores, opinions = scores.astype(np.float64), opinions.astype(np.float64)
    fit = fit_logistic(scores, opinions)
    found = _figures(scores, opinions, fit)
    resampled = bootstrap(
        lambda a, b: _figures(a, b, fit_logistic(a, b, fit) if fit else None), scores, opinions, seed=seed, replicates=replicates
    )
    srcc, krcc, plcc, rmse = (Estimate(value, *interval([figures[i] for figures in resampled])) for i, value in enumerate(found))
    unfitted = sum(figures[2] is None for figures in resampled)
    return Agreement(srcc, krcc, plcc, rmse, fit, len(scores), replicates, unfitted)


Figures = tuple[float | None, ...]


def bootstrap(
    figures: Callable[[Array, Array], Figures], scores: Array, opinions: Array, *, seed: int, replicates: int
) -> list[Figures]:
    """``figures`` of ``replicates`` resamples of the images with replacement; the same resamples for the same seed and N."""
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(scores), size=len(scores)) for _ in range(replicates))
    return [figures(scores[chosen], opinions[chosen]) for chosen in draws]


def _figures(scores: Array, opinions: Array, fit: Logistic | None) -> Figures:
    ranks = spearman(scores, opinions), kendall(scores, opinions)
    if fit is None:
        return *ranks, None, None
    predicted = fit(scores)
    return *ranks, pearson(predicted, opinions), float(np.sqrt(((predicted - opinions) ** 2).mean()))


def interval(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """The middle 95 % of the values that are defined; None where fewer than two are."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None, None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)
