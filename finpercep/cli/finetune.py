"""`finpercep finetune`: curriculum fine-tuning of an SR model against a served reward."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finpercep.cli.console import figures_table, progress_bar, say, show
from finpercep.cli.options import Device, Seed, TokenFile, read_token
from finpercep.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from data_synth.schema import RGB8
    from finpercep.cli.photo_pairs import PhotoPairs
    from finpercep.client import RewardClient
    from finpercep.curriculum.loop import FinetuneConfig, StepMetrics
    from finpercep.predictor import Predictor
    from finpercep.rl.gram import FeatureExtractor

SERVER_PATIENCE = 300.0
"""Seconds during which a server that was lost may come back without the run noticing."""


def finetune(
    reward: Annotated[
        str, typer.Option(help="URL of a running `finpercep serve`, or several of one ladder, separated by commas.")
    ],
    data: Annotated[Path, typer.Option(help="Folder of photos or a dataset; its photos are degraded on the fly, reproducibly.")],
    out: Annotated[Path, typer.Option(help="Run directory; run again to resume.")],
    algorithm: Annotated[str, typer.Option(help="Fine-tuning algorithm: refl.")] = "refl",
    policy: Annotated[str, typer.Option(help="'tiny', or a folder that finetune or train-sr wrote.")] = "tiny",
    steps: Annotated[int, typer.Option(help="Optimiser steps in all, divided evenly over the rungs.")] = 300,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 4,
    crop: Annotated[int, typer.Option(help="Side of the HR crop in px, a multiple of 8.")] = 128,
    lr: Annotated[float, typer.Option(help="Learning rate; the higher, the sooner the reward is hacked.")] = 1e-5,
    reward_weight: Annotated[float, typer.Option(help="Weight of the reward beside the supervised loss; likewise.")] = 0.2,
    gram_weight: Annotated[float, typer.Option(help="Weight of the Gram term that holds the model to its reference.")] = 100.0,
    token_file: TokenFile = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Fine-tune an SR model against a served reward, moving from RM_0 to RM_N.

    Example: finpercep finetune --reward http://127.0.0.1:8000 --policy tiny --data photos/ --out runs/ft --steps 300
    """
    from data_synth.degradations import DegradationConfig
    from data_synth.device import resolve_device
    from finpercep.cli.photo_pairs import PhotoPairs
    from finpercep.client import RewardClient
    from finpercep.curriculum.loop import FinetuneConfig
    from finpercep.rl.algorithms import algorithm_config

    config = FinetuneConfig(
        algorithm=algorithm_config(algorithm, {"reward_weight": reward_weight, "gram_weight": gram_weight}),
        steps=steps,
        batch_size=batch_size,
        crop=crop,
        lr=lr,
        seed=seed,
    )
    pairs = PhotoPairs(training_photos(data, crop), crop, DegradationConfig.light())
    urls = [url.strip() for url in reward.split(",")]
    with RewardClient(urls, patience=SERVER_PATIENCE, timeout=2 * SERVER_PATIENCE, token=read_token(token_file)) as client:
        last = run_finetuning(policy, client, pairs, config, out, data=str(data), device=resolve_device(device))
    if last is not None:
        rows = [(name, f"{value:.4f}" if isinstance(value, float) else str(value)) for name, value in last.items()]
        show(figures_table("last step", rows))
    say(f"fine-tuned model written to {out / 'final'}")


def training_photos(data: Path, min_side: int) -> list[RGB8]:
    """The photos of a folder; or, of a dataset, the clean images of its training split."""
    from data_synth.photos import find_photos
    from data_synth.schema import read_split
    from data_synth.schema.manifest import MANIFEST_NAME
    from finpercep.cli.photo_pairs import load_photos

    if not (data / MANIFEST_NAME).exists():
        return load_photos(find_photos(data), min_side)
    photos = [row.gt for row in read_split(data, "train")]
    if min(photos[0].shape[:2]) < min_side:
        raise ConfigError(f"{data}: --crop must be at most the dataset's sample size {photos[0].shape[0]}, got {min_side}")
    return photos


def run_finetuning(
    policy_name: str,
    client: RewardClient,
    pairs: PhotoPairs,
    config: FinetuneConfig,
    out: Path,
    *,
    data: str,
    device: torch.device | str = "cpu",
) -> dict[str, float | str | None] | None:
    """Fine-tune with a progress bar; the Gram term uses the frozen encoder of the packaged ladder's RM_0.

    The run's config names the digests of the served rungs, of the policy and of that encoder, so that a run is never continued
    with another of them.

    Returns:
        The metrics of the last step done now, None when the run was complete.
    """
    from finpercep.cli.sr_models import policy_digest
    from finpercep.curriculum.loop import finetune as finetune_steps
    from finpercep.curriculum.run_directory import RunDirectory
    from finpercep.predictor import load_predictors, packaged_model_folder
    from finpercep.sr.packaged import load_policy, policy_folder

    policy = load_policy(policy_name, device=device)
    extractor = next(iter(load_predictors(packaged_model_folder(), device).values()))
    described = {
        "data": data,
        "policy": {"name": policy_name, "digest": policy_digest(policy_folder(policy_name))},
        "features": {"rung": extractor.rung, "digest": extractor.digest},
        "served": {rung.name: rung.digest for rung in client.model().rungs},
    }
    last = None
    with progress_bar() as bar:
        task = bar.add_task("finetune", total=config.steps, figures="")
        steps = finetune_steps(policy, client, pairs, encoder_features(extractor), config, RunDirectory(out), described=described)
        for metrics in steps:
            rung = metrics.rung if metrics.next_rung is None else f"{metrics.rung}→{metrics.next_rung}"
            bar.update(task, completed=metrics.step, figures=f"{rung} reward {metrics.reward:.4f}")
            last = flat(metrics)
        bar.update(task, completed=config.steps)
    return last


def flat(metrics: StepMetrics) -> dict[str, float | str | None]:
    """A step's metrics in one dict, losses as ``loss NAME``."""
    record = dataclasses.asdict(metrics)
    losses, figures = record.pop("losses"), record.pop("figures")
    return {**record, **{f"loss {name}": value for name, value in losses.items()}, **figures}


def encoder_features(predictor: Predictor) -> FeatureExtractor:
    """All scales of a rung's frozen encoder."""
    model = predictor.model
    return lambda images: model.features(images)[1:]
