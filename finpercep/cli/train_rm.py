"""`finpercep train-rm`: train the ladder RM_0 … RM_N on a dataset."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_synth.schema import Row, read_split
from data_synth.schema.manifest import MANIFEST_NAME, read_manifest
from finpercep.cli.console import figures_table, progress_bar, say, show, warn
from finpercep.cli.options import Device
from finpercep.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    import torch

    from finpercep.predictor import Predictor
    from finpercep.reward_model.config import RewardModelConfig
    from finpercep.training.data import Samples
    from finpercep.training.train import RungReport, StepReport, TrainConfig

LOADER_THREADS = 2


def train_rm(
    data: Annotated[Path, typer.Option(help="Dataset folder made by `finpercep synth`.")],
    out: Annotated[Path, typer.Option(help="Folder for the ladder; run again to resume.")],
    config: Annotated[
        Path | None, typer.Option(help="TOML with any setting of a training run, see configs/; flags win over it.")
    ] = None,
    steps: Annotated[str | None, typer.Option(help="Steps of each rung, comma-separated; default 300,300,600.")] = None,
    strides: Annotated[str | None, typer.Option(help="Map stride of RM_1 … RM_N, falling; default 16,4.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="segmentation-models-pytorch encoder; tu-… is any timm backbone; default tu-resnet10t.")
    ] = None,
    modulation: Annotated[
        str | None,
        typer.Option(help="How the map enters the score: literal|complement|residual (default)|statistics|readout|attended."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Triplets a step, of all processes together; default 16.")] = None,
    crop: Annotated[int | None, typer.Option(help="Side of the random crop in px; default 128.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; default 0.001.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto|fp32|bf16|fp16 (GPU only); default auto.")] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of the averaged weights; 0: none; default 0.999.")] = None,
    clip: Annotated[float | None, typer.Option(help="Largest norm of the gradient; default 1.")] = None,
    validate_every: Annotated[int | None, typer.Option(help="Steps between looks at validation photos; default 100.")] = None,
    validate_samples: Annotated[int | None, typer.Option(help="Samples of a look, at most; default 64.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="End a rung after so many steps without a better figure; 0: never; default 0.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="Ladder to start from, a folder or 'packaged', built as there unless set otherwise. Default: from scratch."
        ),
    ] = None,
    pretrained_encoder: Annotated[
        bool | None, typer.Option("--pretrained-encoder", help="Start the encoder from timm's weights (may download).")
    ] = None,
    encoder_weights: Annotated[
        Path | None, typer.Option(help="File with the encoder's weights in timm's format, where they cannot be downloaded.")
    ] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between run states; default 100.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides everything that is drawn at random; default 0.")] = None,
    workers: Annotated[int, typer.Option(help="Threads that draw batches; they change only the speed.", min=1)] = LOADER_THREADS,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Train nothing: say what would be done, try a step, estimate the time.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Train a ladder of reward models, each rung from the one before; prints its figures on the validation photos.

    Several GPUs: accelerate launch --multi_gpu -m finpercep train-rm … Several processes on CPUs: torchrun, the same way.

    Example: finpercep train-rm --data runs/data --out runs/ladder
    """
    from data_synth.device import resolve_device
    from finpercep.cli.train_rm_config import train_config

    flags = {
        "steps": _integers("steps", steps),
        "ladder.map_strides": _integers("strides", strides),
        "ladder.base.encoder": encoder,
        "ladder.base.modulation": modulation,
        "batch_size": batch_size,
        "crop": crop,
        "lr": lr,
        "precision": precision,
        "ema": ema,
        "clip": clip,
        "validate_every": validate_every,
        "validate_samples": validate_samples,
        "patience": patience,
        "pretrained_encoder": str(encoder_weights) if encoder_weights else pretrained_encoder,
        "save_every": save_every,
        "seed": seed,
    }
    parents = parents_of(start)
    where = resolve_device(device)
    settings = train_config(config, flags, architecture_of(parents), where)
    if dry_run:
        from finpercep.cli.train_rm_rehearsal import show_rehearsal

        show_rehearsal(data, settings, parents, device=where, threads=workers)
        return
    for rung in run_training(data, out, settings, parents, device=where, threads=workers):
        show(figures_table(f"{rung.rung} on validation photos", quality_rows(rung)))


