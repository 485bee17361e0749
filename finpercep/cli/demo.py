"""`finpercep demo`: the whole story on real photographs, on a laptop CPU, ending in an HTML report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finpercep.cli.console import figures_table, say, show
from finpercep.cli.options import Seed

if TYPE_CHECKING:
    from data_synth.photos import PhotoSplit
    from finpercep.client import RewardClient

VALIDATION, TEST = 0.15, 0.25
"""Shares of the photos held out, by photo."""

START = "tiny@00300"
"""The SR model that is fine-tuned: the packaged one after 300 steps of its training, with grain and false texture to see."""

REWARD_WEIGHT, FINETUNE_LR = 1.0, 1e-4
"""Of fine-tuning, as in ``docs/evidence.md``."""


@dataclass(frozen=True)
class DemoScale:
    """How much of everything the demo does; the steps are the same at every scale.

    Attributes:
        samples: size of the dataset.
        crop: side of its samples in px.
        rung_steps: training steps of each rung from the packaged weights.
        scratch_steps: the same from scratch.
        lr: learning rate of training from the packaged weights; few steps need a small one, or they only disturb.
        batch_size: triplets a training step.
        finetune_steps: fine-tuning steps in all.
        finetune_batch: images a fine-tuning step.
        finetune_crop: their side in px.
        evaluation_crops: held-out crops the panel measures.
    """

    samples: int = 320
    crop: int = 160
    rung_steps: tuple[int, ...] = (40, 60, 120)
    scratch_steps: tuple[int, ...] = (120, 150, 300)
    lr: float = 3e-4
    batch_size: int = 8
    finetune_steps: int = 60
    finetune_batch: int = 4
    finetune_crop: int = 96
    evaluation_crops: int = 24


FAST = DemoScale(
    samples=80,
    rung_steps=(6, 8, 16),
    scratch_steps=(20, 25, 40),
    lr=5e-5,
    finetune_steps=6,
    finetune_batch=2,
    finetune_crop=64,
    evaluation_crops=8,
)


class Stopwatch:
    """Seconds of each phase, in order, and of the whole."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = time.perf_counter()

    def with_rest(self) -> dict[str, float]:
        """The phases so far, and what passed between them."""
        total = time.perf_counter() - self._begun
        return {**self.seconds, "imports, server start, drawing the report": total - sum(self.seconds.values())}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Announce and time a phase."""
        say(name, style="bold")
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


def demo(
    out: Annotated[Path | None, typer.Option(help="Run directory; default runs/demo, or runs/demo-fast.")] = None,
    photos: Annotated[Path | None, typer.Option(help="Folder of your own photos; default the sample photographs.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Smaller numbers, under two minutes.")] = False,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Train the reward model from fresh weights.")] = False,
    seed: Seed = 0,
) -> None:
    """Photos in; dataset, reward model, server, fine-tuned SR model and report out. Run again to resume.

    Example: finpercep demo --fast
    """
    watch = Stopwatch()
    from finpercep.cli.demo_measures import evaluate_policies, score_planted_defect
    from finpercep.cli.demo_report import compose
    from finpercep.cli.server_process import ServerProcess
    from finpercep.client import RewardClient
    from finpercep.predictor import packaged_model_folder
    from finpercep.report.page import write_report

    scale = FAST if fast else DemoScale()
    folder = out or Path("runs/demo-fast" if fast else "runs/demo")
    scratch = from_scratch or not (packaged_model_folder() / "ladder.json").exists()
    with watch.phase("1/6 dataset from photos"):
        split = build(photos, folder / "data", scale, seed)
    with watch.phase(f"2/6 reward-model ladder ({'from scratch' if scratch else 'from the packaged weights'})"):
        train(folder, scale, scratch, seed)
    with ServerProcess(folder / "ladder") as server, RewardClient(server.url) as client:
        with watch.phase(f"3/6 reward server on {server.url}"):
            planted = score_planted_defect(client, split.test, seed)
        with watch.phase("4/6 fine-tuning against the served reward"):
            finetune(client, split, folder / "finetune", scale, seed)
        with watch.phase("5/6 control: the same steps without a reward"):
            finetune(client, split, folder / "control", scale, seed, rewarded=False)
    with watch.phase("6/6 measuring the SR models"):
        control, after = (str(folder / run / "final") for run in ("control", "finetune"))
        policies = {"before": START, "control": control, "after": after}
        evaluation = evaluate_policies(policies, split.test, folder / "ladder", scale.crop, scale.evaluation_crops, seed)
    report = compose(folder, planted, evaluation, watch.with_rest, scratch=scratch)
    write_report(report, folder / "report.html")
    show(figures_table("finpercep demo", report.figures))
    print(folder / "report.html")


def build(photos: Path | None, out: Path, scale: DemoScale, seed: int) -> PhotoSplit:
    """Build the dataset; returns the photos, divided as the dataset divides them."""
    from data_synth.engines.processes import ProcessEngine
    from data_synth.photos import gather
    from data_synth.plan import BuildConfig
    from data_synth.recipe import RecipeConfig
    from finpercep.cli.sr_models import DEFAULT_SOURCES, network_factory
    from finpercep.cli.synth import plan, run_build

    config = BuildConfig(
        count=scale.samples, seed=seed, shard_size=40, validation=VALIDATION, test=TEST, recipe=RecipeConfig(crop=scale.crop)
    )
    sources = gather(["samples" if photos is None else str(photos)])
    planned = plan(sources, out, config, networks=network_factory(DEFAULT_SOURCES, scale=config.recipe.scale))
    run_build(planned, ProcessEngine())
    return planned.split


def train(folder: Path, scale: DemoScale, scratch: bool, seed: int) -> None:
    """Train the ladder into ``folder/ladder``, unless it is already there."""
    import torch

    from finpercep.cli.train_rm import architecture_of, parents_of, run_training
    from finpercep.cli.train_rm_config import train_config

    parents = parents_of(None if scratch else "packaged")
    flags = {
        "steps": scale.scratch_steps if scratch else scale.rung_steps,
        "batch_size": scale.batch_size,
        "lr": 1e-3 if scratch else scale.lr,
        "seed": seed,
    }
    config = train_config(None, flags, architecture_of(parents))
    run_training(folder / "data", folder / "ladder", config, parents, device=torch.device("cpu"))


def finetune(client: RewardClient, split: PhotoSplit, out: Path, scale: DemoScale, seed: int, *, rewarded: bool = True) -> None:
    """Fine-tune `START` on the training photos against the served ladder; or take the same steps without a reward."""
    from data_synth.degradations import DegradationConfig
    from finpercep.cli.finetune_run import NamedPolicy, gram_features, run_finetuning
    from finpercep.cli.photo_pairs import PhotoPairs, load_photos
    from finpercep.curriculum.loop import FinetuneConfig
    from finpercep.rl.refl import ReflConfig

    served = {rung.name: rung.digest for rung in client.model().rungs}
    config = FinetuneConfig(
        algorithm=ReflConfig(reward_weight=REWARD_WEIGHT if rewarded else 0.0),
        steps=scale.finetune_steps,
        rungs=None if rewarded else (next(iter(served)),),
        batch_size=scale.finetune_batch,
        crop=scale.finetune_crop,
        lr=FINETUNE_LR,
        seed=seed,
    )
    pairs = PhotoPairs(load_photos(split.train, config.crop), config.crop, DegradationConfig.light())
    described = {"data": "training photos of the demo", "rewards": {"ladder": {"rungs": served}}}
    run_finetuning(NamedPolicy.load(START), client, pairs, config, out, gram_features("reward", "cpu"), described)
