"""`finpercep train-sr`: pretrain the packaged diffusion SR model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_synth.schema import RGB8, write_atomically
from finpercep.cli.console import figures_table, progress_bar, say, show
from finpercep.cli.options import Device, Seed

if TYPE_CHECKING:
    import torch

    from finpercep.sr.policy import DrawPair
    from finpercep.sr.pretrain import PretrainConfig
    from finpercep.sr.tiny import TinyDiffusionSR

METRICS_NAME = "metrics.jsonl"
EVALUATION_CROP = 128
EVALUATED = ((1, 0.0), (2, 1.0), (4, 0.0), (4, 1.0))
"""(steps, η) the trained model is measured at."""


def train_sr(
    data: Annotated[list[Path], typer.Option(help="Folder of photos (repeatable).")],
    out: Annotated[Path, typer.Option(help="Folder for the model; run again to resume.")],
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 4000,
    batch_size: Annotated[int, typer.Option(help="Crops a step.")] = 8,
    crop: Annotated[int, typer.Option(help="Side of a crop in px, a multiple of 8.")] = 96,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 6e-4,
    snapshot: Annotated[
        list[int] | None, typer.Option(help="Keep the model as it is after this step (repeatable); synth breaks images with it.")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Pretrain the packaged x4 diffusion SR model on photos; a tenth of them is held out and measured at the end.

    Example: finpercep train-sr --data photos/ --out runs/sr
    """
    import torch

    from data_synth.degradations import DegradationConfig
    from data_synth.device import computes_bf16, resolve_device
    from finpercep.cli.photo_pairs import PhotoPairs, digest_of_photos
    from finpercep.cli.training_photos import photos_of_folders
    from finpercep.sr.pretrain import PretrainConfig, measure_residual_std
    from finpercep.sr.tiny import TinyConfig, TinyDiffusionSR, build_scheduler, build_unet
    from finpercep.training.run_config import claim_config

    config = PretrainConfig(steps=steps, batch_size=batch_size, crop=crop, lr=lr, seed=seed, snapshots=tuple(snapshot or ()))
    photos = photos_of_folders(data, crop, EVALUATION_CROP, seed=seed)
    pairs = PhotoPairs(photos.train, crop, DegradationConfig.light())
    pixels = {"count": len(pairs.photos), "digest": digest_of_photos(pairs.photos)}
    folders = [folder.resolve().name for folder in data]
    claim_config(out / "config.toml", {"pretrain": dataclasses.asdict(config), "data": folders, "photos": pixels})
    torch.manual_seed(seed)
    on = resolve_device(device)
    policy = TinyDiffusionSR(build_unet(), build_scheduler(), TinyConfig(), autocast=bool(computes_bf16(on)))
    policy.residual_std = measure_residual_std(policy, pairs, seed)
    policy.to(on)
    say(f"{len(pairs.photos)} photos to train on, residual std {policy.residual_std:.4f}")
    train_policy(policy, pairs, config, out)
    evaluation = evaluate(out, photos.held_out, seed, policy.device)
    write_atomically(out / "evaluation.json", (json.dumps(evaluation, indent=2) + "\n").encode())
    columns = evaluation["means"]
    show(figures_table(f"{evaluation['crops']} held-out crops", [(name, _line(means)) for name, means in columns.items()]))


def train_policy(policy: TinyDiffusionSR, pairs: DrawPair, config: PretrainConfig, out: Path) -> None:
    """Train under a progress bar; ``metrics.jsonl`` has every step once, though an interrupted run takes some again."""
    from finpercep.sr.pretrain import pretrain
    from finpercep.training.metrics_log import append_metrics

    log, average = out / METRICS_NAME, None
    with progress_bar() as bar:
        task = bar.add_task("train-sr", total=config.steps, figures="")
        for progress in pretrain(policy, pairs, config, out):
            step, loss = progress.step, progress.loss
            if average is None:
                _forget_from(log, step)
            average = loss if average is None else 0.98 * average + 0.02 * loss
            bar.update(task, completed=step, figures=f"loss {average:.4f}")
            append_metrics(log, {"kind": "StepReport", "rung": "tiny", "step": step, "losses": {"v": loss}})
        bar.update(task, completed=config.steps)


def _forget_from(log: Path, step: int) -> None:
    """Drop the lines of ``step`` and those after it, which are taken again."""
    from finpercep.training.metrics_log import keep_metrics

    keep_metrics(log, lambda record: record["step"] < step)


def evaluate(folder: Path, photos: Sequence[RGB8], seed: int, device: torch.device) -> dict[str, Any]:
    """The panel of the model in ``folder`` in several step counts, and of bicubic, on one crop of each held-out photo."""
    import torch

    from data_synth.degradations import DegradationConfig
    from data_synth.device import computes_bf16
    from finpercep.cli.photo_pairs import PhotoPairs
    from finpercep.sr.loading import load_policy
    from finpercep.sr.panel import panel_scores
    from finpercep.sr.policy import sample_images
    from finpercep.sr.settings import PolicySettings
    from finpercep.sr.transition import Sampler

    hr, lr = PhotoPairs(photos, EVALUATION_CROP, DegradationConfig.light()).fixed(len(photos), seed)
    bicubic = torch.nn.functional.interpolate(lr, scale_factor=4, mode="bicubic", align_corners=False).clamp(0, 1)
    means = {"bicubic": panel_scores(bicubic, hr).means()}
    policy = load_policy(
        str(folder), device=device, settings=PolicySettings(precision="bfloat16" if computes_bf16(device) else "float32")
    )
    for steps, eta in EVALUATED:
        variant = policy.with_sampler(Sampler(steps, eta=eta))
        images = sample_images(variant, lr, range(len(lr))).cpu()
        means[f"{steps} step(s), η={eta:g}"] = panel_scores(images, hr).means()
    return {"crops": len(photos), "crop_px": EVALUATION_CROP, "seed": seed, "means": means}


def _line(means: dict[str, float]) -> str:
    return "  ".join(f"{name.upper()} {value:.4f}" for name, value in means.items())
