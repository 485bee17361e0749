"""The hacking monitor at work on a run: the held-out images, what the policy made of them at the start, and its best weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from finpercep.curriculum.monitor import HeldOut, Verdict, judge
from finpercep.curriculum.tripwires import TRIPWIRES
from finpercep.errors import ConfigError
from finpercep.reward import RewardFn
from finpercep.sr.panel import PANEL, panel_scores
from finpercep.sr.policy import SRPolicy, sample_images

OnAlarm = Literal["warn", "fallback", "stop"]

HIGHER_BETTER = {**PANEL, **dict.fromkeys(TRIPWIRES, False)}


@dataclass(frozen=True)
class MonitorConfig:
    """Settings of the hacking monitor.

    Attributes:
        every: steps between looks; 0 switches it off.
        images: held-out images.
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


class Watch:
    """Looks at the held-out images now and then.

    Args:
        hr: ground truth (N, 3, H, W) in [0, 1].
        lr: its LR images.
        reference: the policy as it was at the start.
        config: settings.
    """

    def __init__(self, hr: torch.Tensor, lr: torch.Tensor, reference: SRPolicy, config: MonitorConfig) -> None:
        self.hr, self.lr, self.config = hr.cpu(), lr, config
        self._start_images = self._images(reference)
        self._start_panel = self._panel(self._start_images)
        self.best_change = 0.0

    def due(self, steps_done: int) -> bool:
        """Whether to look now."""
        return self.config.every > 0 and steps_done % self.config.every == 0

    @torch.no_grad()
    def look(self, policy: SRPolicy, reward: RewardFn) -> Verdict:
        """The verdict on the policy as it is; both sides are scored by the reward in force."""
        images = self._images(policy)
        now = HeldOut(self._panel(images), self._reward(reward, images))
        start = HeldOut(self._start_panel, self._reward(reward, self._start_images))
        return judge(start, now, HIGHER_BETTER, self.config.confidence)

    def is_best(self, verdict: Verdict) -> bool:
        """Whether the panel was never higher; remembered."""
        better = verdict.change > self.best_change
        self.best_change = max(self.best_change, verdict.change)
        return better

    def state_dict(self) -> dict[str, Any]:
        """Plain data that `load_state_dict` goes on from."""
        return {"best_change": self.best_change}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.best_change = float(state["best_change"])

    def _images(self, policy: SRPolicy) -> torch.Tensor:
        return sample_images(policy, self.lr, range(len(self.lr))).cpu()

    def _panel(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        wires = {name: wire(images, self.hr) for name, wire in TRIPWIRES.items()}
        return {**panel_scores(images, self.hr).values, **wires}

    @staticmethod
    def _reward(reward: RewardFn, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([reward(part).reward for part in images.split(8)]).double().cpu()
