"""The policy with everything that changes it or judges it during a run: algorithm, optimiser, monitor."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch

from finpercep.curriculum.controller import Decision
from finpercep.curriculum.metrics import TimedReward
from finpercep.curriculum.monitor import Verdict
from finpercep.curriculum.optimiser import PolicyOptimiser
from finpercep.curriculum.run_directory import RunDirectory
from finpercep.curriculum.settings import FinetuneConfig
from finpercep.curriculum.snapshots import Snapshots
from finpercep.curriculum.watch import Watch
from finpercep.errors import ConfigError, Diverged
from finpercep.reward import RewardFn
from finpercep.rl.algorithm import Batch, Trainee, Update
from finpercep.rl.scoring import gathered_rewards
from finpercep.sr.policy import sample_images, weights_of

HeldOutPairs = tuple[torch.Tensor, ...]
"""hr (N, 3, H, W) and its LR images, float32 in [0, 1], of photos that are not trained on; and, where several are of one photo,
which photo each is of, int64 (N,)."""


class PolicyAtWork:
    """A policy in training.

    Attributes:
        policy: what is trained; ``reference``: a frozen copy of it as it began.
        world: the processes that train it.
        watch: the monitor, where there is one.
        algorithm: of the run, and ``optimiser``; both begin anew where weights are taken back.
        stopped: whether an alarm ended the run.

    Raises:
        ConfigError: the monitor is on and has nothing to look at.
    """

    def __init__(self, trainee: Trainee, config: FinetuneConfig, run: RunDirectory, held_out: HeldOutPairs | None) -> None:
        self.policy, self.config, self.run, self.stopped = trainee.policy, config, run, False
        self._trainee, self.reference, self.world = trainee, trainee.reference, trainee.world
        self.watch: Watch | None = None
        if config.monitor.every:
            if held_out is None:
                raise ConfigError("the monitor looks at held-out photos, and there are none")
            hr, lr, *photo = held_out
            self.watch = Watch(hr, lr, self._trainee.reference, config.monitor, *photo)
        self._begin(config.lr)

    def _begin(self, lr: float) -> None:
        """Algorithm and optimiser as at the start of a run."""
        self.algorithm = self.config.algorithm.build(self._trainee)
        self.optimiser = PolicyOptimiser(
            self.policy, lr=lr, max_grad_norm=self.config.max_grad_norm, ema=self.config.ema, world=self.world
        )

    def update(self, step: int, batch: Batch, reward: TimedReward, rng: np.random.Generator) -> Update:
        """One update of the algorithm, told for the whole batch; an error names the step."""
        try:
            update = self.algorithm.update(batch, reward, rng, self.optimiser)
        except Diverged as error:
            raise Diverged(f"step {step + 1}: {error}") from error
        losses, figures = (
            {name: self.world.mean(value) for name, value in own.items()} for own in (update.losses, update.figures)
        )
        return dataclasses.replace(update, rewards=gathered_rewards(update.rewards, self.world), losses=losses, figures=figures)

    @torch.no_grad()
    def typical_images(self, batch: Batch) -> torch.Tensor:
        """What a reward is asked about: clean photos, and what the policy makes of their LR images now."""
        return torch.cat([batch.hr, sample_images(self.policy, batch.lr, range(len(batch.lr)))])

    def look(self, steps_done: int, reward: RewardFn) -> Verdict | None:
        """The monitor's verdict, when one is due; the best weights are kept, and on an alarm taken back, if so configured."""
        watch = self.watch
        if watch is None or not watch.due(steps_done):
            return None
        verdict = self.world.from_main(partial(self._look, watch, steps_done, reward))
        if verdict.hacked and self.config.monitor.on_alarm != "warn":
            self.policy.load_state_dict(self.run.load_best(self.world.from_main(lambda: watch.best_step)))
            self._begin(self.optimiser.lr)
            self.stopped = self.config.monitor.on_alarm == "stop"
        return verdict

    def _look(self, watch: Watch, steps_done: int, reward: RewardFn) -> Verdict:
        with self._delivered():
            verdict = watch.look(self.policy, reward)
            if watch.is_best(verdict, steps_done):
                self.run.save_best(steps_done, self.policy.state_dict())
        return verdict

    def picture(self, pictures: Snapshots, steps_done: int, rung: str, reward: RewardFn, verdict: Verdict | None) -> None:
        """Take the pictures that are due after a step and its look: of an alarm, and of the policy as it goes on."""
        undone = verdict is not None and verdict.hacked and self.config.monitor.on_alarm != "warn"
        if undone and self.watch is not None:
            pictures.take(steps_done, rung, reward, self.watch.latest, alarm=True)
        if pictures.due(steps_done) or self.stopped or steps_done == self.config.steps:
            with self._delivered():
                seen = self.watch is not None and verdict is not None and not undone
                now = self.watch.latest if self.watch is not None and seen else pictures.look(self.policy)
            pictures.take(steps_done, rung, reward, now)

    def obey(self, decision: Decision) -> None:
        """The learning rate that a decision sets."""
        self.optimiser.set_lr(self.config.lr * decision.lr_scale)

    def deliver(self) -> None:
        """Write ``best`` where a monitor chose it, and ``final`` last: it says that both are there."""
        if self.watch is not None:
            best = self.run.load_best(self.watch.best_step)
            with weights_of(self.policy, [best[name].to(self.policy.device) for name in self.policy.state_dict()]):
                self.policy.save_pretrained(self.run.best)
        with self._delivered():
            self.policy.save_pretrained(self.run.final)

    def _delivered(self) -> AbstractContextManager[None]:
        """Inside, the policy has the weights that would be delivered now: the average, where one is kept."""
        return weights_of(self.policy, self.optimiser.average or [parameter.data for parameter in self.optimiser.parameters])

    def keep_start(self) -> None:
        """The weights that a run begins with are the best until better ones are seen."""
        if self.watch is not None:
            self.run.save_best(0, self.policy.state_dict())

    def save_state(self, state: dict[str, Any]) -> None:
        """Store a checkpoint: ``state`` and one's own."""
        self.run.save_state({**state, **self.state_dict()})
        if self.watch is not None:
            self.run.forget_best_but(self.watch.best_step)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the steps to come, but for the curriculum."""
        return {
            "policy": self.policy.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "algorithm": self.algorithm.state_dict(),
            "watch": None if self.watch is None else self.watch.state_dict(),
            "stopped": self.stopped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.policy.load_state_dict(state["policy"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.algorithm.load_state_dict(state["algorithm"])
        if self.watch is not None:
            self.watch.load_state_dict(state["watch"])
        self.stopped = bool(state["stopped"])
