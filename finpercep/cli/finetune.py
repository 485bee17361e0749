"""`finpercep finetune`: curriculum fine-tuning of an SR model against a served reward."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finpercep.cli.console import figures_table, progress_bar, say, show
from finpercep.cli.options import Device, TokenFile, read_token
from finpercep.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from data_synth.schema import RGB8
    from finpercep.cli.photo_pairs import PhotoPairs
    from finpercep.curriculum.loop import FinetuneConfig, StepMetrics
    from finpercep.predictor import Predictor
    from finpercep.reward import RewardSource
    from finpercep.rl.gram import FeatureExtractor
    from finpercep.sr.policy import SRPolicy

TYPICAL = 16
"""Crops on which the scales of several rewards are measured."""


def finetune(
    reward: Annotated[
        list[str],
        typer.Option(
            help="URL of a running `finpercep serve` (or several, separated by commas), 'packaged', a ladder's folder, "
            "pyiqa:METRIC, imagereward, or python:MODULE:FUNCTION; repeatable, each with a weight: 0.5*pyiqa:clipiqa."
        ),
    ],
    data: Annotated[Path, typer.Option(help="Folder of photos or a dataset; its photos are degraded on the fly, reproducibly.")],
    out: Annotated[Path, typer.Option(help="Run directory; run again to resume.")],
    algorithm: Annotated[str | None, typer.Option(help="refl (default), rfsr, draft, ddpo, grpo, dpo or nft.")] = None,
    policy: Annotated[str, typer.Option(help="'tiny', or a folder that finetune or train-sr wrote.")] = "tiny",
    steps: Annotated[int | None, typer.Option(help="Updates in all (300), divided evenly over the rungs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Photos a step (4).")] = None,
    crop: Annotated[int | None, typer.Option(help="Side of the HR crop in px, a multiple of 8 (128).")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate (1e-5); the higher, the sooner the reward is hacked.")] = None,
    ema: Annotated[float | None, typer.Option(help="Keep the average of the weights, with this decay (0: none).")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of the algorithm, such as reward_weight=0.2; repeatable.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings; flags win. A run's own config.toml will do.")
    ] = None,
    token_file: TokenFile = None,
    seed: Annotated[int | None, typer.Option(help="Decides everything that is drawn at random (0).")] = None,
    device: Device = "auto",
) -> None:
    """Fine-tune an SR model against a served reward, moving from RM_0 to RM_N.

    Example: finpercep finetune --reward http://127.0.0.1:8000 --policy tiny --data photos/ --out runs/ft --steps 300
    """
    from data_synth.degradations import DegradationConfig
    from data_synth.device import resolve_device
    from finpercep.cli.finetune_config import finetune_config
    from finpercep.cli.photo_pairs import PhotoPairs
    from finpercep.cli.reward_sources import open_rewards

    flags = {"steps": steps, "batch_size": batch_size, "crop": crop, "lr": lr, "ema": ema, "seed": seed}
    resolved = finetune_config(config, algorithm, flags, settings or ())
    pairs = PhotoPairs(training_photos(data, resolved.crop), resolved.crop, DegradationConfig.light())
    where = resolve_device(device)
    with open_rewards(reward, where, read_token(token_file)) as (source, rewards):
        last = run_finetuning(
            policy, source, pairs, resolved, out, described={"data": str(data), "rewards": rewards}, device=where
        )
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
    source: RewardSource,
    pairs: PhotoPairs,
    config: FinetuneConfig,
    out: Path,
    *,
    described: dict[str, Any],
    device: torch.device | str = "cpu",
) -> dict[str, float | str | None] | None:
    """Fine-tune with a progress bar; the Gram term uses the frozen encoder of the packaged ladder's RM_0.

    The run's config names what ``described`` says of data and rewards, and the digests of the policy and of that encoder, so
    that a run is never continued with another of them.

    Returns:
        The metrics of the last step done now, None when the run was complete.
    """
    from finpercep.cli.reward_sources import keep_scales
    from finpercep.cli.sr_models import policy_digest
    from finpercep.curriculum.loop import finetune as finetune_steps
    from finpercep.curriculum.run_directory import RunDirectory
    from finpercep.predictor import load_predictors, packaged_model_folder
    from finpercep.sr.packaged import load_policy, policy_folder
    from finpercep.weighted_reward import WeightedSource

    policy = load_policy(policy_name, device=device)
    extractor = next(iter(load_predictors(packaged_model_folder(), device).values()))
    described = {
        **described,
        "policy": {"name": policy_name, "digest": policy_digest(policy_folder(policy_name))},
        "features": {"rung": extractor.rung, "digest": extractor.digest},
    }
    if isinstance(source, WeightedSource):
        keep_scales(
            source, out / "reward_scales.json", lambda: source.measure(typical_images(policy, pairs, config), config.reward)
        )
    last = None
    with progress_bar() as bar:
        task = bar.add_task("finetune", total=config.steps, figures="")
        steps = finetune_steps(policy, source, pairs, encoder_features(extractor), config, RunDirectory(out), described=described)
        for metrics in steps:
            rung = metrics.rung if metrics.next_rung is None else f"{metrics.rung}→{metrics.next_rung}"
            bar.update(task, completed=metrics.step, figures=f"{rung} reward {metrics.reward:.4f}")
            last = flat(metrics)
        bar.update(task, completed=config.steps)
    return last


def typical_images(policy: SRPolicy, pairs: PhotoPairs, config: FinetuneConfig) -> torch.Tensor:
    """What the scales of several rewards are measured on: a few clean crops, and what the policy makes of their LR images."""
    import torch

    from finpercep.sr.policy import sample_images

    hr, lr = pairs.fixed(TYPICAL, config.seed)
    return torch.cat([hr.to(policy.device), sample_images(policy, lr, range(TYPICAL))])


def flat(metrics: StepMetrics) -> dict[str, float | str | None]:
    """A step's metrics in one dict, losses as ``loss NAME``."""
    record = dataclasses.asdict(metrics)
    losses, figures = record.pop("losses"), record.pop("figures")
    return {**record, **{f"loss {name}": value for name, value in losses.items()}, **figures}


def encoder_features(predictor: Predictor) -> FeatureExtractor:
    """All scales of a rung's frozen encoder."""
    model = predictor.model
    return lambda images: model.features(images)[1:]
