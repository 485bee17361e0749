"""The way up the ladder: which rung is in force, and what is done where a new one is reached."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from finpercep.curriculum.at_work import PolicyAtWork
from finpercep.curriculum.blended_reward import LadderReward
from finpercep.curriculum.controller import Decision, Observation
from finpercep.curriculum.refresh import Record, Refresher
from finpercep.curriculum.schedule import RungBlend
from finpercep.curriculum.settings import FinetuneConfig
from finpercep.errors import ConfigError
from finpercep.reward import RewardFn, RewardSource
from finpercep.rl.algorithm import Batch


class Climb:
    """The rungs of a run's reward and the controller that moves between them.

    Args:
        source: the rewards.
        config: settings of the run.
        refresher: makes a rung anew where it is reached, the first excepted.

    Attributes:
        rungs: names of the rungs in use.

    Raises:
        ConfigError: a rung that the source does not have, or a ``refresher`` where only one is in use.
    """

    def __init__(self, source: RewardSource, config: FinetuneConfig, refresher: Refresher | None) -> None:
        self._reward = LadderReward(source, config.reward, config.rungs)
        if refresher is not None and len(self._reward.rungs) < 2:
            raise ConfigError(f"--refresh makes the rungs after the first anew, and only {self._reward.rungs[0]} is in use")
        self._controller = config.controller(len(self._reward.rungs))
        self._config, self._refresher = config, refresher
        self._refreshed: dict[str, Record] = {}

    @property
    def rungs(self) -> tuple[str, ...]:
        """See the class."""
        return self._reward.rungs

    def blend(self, step: int) -> RungBlend:
        """What is in force at a 0-based step."""
        return self._controller.blend(step)

    def reward(self, blend: RungBlend) -> RewardFn:
        """The reward of a blend whose rungs were reached."""
        return self._reward.at(blend)

    def reach(self, blend: RungBlend, at_work: PolicyAtWork, draw_typical: Callable[[], Batch]) -> list[str]:
        """Make what ``blend`` needs ready: a rung that is new is refreshed, if so configured, and put on the scale of the last.

        Args:
            blend: of the step to come.
            at_work: the policy as it is.
            draw_typical: photos over which the scales are matched.

        Returns:
            What came of each refresh, a line each.
        """
        news = []
        while (rung := self._reward.unreached(blend)) is not None:
            if self._refresher is not None and rung:
                news.append(self._refresh(self._refresher, rung, at_work)["said"])
            images = shown = None
            if self._config.match_scales:
                typical = draw_typical()
                images = at_work.typical_images(typical)
                shown = typical.lr.repeat(2, 1, 1, 1) if self._config.show_lr else None
            self._reward.reach(rung, images, shown)
        return news

    def _refresh(self, refresher: Refresher, rung: int, at_work: PolicyAtWork) -> Record:
        name = self.rungs[rung]
        self._refreshed[name] = record = refresher.make(name, at_work.policy)
        refresher.adopt(name, record)
        self._reward.renew(rung)
        return record

    def observe(self, step: int, seen: Observation, *, alarm: str | None) -> Decision | None:
        """Tell the controller how a step went; what it decides, if anything."""
        decision = self._controller.observe(step, seen, alarm=alarm)
        return decision and dataclasses.replace(decision, name=self.rungs[decision.rung])

    def state_dict(self) -> dict[str, Any]:
        """Plain data that `load_state_dict` goes on from."""
        return {
            "controller": self._controller.state_dict(),
            "ladder": self._reward.state_dict(),
            "refreshed": dict(self._refreshed),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. Raises `ConfigError` when rungs were refreshed and there is no refresher."""
        for name, record in state["refreshed"].items():
            if self._refresher is None:
                raise ConfigError(f"{name} was refreshed in this run; continue it with --refresh")
            self._refresher.adopt(name, record)
            self._reward.renew(self.rungs.index(name))
        self._refreshed = dict(state["refreshed"])
        self._controller.load_state_dict(state["controller"])
        self._reward.load_state_dict(state["ladder"])
