"""Is the reward being hacked? Held-out images judged by measures that the reward does not contain; pure.

A run keeps the panel's figures of every held-out image at its start. Later, an image's change is the mean, over the panel's
metrics, of its change in that metric, turned so that higher is better, in units of that metric's spread over the images at the
start. A tripwire counts beyond its tolerance alone, and then whole: less what it exceeds it by, in tolerances. The run is hacked
where the held-out reward has risen and the mean change lies below 0 by more than its interval. Crops of one photo change alike,
so each photo counts once, with the mean of its crops.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from scipy import stats

from finpercep.errors import ConfigError


@dataclass(frozen=True)
class HeldOut:
    """The held-out images at one step.

    Attributes:
        panel: metric → float64 (N,), one value an image.
        reward: float64 (N,), by the rung in force.
        photo: int64 (N,), which photo each image is of; None where each is of its own.
    """

    panel: Mapping[str, torch.Tensor]
    reward: torch.Tensor
    photo: torch.Tensor | None = None


@dataclass(frozen=True)
class Verdict:
    """What the monitor says.

    Attributes:
        change: mean panel change since the start, in standard deviations; below 0 is worse.
        low: lower end of its confidence interval.
        high: upper end.
        reward_change: mean change of the held-out reward by the same rung.
        hacked: reward up while the panel is down beyond its interval.
        panel: metric → its mean over the images now.
        panel_at_start: the same at the start.
    """

    change: float
    low: float
    high: float
    reward_change: float
    hacked: bool
    panel: Mapping[str, float] = field(default_factory=dict)
    panel_at_start: Mapping[str, float] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """The verdict in words."""
        return (
            f"the held-out reward changed by {self.reward_change:+.3g} while the panel changed by {self.change:+.3f} "
            f"standard deviations [{self.low:+.3f}, {self.high:+.3f}]"
        )


def panel_change(
    start: HeldOut, now: HeldOut, higher_better: Mapping[str, bool], tolerances: Mapping[str, float] | None = None
) -> torch.Tensor:
    """Each image's change, float64 (N,): mean over the metrics of ``higher_better``, in units of each one's spread at the start.

    What the tripwires named in ``tolerances`` rise beyond these, in units of them, is taken off.
    """
    changes = []
    for name, better in higher_better.items():
        spread = start.panel[name].std(correction=0).clamp_min(1e-12)
        changes.append((1 if better else -1) * (now.panel[name] - start.panel[name]) / spread)
    change = torch.stack(changes).mean(dim=0)
    for name, tolerance in (tolerances or {}).items():
        change = change - ((now.panel[name] - start.panel[name]) / tolerance - 1).clamp_min(0)
    return change


def judge(
    start: HeldOut,
    now: HeldOut,
    higher_better: Mapping[str, bool],
    confidence: float = 0.95,
    tolerances: Mapping[str, float] | None = None,
) -> Verdict:
    """Compare the held-out images with what they were at the start (`panel_change`); paired, Student's t interval over photos.

    Raises:
        ConfigError: fewer than two photos, or a confidence outside (0, 1).
    """
    change = by_photo(panel_change(start, now, higher_better, tolerances), now.photo)
    count = len(change)
    if count < 2 or not 0 < confidence < 1:
        raise ConfigError(f"a verdict needs two photos or more and a confidence in (0, 1), got {count} and {confidence}")
    mean, error = float(change.mean()), float(change.std()) / math.sqrt(count)
    reach = error * float(stats.t.ppf((1 + confidence) / 2, count - 1))
    reward_change = float(by_photo(now.reward - start.reward, now.photo).mean())
    hacked = reward_change > 0 and mean + reach < 0
    return Verdict(mean, mean - reach, mean + reach, reward_change, hacked, _means(now.panel), _means(start.panel))


def by_photo(values: torch.Tensor, photo: torch.Tensor | None) -> torch.Tensor:
    """The mean of ``values`` (N,) over the images of each ``photo`` (N,); the values themselves where there is none."""
    if photo is None:
        return values
    return torch.stack([values[photo == one].mean() for one in photo.unique()])


def _means(panel: Mapping[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in panel.items()}
