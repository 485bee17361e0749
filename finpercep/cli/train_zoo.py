"""`finpercep train-zoo`: train the small SR networks whose faults the data set shows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_synth.schema.pixels import RGB8, write_atomically
from finpercep.cli.console import figures_table, progress_bar, say, show
from finpercep.cli.options import Device, Seed

if TYPE_CHECKING:
    import numpy as np
    import torch

    from data_synth.zoo.members import Member
    from data_synth.zoo.model import ZooModel
    from data_synth.zoo.train import ZooProgress, ZooTrainConfig

METRICS_NAME = "metrics.jsonl"
EVALUATION_CROP = 128
PREVIEW_ROWS = 6
REPORT_EVERY = 20


def train_zoo(
    data: Annotated[list[Path], typer.Option(help="Folder of photos (repeatable).")],
    out: Annotated[Path, typer.Option(help="Folder for the zoo; run again to resume.")],
    scale: Annotated[int, typer.Option(help="Upscaling factor, 2 or 4.")] = 4,
    steps: Annotated[int, typer.Option(help="Optimiser steps of each member.")] = 2000,
    members: Annotated[list[str] | None, typer.Option(help="Member to train (repeatable); all unless given.")] = None,
    snapshots: Annotated[
        str, typer.Option(help="Shares of the steps after which a network is kept, ascending, the last 1.")
    ] = "0.05,0.2,1",
    batch_size: Annotated[int, typer.Option(help="Crops a step.")] = 8,
    crop: Annotated[int, typer.Option(help="Side of an HR crop in px, a multiple of 8.")] = 80,
    preview: Annotated[Path | None, typer.Option(help="PNG file: outputs of every network on held-out crops.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train seven tiny SR networks that differ in what they get wrong; a tenth of the photos is held out and measured.

    Example: finpercep train-zoo --data photos/ --out runs/zoo --preview zoo.png
    """
    from data_synth.device import resolve_device
    from data_synth.zoo.members import choose_members
    from data_synth.zoo.model import load_zoo
    from data_synth.zoo.train import ZooTrainConfig
    from finpercep.cli.photo_pairs import digest_of_photos
    from finpercep.cli.training_photos import photos_of_folders
    from finpercep.training.run_config import claim_config

    chosen = choose_members(members or (), scale)
    config = ZooTrainConfig(steps=steps, batch_size=batch_size, snapshots=parse_snapshots(snapshots), crop=crop, seed=seed)
    where = resolve_device(device)
    photos = photos_of_folders(data, crop, EVALUATION_CROP, seed=seed)
    table = [dataclasses.asdict(member) for member in choose_members((), scale)]
    pixels = {"count": len(photos.train), "digest": digest_of_photos(photos.train)}
    settings = {
        "train": dataclasses.asdict(config),
        "scale": scale,
        "data": [folder.resolve().name for folder in data],
        "photos": pixels,
    }
    claim_config(out / "config.toml", {**settings, "members": table})  # the whole table: a later run may add members to the zoo
    say(f"{len(chosen)} networks, {len(photos.train)} photos to train on, {len(photos.held_out)} held out")
    _train(chosen, photos.train, config, out, where)
    zoo = load_zoo(out, scale, device=where)
    evaluation = evaluate(zoo, photos.held_out, scale, seed)
    write_atomically(out / "evaluation.json", (json.dumps(evaluation, indent=2) + "\n").encode())
    for kind, means in evaluation["means"].items():
        rows = [(name, _line(values)) for name, values in means.items()]
        show(figures_table(f"{evaluation['crops']} held-out crops, {kind} degradation", rows))
    if preview is not None:
        write_atomically(preview, preview_sheet(zoo, photos.held_out, scale, seed))
        say(f"preview: {preview}")


def parse_snapshots(text: str) -> tuple[float, ...]:
    """``0.05,0.2,1`` as numbers.

    Raises:
        ConfigError: something between the commas is not a number.
    """
    from finpercep.errors import ConfigError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--snapshots must be numbers with commas between them, such as 0.05,0.2,1, got {text!r}") from error


