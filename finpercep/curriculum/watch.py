"""The hacking monitor at work on a run: the held-out images, what the policy made of them at the start, and its best weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from finpercep.curriculum.monitor import HeldOut, Verdict, judge
from finpercep.curriculum.tripwires import TOLERANCES, TRIPWIRES
from finpercep.errors import ConfigError
from finpercep.reward import RewardFn, beside
from finpercep.sr.panel import PANEL, panel_scores
from finpercep.sr.policy import SRPolicy, sample_images

OnAlarm = Literal["warn", "fallback", "stop"]

HIGHER_BETTER = {**PANEL, **dict.fromkeys(TRIPWIRES, False)}


@dataclass(frozen=True)
class MonitorConfig:
    """Settings of the hacking monitor.

    Attributes:
        every: steps between looks; 0 switches it off.
        images: crops of held-out photos.
        confidence: of the interval that the panel must leave, in (0, 1).
        on_alarm: ``warn`` logs it; ``fallback`` takes the best weights back and, where the curriculum is adaptive, goes back a
            rung and cuts the learning rate; ``stop`` takes the best weights back and ends the run.
    """

    every: int = 0
    images: int = 16
    confidence: float = 0.95
    on_alarm: OnAlarm = "fallback"

    def __post_init__(self) -> None:
        if self.every < 0 or self.images < 2:
            raise ConfigError(f"monitor every must be >= 0 and images >= 2, got {self.every} and {self.images}")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"monitor confidence must lie in (0, 1), got {self.confidence}")
        if self.on_alarm not in ("warn", "fallback", "stop"):
            raise ConfigError(f"monitor on_alarm must be warn, fallback or stop, got {self.on_alarm!r}")


@dataclass(frozen=True)
class Look:
    """What the policy made of some LR images: SR images (N, 3, H, W) on the CPU, and metric → float64 (N,) of them."""

    images: torch.Tensor
    panel: dict[str, torch.Tensor]


def look_at(policy: SRPolicy, hr: torch.Tensor, lr: torch.Tensor, *, panel: bool = True) -> Look:
    """Look at what a policy makes of ``lr`` (N, 3, h, w), ground truth ``hr``; without ``panel`` by the tripwires alone."""
    images, truth = sample_images(policy, lr.to(policy.device), range(len(lr))).cpu(), hr.cpu()
    wires = {name: wire(images, truth) for name, wire in TRIPWIRES.items()}
    return Look(images, {**panel_scores(images, truth).values, **wires} if panel else wires)


class Watch:
    """Looks at the held-out images now and then.

    Attributes:
        start: what the policy made of them at the start.
        latest: what it made of them at the last look.
        best_change: the largest mean change of the panel, and ``best_step``: the steps after which it was seen; 0 at the start.

    Args:
        hr: ground truth (N, 3, H, W) in [0, 1].
        lr: its LR images.
        reference: the policy as it was at the start.
        config: settings.
        photo: int64 (N,), which photo each image is of; None where each is of its own.

    Raises:
        ConfigError: the images are of one photo, of which nothing follows for others.
    """

    def __init__(
        self, hr: torch.Tensor, lr: torch.Tensor, reference: SRPolicy, config: MonitorConfig, photo: torch.Tensor | None = None
    ) -> None:
        if (photos := len(hr) if photo is None else len(photo.unique())) < 2:
            raise ConfigError(f"the monitor compares held-out photos, two or more, and got {photos}; add photos")
        self.hr, self.lr, self.photo, self.config = hr.cpu(), lr, photo, config
        self.start = self.latest = look_at(reference, self.hr, lr)
        self.best_change, self.best_step = 0.0, 0

    def due(self, steps_done: int) -> bool:
        """Whether to look now."""
        return self.config.every > 0 and steps_done % self.config.every == 0

    @torch.no_grad()
    def look(self, policy: SRPolicy, reward: RewardFn) -> Verdict:
        """The verdict on the policy as it is; both sides are scored by the reward in force."""
        self.latest = look_at(policy, self.hr, self.lr)
        start, now = (HeldOut(look.panel, self._reward(reward, look.images), self.photo) for look in (self.start, self.latest))
        return judge(start, now, PANEL, self.config.confidence, TOLERANCES)

    def is_best(self, verdict: Verdict, steps_done: int) -> bool:
        """Whether the panel was never higher; remembered."""
        better = verdict.change > self.best_change
        if better:
            self.best_change, self.best_step = verdict.change, steps_done
        return better

    def state_dict(self) -> dict[str, Any]:
        """Plain data that `load_state_dict` goes on from."""
        return {"best_change": self.best_change, "best_step": self.best_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.best_change, self.best_step = float(state["best_change"]), int(state["best_step"])

    def _reward(self, reward: RewardFn, images: torch.Tensor) -> torch.Tensor:
        parts = zip(images.split(8), self.lr.split(8), strict=True)
        return torch.cat([beside(reward, lr)(part).reward for part, lr in parts]).double().cpu()