def run_training(
    data: Path,
    out: Path,
    config: TrainConfig,
    parents: Mapping[str, Predictor],
    *,
    device: torch.device,
    threads: int = LOADER_THREADS,
) -> list[RungReport]:
    """Train with a progress bar; every step and rung goes into the run's record too (`run_log`).

    Args:
        data: the dataset.
        out: becomes the ladder.
        config: settings.
        parents: rungs to start from, by name; none from scratch (`parents_of`).
        device: to train on.
        threads: draw batches.

    Returns:
        All rungs; none where this process is not the main one of several.
    """
    from finpercep.batch_share import share_of
    from finpercep.training.processes import make_accelerator
    from finpercep.training.provenance import Session, add_session
    from finpercep.training.run_config import claim_config
    from finpercep.training.train import train_ladder

    accelerator = make_accelerator(device, config.precision)
    share_of(config.batch_size, rank=accelerator.process_index, size=accelerator.num_processes)  # before the folder is claimed
    train, validation = open_splits(data, config)
    described = {
        "data": str(data),
        "data_digest": manifest_digest(data),
        "start": {rung: predictor.digest for rung, predictor in parents.items()},
    }
    if accelerator.is_main_process:
        claim_config(out / "config.toml", {"train": _identity(config), **described})
        add_session(out, Session.now(sys.argv[1:], str(device), accelerator.num_processes))
    accelerator.wait_for_everyone()
    models = {rung: predictor.model for rung, predictor in parents.items()}
    reports = train_ladder(train, validation, config, out, start=models, accelerator=accelerator, threads=threads)
    finished = _recorded(reports, config, out) if accelerator.is_main_process else _followed(reports)
    accelerator.end_training()
    return finished


def _identity(config: TrainConfig) -> dict[str, Any]:
    """All settings; a file of weights by its content, wherever it lies."""
    plain = dataclasses.asdict(config)
    if isinstance(config.pretrained_encoder, str):
        try:
            content = Path(config.pretrained_encoder).read_bytes()
        except OSError as error:
            raise WeightsError(f"encoder weights {config.pretrained_encoder} cannot be read: {error}") from error
        plain["pretrained_encoder"] = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return plain


def open_splits(data: Path, config: TrainConfig) -> tuple[Samples, Samples]:
    """Training and validation samples, perhaps none of these. Raises `SchemaError`, or for too large a crop `ConfigError`."""
    train = read_split(data, "train")
    check_crop(train[0], config.crop)
    if any(shard.split == "validation" for shard in read_manifest(data).shards):
        return train, read_split(data, "validation")
    warn(f"{data} has no validation split: each rung's last weights are stored, unmeasured and uncalibrated")
    return train, []


def parents_of(start: str | None) -> dict[str, Predictor]:
    """The rungs to start from; none from scratch."""
    from finpercep.predictor import load_predictors, packaged_model_folder

    if start is None:
        return {}
    return load_predictors(packaged_model_folder() if start == "packaged" else Path(start))


def architecture_of(parents: Mapping[str, Predictor]) -> RewardModelConfig | None:
    """That of the finest of ``parents``."""
    return list(parents.values())[-1].model.config if parents else None


def check_crop(sample: Row, crop: int) -> None:
    """Require a training crop that the model takes, the samples hold, and the LR pictures can be cut with."""
    from finpercep.reward_model.model import MIN_SIDE
    from finpercep.training.data import scale_of

    stored, scale = min(sample.gt.shape[:2]), scale_of(sample)
    if not MIN_SIDE <= crop <= stored or crop % scale:
        raise ConfigError(
            f"--crop must lie between {MIN_SIDE} and the dataset's sample size {stored}, and be a multiple of its scale {scale}, "
            f"got {crop}"
        )


def manifest_digest(data: Path) -> str:
    """What identifies a dataset's content: the digest of its manifest, which names seed, config and shards."""
    return hashlib.sha256((data / MANIFEST_NAME).read_bytes()).hexdigest()[:16]


Reports = Iterator["StepReport | RungReport"]


def _recorded(reports: Reports, config: TrainConfig, out: Path) -> list[RungReport]:
    from finpercep.training.run_log import RunLog
    from finpercep.training.train import RungReport

    log, finished = RunLog(out), []
    for report in _with_bar(reports, config):
        log.add(report)
        if isinstance(report, RungReport):
            finished.append(report)
    log.close()
    say(f"ladder written to {out}")
    return finished


def _followed(reports: Reports) -> list[RungReport]:
    """One of the processes that train along: it writes and says nothing."""
    for _ in reports:
        pass
    return []


def _with_bar(reports: Reports, config: TrainConfig) -> Reports:
    from finpercep.training.train import StepReport

    with progress_bar() as bar:
        steps = config.rung_steps()
        tasks = {rung: bar.add_task(f"train {rung}", total=count, figures="") for rung, count in steps.items()}
        best = ""
        for report in reports:
            task = tasks[report.rung]
            if isinstance(report, StepReport):
                if report.validation is not None and report.validation.figure is not None:
                    best = f" validation {report.validation.figure:.3f}"
                figures = " ".join(f"{name} {value:.3f}" for name, value in report.losses.items())
                bar.update(task, completed=report.step, figures=figures + best)
            else:  # with fewer steps than planned after an early stop
                bar.update(task, completed=report.steps or steps[report.rung], total=report.steps or steps[report.rung])
                best = ""
            yield report


def quality_rows(report: RungReport) -> list[tuple[str, str]]:
    """The figures of a rung, for a table."""
    chosen = [("stored: weights after step", f"{report.step} of {report.steps}")] if report.step is not None else []
    quality = report.quality
    if quality is None:
        return [*chosen, ("", "no validation samples")]
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
    return [*rows, ("triplets", str(quality.ranking.count)), *chosen]


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _integers(name: str, text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",") if part]
    except ValueError as error:
        raise typer.BadParameter(f"--{name} must be integers separated by commas, got {text!r}") from error
