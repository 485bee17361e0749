"""The fine-tuning loop: an SR policy, a reward that may be anywhere, a curriculum, a monitor, a run directory.

Step s draws everything from (seed, s), and the state is saved every few steps, so an interrupted run continues bit for bit (CPU).
Knows nothing about servers: a reward is a `RewardSource`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch

from finpercep.curriculum.blended_reward import LadderReward
from finpercep.curriculum.controller import Decision, Observation
from finpercep.curriculum.metrics import StepMetrics, TimedReward, step_metrics
from finpercep.curriculum.monitor import Verdict
from finpercep.curriculum.optimiser import PolicyOptimiser
from finpercep.curriculum.refresh import Record, Refresher
from finpercep.curriculum.run_directory import RunDirectory
from finpercep.curriculum.settings import FinetuneConfig
from finpercep.curriculum.snapshots import Crops, Snapshots, interval, rung_label, training_crops
from finpercep.curriculum.watch import Watch
from finpercep.errors import ConfigError, Diverged
from finpercep.reward import RewardFn, RewardSource
from finpercep.rl.algorithm import Batch, Trainee, Update
from finpercep.rl.gram import FeatureExtractor
from finpercep.rl.scoring import gathered_rewards
from finpercep.rl.world import ALONE, World, share_of
from finpercep.sr.policy import DrawPair, SRPolicy, sample_images, weights_of

__all__ = ["FinetuneConfig", "StepMetrics", "finetune"]

TYPICAL = 8
"""Photos over which a rung is put on the scale of the one before it."""

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
    refresher: Refresher | None = None,
    world: World = ALONE,
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
        refresher: makes a rung anew for the policy as it is when the rung is reached, RM_0 excepted.
        world: the processes that train together; each calls this, and the main one alone writes and looks at held-out photos.

    Yields:
        The metrics of every step done now.

    Raises:
        ConfigError: the monitor is on and has nothing to look at.
        RewardError: a reward could not be had; the run can be continued.
        Diverged: a loss or a gradient is not finite.
        TrainingError: a run directory of another run.
    """
    reward = LadderReward(source, config.reward, config.rungs)
    controller = config.controller(len(reward.rungs))
    places = share_of(config.batch_size, world)
    world.from_main(lambda: run.claim({**(described or {}), "finetune": config.to_json(), "rungs": list(reward.rungs)}))
    world.share(list(policy.parameters()))
    at_work = _AtWork(Trainee(policy, policy.frozen_copy(), features, world), config, run, held_out)
    first, refreshed = 0, dict[str, Record]()
    if state := run.load_state():
        refreshed = state["refreshed"]
        for name, record in refreshed.items():
            if refresher is None:
                raise ConfigError(f"{name} was refreshed in this run; continue it with --refresh")
            refresher.adopt(name, record)
            reward.renew(reward.rungs.index(name))
        controller.load_state_dict(state["controller"])
        reward.load_state_dict(state["ladder"])
        at_work.load_state_dict(state)
        first = int(state["step"])
    world.from_main(lambda: run.forget_after(first))
    pictures = _pictures(at_work, draw_pair, held_out) if world.rank == 0 else None
    if pictures is not None:
        pictures.forget(first)
    for step in range(first, config.steps):
        if at_work.stopped:
            break
        started = time.perf_counter()
        blend = controller.blend(step)
        news = []
        while (rung := reward.unreached(blend)) is not None:
            if refresher is not None and rung:
                refreshed[reward.rungs[rung]] = record = _refresh(refresher, reward, rung, at_work)
                news.append(record["said"])
            images = shown = None
            if config.match_scales:
                typical = _draw_batch(draw_pair, (config.seed, step, 2), range(TYPICAL), policy.device)
                images = at_work.typical_images(typical)
                shown = typical.lr.repeat(2, 1, 1, 1) if config.show_lr else None
            reward.reach(rung, images, shown)
        in_force = reward.at(blend)
        timed = TimedReward(in_force, shows_lr=config.show_lr)
        rng = np.random.default_rng((config.seed, step))
        batch = _draw_batch(draw_pair, (config.seed, step, 1), places, policy.device, config.batch_size)
        update = at_work.update(step, batch, timed, rng)
        waited = timed.seconds if update.waited is None else update.waited
        lr, norm = at_work.optimiser.lr, at_work.optimiser.take_grad_norm()
        metrics = step_metrics(step, reward.rungs, blend, update, lr, norm, time.perf_counter() - started, waited)
        verdict = at_work.look(step + 1, timed)
        if pictures is not None:
            at_work.picture(pictures, step + 1, rung_label(metrics.rung, metrics.next_rung, metrics.blend), timed, verdict)
        alarm = verdict.reason if verdict is not None and verdict.hacked and config.monitor.on_alarm == "fallback" else None
        seen = Observation(metrics.reward, metrics.reward_std, metrics.grad_norm)
        if decision := controller.observe(step, seen, alarm=alarm):
            at_work.obey(decision)
        said = "; ".join(news) or None
        metrics = dataclasses.replace(metrics, verdict=_plain(verdict), decision=_plain(decision), refreshed=said)
        if world.rank == 0:
            run.append_metrics(dataclasses.asdict(metrics))
        if world.rank == 0 and ((step + 1) % config.save_every == 0 or step + 1 == config.steps or at_work.stopped):
            curriculum = {"controller": controller.state_dict(), "ladder": reward.state_dict(), "refreshed": refreshed}
            run.save_state({"step": step + 1, **curriculum, **at_work.state_dict()})
        yield metrics
    if first < config.steps or not (run.final / "policy.json").exists():
        world.from_main(at_work.deliver)


