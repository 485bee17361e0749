"""The fine-tuning loop: an SR policy, a reward that may be anywhere, a curriculum, a monitor, a run directory.

Step s draws everything from (seed, s), and the state is saved every few steps, so an interrupted run continues bit for bit (CPU).
Knows nothing about servers: a reward is a `RewardSource`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from finpercep.batch_share import share_of
from finpercep.curriculum.at_work import HeldOutPairs, PolicyAtWork
from finpercep.curriculum.climb import Climb
from finpercep.curriculum.controller import Decision, Observation
from finpercep.curriculum.metrics import StepMetrics, TimedReward, step_metrics
from finpercep.curriculum.monitor import Verdict
from finpercep.curriculum.refresh import Refresher
from finpercep.curriculum.run_directory import RunDirectory
from finpercep.curriculum.settings import FinetuneConfig
from finpercep.curriculum.snapshots import Crops, Snapshots, interval, rung_label, training_crops
from finpercep.reward import RewardSource
from finpercep.rl.algorithm import Batch, Trainee
from finpercep.rl.gram import FeatureExtractor
from finpercep.rl.world import ALONE, World
from finpercep.sr.policy import DrawPair, SRPolicy

__all__ = ["FinetuneConfig", "StepMetrics", "finetune"]

TYPICAL = 8
"""Photos over which a rung is put on the scale of the one before it."""


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
    prepare: Callable[[], None] = lambda: None,
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
        prepare: called in every process before rewards are asked for, once the run is known to be the one that is there.
        world: the processes that train together; each calls this, and the main one alone writes and looks at held-out photos.

    Yields:
        The metrics of every step done now.

    Raises:
        ConfigError: the monitor is on and has nothing to look at, or the rungs or the batch cannot be had as configured.
        RewardError: a reward could not be had; the run can be continued.
        Diverged: a loss or a gradient is not finite.
        TrainingError: a run directory of another run.
    """
    climb = Climb(source, config, refresher)
    places = share_of(config.batch_size, rank=world.rank, size=world.size)
    world.share(list(policy.parameters()))
    at_work = PolicyAtWork(Trainee(policy, policy.frozen_copy(), features, world), config, run, held_out)
    world.from_main(lambda: run.claim({**(described or {}), "finetune": config.to_json(), "rungs": list(climb.rungs)}))
    prepare()
    first = 0
    if state := run.load_state():
        climb.load_state_dict(state)
        at_work.load_state_dict(state)
        first = int(state["step"])
    else:
        world.from_main(at_work.keep_start)
    world.from_main(lambda: run.forget_after(first))
    pictures = _pictures(at_work, draw_pair, held_out) if world.rank == 0 else None
    if pictures is not None:
        pictures.forget(first)
    for step in range(first, config.steps):
        if at_work.stopped:
            break
        started = time.perf_counter()
        blend = climb.blend(step)
        typical = partial(_draw_batch, draw_pair, (config.seed, step, 2), range(TYPICAL), policy.device)
        news = climb.reach(blend, at_work, typical)
        reward = TimedReward(climb.reward(blend), shows_lr=config.show_lr)
        batch = _draw_batch(draw_pair, (config.seed, step, 1), places, policy.device, config.batch_size)
        update = at_work.update(step, batch, reward, np.random.default_rng((config.seed, step)))
        waited = reward.seconds if update.waited is None else update.waited
        lr, norm = at_work.optimiser.lr, at_work.optimiser.take_grad_norm()
        metrics = step_metrics(step, climb.rungs, blend, update, lr, norm, time.perf_counter() - started, waited)
        verdict = at_work.look(step + 1, reward)
        if pictures is not None:
            at_work.picture(pictures, step + 1, rung_label(metrics.rung, metrics.next_rung, metrics.blend), reward, verdict)
        alarm = verdict.reason if verdict is not None and verdict.hacked and config.monitor.on_alarm == "fallback" else None
        seen = Observation(metrics.reward, metrics.reward_std, metrics.grad_norm)
        if decision := climb.observe(step, seen, alarm=alarm):
            at_work.obey(decision)
        said = "; ".join(news) or None
        metrics = dataclasses.replace(metrics, verdict=_plain(verdict), decision=_plain(decision), refreshed=said)
        if world.rank == 0:
            run.append_metrics(dataclasses.asdict(metrics))
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps or at_work.stopped:
                at_work.save_state({"step": step + 1, **climb.state_dict()})
        yield metrics
    if first < config.steps or not (run.final / "policy.json").exists():
        world.from_main(at_work.deliver)


def _pictures(at_work: PolicyAtWork, draw_pair: DrawPair, held_out: HeldOutPairs | None) -> Snapshots | None:
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
