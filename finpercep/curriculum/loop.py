"""The fine-tuning loop: an SR policy, a reward that may be anywhere, a curriculum, a monitor, a run directory.

Step s draws everything from (seed, s), and the state is saved every few steps, so an interrupted run continues bit for bit (CPU).
Knows nothing about servers: a reward is a `RewardSource`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from finpercep.curriculum.blended_reward import LadderReward
from finpercep.curriculum.controller import Decision, Observation
from finpercep.curriculum.metrics import StepMetrics, TimedReward, step_metrics
from finpercep.curriculum.monitor import Verdict
from finpercep.curriculum.optimiser import PolicyOptimiser
from finpercep.curriculum.run_directory import RunDirectory
from finpercep.curriculum.settings import FinetuneConfig
from finpercep.curriculum.watch import Watch
from finpercep.errors import ConfigError, TrainingError
from finpercep.reward import RewardFn, RewardSource
from finpercep.rl.algorithm import Batch, Trainee, Update
from finpercep.rl.gram import FeatureExtractor
from finpercep.sr.policy import DrawPair, SRPolicy, weights_of

__all__ = ["FinetuneConfig", "StepMetrics", "finetune"]

HeldOutPairs = tuple[torch.Tensor, torch.Tensor]
"""hr (N, 3, H, W) and its LR images, float32 in [0, 1], of photos that are not trained on."""


def finetune(
    policy: SRPolicy,
    source: RewardSource,
    draw_pair: DrawPair,
    features: FeatureExtractor,
    config: FinetuneConfig,
    run: RunDirectory,
    *,
    described: dict[str, Any] | None = None,
    held_out: HeldOutPairs | None = None,
) -> Iterator[StepMetrics]:
    """Fine-tune ``policy`` in place along the rungs of ``source``; ``run.final`` holds it at the end.

    Args:
        policy: the SR model; only its parameters are changed.
        source: the rewards.
        draw_pair: training pairs.
        features: frozen extractor of the Gram term.
        config: settings.
        run: where the run lives; a run already there is continued.
        described: what else belongs into ``config.toml`` (paths, digests).
        held_out: what the monitor looks at. With it ``run.best`` holds the weights that the monitor's panel liked best.

    Yields:
        The metrics of every step done now.

    Raises:
        ConfigError: the monitor is on and has nothing to look at.
        RewardError: a reward could not be had; the run can be continued.
        TrainingError: a non-finite loss, or a run directory of another run.
    """
    reward = LadderReward(source, config.reward)
    controller = config.controller(len(reward.rungs))
    run.claim({"finetune": config.to_json(), "rungs": list(reward.rungs), **(described or {})})
    at_work = _AtWork(Trainee(policy, policy.frozen_copy(), features), config, run, held_out)
    first = 0
    if state := run.load_state():
        controller.load_state_dict(state["controller"])
        at_work.load_state_dict(state)
        first = int(state["step"])
    for step in range(first, config.steps):
        if at_work.stopped:
            break
        started = time.perf_counter()
        blend = controller.blend(step)
        in_force = reward.at(blend)
        timed = TimedReward(in_force)
        rng = np.random.default_rng((config.seed, step))
        update = at_work.update(step, _draw_batch(draw_pair, config.batch_size, rng, policy.device), timed, rng)
        waited = timed.seconds if update.waited is None else update.waited
        lr, norm = at_work.optimiser.lr, at_work.optimiser.take_grad_norm()
        metrics = step_metrics(step, reward.rungs, blend, update, lr, norm, time.perf_counter() - started, waited)
        verdict = at_work.look(step + 1, in_force)
        alarm = verdict.reason if verdict is not None and verdict.hacked and config.monitor.on_alarm == "fallback" else None
        seen = Observation(metrics.reward, metrics.reward_std, metrics.grad_norm)
        if decision := controller.observe(step, seen, alarm=alarm):
            at_work.obey(decision)
        metrics = dataclasses.replace(metrics, verdict=_plain(verdict), decision=_plain(decision))
        run.append_metrics(dataclasses.asdict(metrics))
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps or at_work.stopped:
            run.save_state({"step": step + 1, "controller": controller.state_dict(), **at_work.state_dict()})
        yield metrics
    if first < config.steps or not (run.final / "policy.json").exists():
        at_work.deliver()


class _AtWork:
    """The policy with everything that changes it or judges it during a run."""

    def __init__(self, trainee: Trainee, config: FinetuneConfig, run: RunDirectory, held_out: HeldOutPairs | None) -> None:
        self.policy, self.config, self.run, self.stopped = trainee.policy, config, run, False
        self._trainee = trainee
        self.watch: Watch | None = None
        if config.monitor.every:
            if held_out is None:
                raise ConfigError("the monitor looks at held-out photos, and there are none")
            self.watch = Watch(*held_out, self._trainee.reference, config.monitor)
            if not run.has_best():
                run.save_best(self.policy.state_dict())
        self._begin(config.lr)

    def _begin(self, lr: float) -> None:
        """Algorithm and optimiser as at the start of a run."""
        self.algorithm = self.config.algorithm.build(self._trainee)
        self.optimiser = PolicyOptimiser(self.policy, lr=lr, max_grad_norm=self.config.max_grad_norm, ema=self.config.ema)

    def update(self, step: int, batch: Batch, reward: TimedReward, rng: np.random.Generator) -> Update:
        """One update of the algorithm; an error names the step."""
        try:
            return self.algorithm.update(batch, reward, rng, self.optimiser)
        except TrainingError as error:
            raise TrainingError(f"step {step + 1}: {error}") from error

    def look(self, steps_done: int, reward: RewardFn) -> Verdict | None:
        """The monitor's verdict, when one is due; the best weights are kept, and on an alarm taken back, if so configured."""
        if self.watch is None or not self.watch.due(steps_done):
            return None
        with self._delivered():
            verdict = self.watch.look(self.policy, reward)
            if self.watch.is_best(verdict):
                self.run.save_best(self.policy.state_dict())
        if verdict.hacked and self.config.monitor.on_alarm != "warn":
            self.policy.load_state_dict(self.run.load_best())
            self._begin(self.optimiser.lr)
            self.stopped = self.config.monitor.on_alarm == "stop"
        return verdict

    def obey(self, decision: Decision) -> None:
        """The learning rate that a decision sets."""
        self.optimiser.set_lr(self.config.lr * decision.lr_scale)

    def deliver(self) -> None:
        """Write ``final``, and ``best`` where a monitor chose it."""
        with self._delivered():
            self.policy.save_pretrained(self.run.final)
        if self.watch is not None:
            best = self.run.load_best()
            with weights_of(self.policy, [best[name].to(self.policy.device) for name in self.policy.state_dict()]):
                self.policy.save_pretrained(self.run.best)

    def _delivered(self) -> AbstractContextManager[None]:
        """Inside, the policy has the weights that would be delivered now: the average, where one is kept."""
        return weights_of(self.policy, self.optimiser.average or [parameter.data for parameter in self.optimiser.parameters])

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


def _draw_batch(draw_pair: DrawPair, size: int, rng: np.random.Generator, device: torch.device) -> Batch:
    hr, lr = (torch.stack(side).to(device) for side in zip(*(draw_pair(rng) for _ in range(size)), strict=True))
    return Batch(hr, lr)


def _plain(found: Verdict | Decision | None) -> dict[str, Any] | None:
    return None if found is None else dataclasses.asdict(found)