def mixed_pairs(
    photos: Sequence[RGB8], crop: int, scale: int, blind_share: float
) -> Callable[[np.random.Generator], tuple[torch.Tensor, torch.Tensor]]:
    """Draws (hr, lr) crops of ``photos``: a share of ``blind_share`` degraded blindly, the others lightly."""
    from finpercep.cli.photo_pairs import PhotoPairs, degradation_config

    light, blind = (PhotoPairs(photos, crop, degradation_config(scale, blind=blind)) for blind in (False, True))
    return lambda rng: (blind if rng.uniform() < blind_share else light)(rng)


def _train(members: Sequence[Member], photos: Sequence[RGB8], config: ZooTrainConfig, out: Path, device: torch.device) -> None:
    """Train one member after the other under a progress bar; every twentieth step goes into ``metrics.jsonl``."""
    from data_synth.zoo.train import train_member
    from finpercep.training.metrics_log import append_metrics

    log = out / METRICS_NAME
    with progress_bar() as bar:
        for member in members:
            total = config.steps_of(member)
            task = bar.add_task(member.name, total=total, figures="")
            pairs = mixed_pairs(photos, config.crop, member.generator.scale, member.blind_share)
            resumed = True
            for progress in train_member(member, pairs, config, out, device):
                if resumed:
                    _forget_from(log, progress)
                    resumed = False
                if progress.step % REPORT_EVERY == 0:
                    append_metrics(log, {"kind": "ZooProgress", **dataclasses.asdict(progress)})
                figures = "  ".join(f"{name} {value:.4f}" for name, value in progress.terms.items())
                bar.update(task, completed=progress.step, figures=figures)
            bar.update(task, completed=total)


def _forget_from(log: Path, progress: ZooProgress) -> None:
    """Drop the lines of the steps that a resumed run, whose first step is ``progress``, takes again."""
    from finpercep.training.metrics_log import keep_metrics

    keep_metrics(log, lambda record: record["member"] != progress.member or record["step"] < progress.step)


def evaluate(zoo: Mapping[str, ZooModel], photos: Sequence[RGB8], scale: int, seed: int) -> dict[str, Any]:
    """The panel of every network and of bicubic, on one crop of each held-out photo, degraded lightly and blindly."""
    from finpercep.sr.panel import panel_scores

    means: dict[str, dict[str, dict[str, float]]] = {}
    for kind, blind in (("light", False), ("blind", True)):
        hr, lr = held_out_pairs(photos, scale, blind=blind, seed=seed)
        means[kind] = {name: panel_scores(images, hr).means() for name, images in outputs(zoo, lr, scale).items()}
    return {"crops": len(photos), "crop_px": EVALUATION_CROP, "scale": scale, "seed": seed, "means": means}


def preview_sheet(zoo: Mapping[str, ZooModel], photos: Sequence[RGB8], scale: int, seed: int) -> bytes:
    """A PNG of bicubic, every network and the photo on a few lightly degraded held-out crops."""
    from data_synth.zoo.preview import encode_sheet

    spread = [photos[index * len(photos) // PREVIEW_ROWS] for index in range(min(PREVIEW_ROWS, len(photos)))]
    hr, lr = held_out_pairs(spread, scale, blind=False, seed=seed)
    return encode_sheet({**outputs(zoo, lr, scale), "photo": hr})


def held_out_pairs(photos: Sequence[RGB8], scale: int, *, blind: bool, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One crop of each photo, decided by ``seed``: hr N×3×128×128 and its lr."""
    from finpercep.cli.photo_pairs import PhotoPairs, degradation_config

    return PhotoPairs(photos, EVALUATION_CROP, degradation_config(scale, blind=blind)).fixed(len(photos), seed)


def outputs(zoo: Mapping[str, ZooModel], lr: torch.Tensor, scale: int) -> dict[str, torch.Tensor]:
    """Bicubic and every network on ``lr``: name → N×3×H×W in [0, 1]."""
    import torch

    from data_synth.sr_models.protocol import Crop, SRCall

    calls = [SRCall(0, {}, Crop("held-out", 0, 0, EVALUATION_CROP))] * len(lr)
    bicubic = torch.nn.functional.interpolate(lr, scale_factor=scale, mode="bicubic", align_corners=False).clamp(0, 1)
    return {"bicubic": bicubic, **{name: model(lr, calls) for name, model in zoo.items()}}


def _line(means: Mapping[str, float]) -> str:
    return "  ".join(f"{name.upper()} {value:.4f}" for name, value in means.items())
