"""`finpercep train-rm`: train the ladder RM_0 … RM_N on a dataset."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_synth.schema import read_split
from data_synth.schema.manifest import MANIFEST_NAME
from finpercep.cli.console import figures_table, progress_bar, say, show
from finpercep.cli.options import Device, Seed
from finpercep.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from finpercep.training.train import RungReport, StepReport, TrainConfig

METRICS_NAME = "metrics.jsonl"


def train_rm(
    data: Annotated[Path, typer.Option(help="Dataset folder made by `finpercep synth`.")],
    out: Annotated[Path, typer.Option(help="Folder for the ladder; run again to resume.")],
    steps: Annotated[str, typer.Option(help="Steps of each rung, RM_0 first, comma-separated.")] = "300,300,600",
    strides: Annotated[str, typer.Option(help="Map stride of RM_1 … RM_N, comma-separated, falling.")] = "16,4",
    encoder: Annotated[
        str, typer.Option(help="segmentation-models-pytorch encoder; tu-… is any timm backbone.")
    ] = "tu-resnet10t",
    modulation: Annotated[
        str, typer.Option(help="How the map enters the score: literal|complement|residual|statistics.")
    ] = "statistics",
    batch_size: Annotated[int, typer.Option(help="Triplets a step.")] = 16,
    crop: Annotated[int, typer.Option(help="Side of the random crop in px.")] = 128,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    start: Annotated[
        str | None, typer.Option(help="Ladder to start from: a folder, or 'packaged'. Default: from scratch.")
    ] = None,
    pretrained_encoder: Annotated[bool, typer.Option(help="Start the encoder from timm's weights (may download).")] = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train a ladder of reward models, each rung from the one before; prints its figures on the validation photos.

    Example: finpercep train-rm --data runs/data --out runs/ladder
    """
    from data_synth.device import resolve_device
    from finpercep.reward_model.build import with_encoder_statistics
    from finpercep.reward_model.config import RewardModelConfig
    from finpercep.reward_model.ladder import LadderConfig
    from finpercep.training.train import TrainConfig

    base = RewardModelConfig(encoder=encoder, modulation=modulation)  # type: ignore[arg-type]  # the config validates it
    config = TrainConfig(
        ladder=LadderConfig(with_encoder_statistics(base), tuple(_integers("strides", strides))),
        steps=tuple(_integers("steps", steps)),
        batch_size=batch_size,
        crop=crop,
        lr=lr,
        pretrained_encoder=pretrained_encoder,
        seed=seed,
    )
    reports = run_training(data, out, config, start=start, device=resolve_device(device))
    for rung in reports:
        show(figures_table(f"{rung.rung} on validation photos", quality_rows(rung)))
    say(f"ladder written to {out}")


def run_training(data: Path, out: Path, config: TrainConfig, *, start: str | None, device: torch.device) -> list[RungReport]:
    """Train with a progress bar; every step and rung goes into ``out/metrics.jsonl`` too. Returns all rungs."""
    from finpercep.predictor import load_predictors, packaged_model_folder
    from finpercep.training.metrics_log import append_metrics, keep_metrics
    from finpercep.training.run_config import claim_config
    from finpercep.training.train import RungReport, train_ladder

    parents = None
    if start is not None:
        parents = load_predictors(packaged_model_folder() if start == "packaged" else Path(start))
    train, validation = read_split(data, "train"), read_split(data, "validation")
    check_crop(train[0].gt.shape[0], config.crop)
    described = {
        "data": str(data),
        "data_digest": manifest_digest(data),
        "start": {rung: predictor.digest for rung, predictor in (parents or {}).items()},
    }
    claim_config(out / "config.toml", {"train": dataclasses.asdict(config), **described})
    models = {rung: predictor.model for rung, predictor in (parents or {}).items()}
    reports = train_ladder(train, validation, config, out, start=models, device=device)
    log = out / METRICS_NAME
    keep_metrics(log, lambda record: record["kind"] == "StepReport")  # every finished rung is reported again
    finished = []
    for report in _with_bar(reports, config):
        append_metrics(log, {"kind": type(report).__name__, **dataclasses.asdict(report)})
        if isinstance(report, RungReport):
            finished.append(report)
    return finished


def check_crop(stored: int, crop: int) -> None:
    """Require a training crop that the model takes and the samples hold."""
    from finpercep.reward_model.model import MIN_SIDE

    if not MIN_SIDE <= crop <= stored:
        raise ConfigError(f"--crop must lie between {MIN_SIDE} and the dataset's sample size {stored}, got {crop}")


def manifest_digest(data: Path) -> str:
    """What identifies a dataset's content: the digest of its manifest, which names seed, config and shards."""
    return hashlib.sha256((data / MANIFEST_NAME).read_bytes()).hexdigest()[:16]


def _with_bar(reports: Iterator[StepReport | RungReport], config: TrainConfig) -> Iterator[StepReport | RungReport]:
    steps = dict(zip((rung for rung, _ in config.ladder.rungs()), config.steps, strict=True))
    with progress_bar() as bar:
        tasks = {rung: bar.add_task(f"train {rung}", total=count, figures="") for rung, count in steps.items()}
        for report in reports:
            losses = getattr(report, "losses", None)
            if losses is not None:
                figures = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
                bar.update(tasks[report.rung], completed=report.step, figures=figures)  # type: ignore[union-attr]
            else:
                bar.update(tasks[report.rung], completed=steps[report.rung])
            yield report


def quality_rows(report: RungReport) -> list[tuple[str, str]]:
    """The figures of a rung, for a table."""
    quality = report.quality
    if quality is None:
        return [("", "no validation samples")]
    rows = [
        ("triplet order gt > syn > sr", _figure(quality.ranking.triplet)),
        ("gt above syn", _figure(quality.ranking.gt_over_syn)),
    ]
    if quality.map is not None:
        rows = [
            ("map AUROC, paired", _figure(quality.map.paired_auroc)),
            ("map AUROC", _figure(quality.map.auroc)),
            ("map L1", _figure(quality.map.l1)),
            ("mean map on clean photos", _figure(quality.map.clean_mean)),
            *rows,
        ]
    return [*rows, ("triplets", str(quality.ranking.count))]


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _integers(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError as error:
        raise typer.BadParameter(f"--{name} must be integers separated by commas, got {text!r}") from error