class _AtWork:
    """The policy with everything that changes it or judges it during a run."""

    def __init__(self, trainee: Trainee, config: FinetuneConfig, run: RunDirectory, held_out: HeldOutPairs | None) -> None:
        self.policy, self.config, self.run, self.stopped = trainee.policy, config, run, False
        self._trainee, self.reference, self.world = trainee, trainee.reference, trainee.world
        self.watch: Watch | None = None
        if config.monitor.every:
            if held_out is None:
                raise ConfigError("the monitor looks at held-out photos, and there are none")
            self.watch = Watch(*held_out, self._trainee.reference, config.monitor)
            if self.world.rank == 0 and not run.has_best():
                run.save_best(self.policy.state_dict())
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
        if self.watch is None or not self.watch.due(steps_done):
            return None
        verdict = self.world.from_main(partial(self._look, self.watch, reward))
        if verdict.hacked and self.config.monitor.on_alarm != "warn":
            self.policy.load_state_dict(self.run.load_best())
            self._begin(self.optimiser.lr)
            self.stopped = self.config.monitor.on_alarm == "stop"
        return verdict

    def _look(self, watch: Watch, reward: RewardFn) -> Verdict:
        with self._delivered():
            verdict = watch.look(self.policy, reward)
            if watch.is_best(verdict):
                self.run.save_best(self.policy.state_dict())
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


def _refresh(refresher: Refresher, reward: LadderReward, rung: int, at_work: _AtWork) -> Record:
    """The main process makes the rung anew, all serve it."""
    name = reward.rungs[rung]
    record = at_work.world.from_main(lambda: refresher.make(name, at_work.policy))
    refresher.adopt(name, record)
    reward.renew(rung)
    return record


def _pictures(at_work: _AtWork, draw_pair: DrawPair, held_out: HeldOutPairs | None) -> Snapshots | None:
    """What takes a run's pictures: of the held-out photos, or of training photos where none are held out."""
    config, watch, run = at_work.config, at_work.watch, at_work.run
    every = interval(config.snapshot_every, config.steps, config.monitor.every)
    if not every:
        return None
    crops = training_crops(draw_pair, config.seed) if held_out is None else Crops(*held_out, held_out=True)
    return Snapshots(run.folder, crops, at_work.reference, every, None if watch is None else watch.start, run.logbook)


def _draw_batch(
    draw_pair: DrawPair, key: tuple[int, ...], places: range, device: torch.device, total: int | None = None
) -> Batch:
    """The photos at ``places`` of the batch of ``key``; each is drawn by a generator of its own."""
    pairs = [draw_pair(np.random.default_rng((*key, place))) for place in places]
    hr, lr = (torch.stack(side).to(device) for side in zip(*pairs, strict=True))
    return Batch(hr, lr, places.start, total)


def _plain(found: Verdict | Decision | None) -> dict[str, Any] | None:
    return None if found is None else dataclasses.asdict(found)
