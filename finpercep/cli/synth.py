"""`finpercep synth`: photos → data set, with the packaged diffusion SR model and procedural artefacts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finpercep.cli.console import progress_bar, say, warn

if TYPE_CHECKING:
    from data_synth.build import BuildConfig, BuildProgress
    from data_synth.photos import Photo
    from data_synth.sr_models import SRFactory

PREVIEW_NAME = "preview.png"
_PREVIEW_ROWS = 24


def synth(
    out: Annotated[Path, typer.Option(help="Folder of the data set; run again to finish an interrupted build.")],
    photos: Annotated[
        list[Path] | None, typer.Option(help="Folder of photos (repeatable); default: packaged sample photos.")
    ] = None,
    count: Annotated[int, typer.Option(help="Samples in all splits together.")] = 1000,
    seed: Annotated[int, typer.Option(help="With a sample's index, decides everything about it.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes; the data set is the same for any number.")] = 1,
    crop: Annotated[int, typer.Option(help="Side of a sample in px, a multiple of 16.")] = 160,
    policy: Annotated[Path | None, typer.Option(help="SR model folder; default: the packaged one.")] = None,
    sr: Annotated[bool, typer.Option("--sr/--no-sr", help="Use the diffusion SR model, or procedural artefacts alone.")] = True,
    preview: Annotated[bool, typer.Option("--preview", help=f"Also write {PREVIEW_NAME}, a contact sheet.")] = False,
) -> None:
    """Build a region-swapped data set from photos: clean, super-resolved and mixed images with ground-truth degradation maps.

    Example: finpercep synth --photos photos/ --out data/fgr --count 2000 --seed 0 --workers 2 --preview
    """
    from data_synth.build import BuildConfig
    from data_synth.recipe import RecipeConfig

    sources = gather_photos(photos or [])
    config = BuildConfig(count=count, seed=seed, recipe=RecipeConfig(crop=crop))
    run_build(sources, out, config, workers=workers, policy=policy, sr=sr)
    if preview:
        write_preview(out)
        say(f"contact sheet: {out / PREVIEW_NAME}")


def gather_photos(folders: list[Path]) -> list[Photo]:
    """Photos of all folders, or the packaged samples when there is none; names stay unique across folders."""
    from dataclasses import replace

    from data_synth.photos import find_photos, sample_photos

    if not folders:
        return sample_photos()
    if len(folders) == 1:
        return find_photos(folders[0])
    return [
        replace(photo, source_id=f"{number}:{photo.source_id}")
        for number, folder in enumerate(folders)
        for photo in find_photos(folder)
    ]


def run_build(
    photos: Sequence[Photo], out: Path, config: BuildConfig, *, workers: int = 1, policy: Path | None = None, sr: bool = True
) -> BuildProgress:
    """Build (or finish) a data set under a progress bar, name the photos left out, and say what came of it.

    ``policy`` is the SR model's folder, the packaged one when None; ``sr=False`` leaves SR models out.
    """
    from data_synth.build import BuildProgress, build_dataset
    from data_synth.sr_models import no_models

    factory = _sr_factory(policy) if sr else no_models
    latest = BuildProgress(0, config.count, 0, ())
    warned: set[str] = set()
    with progress_bar() as bar:
        task = bar.add_task("synth", total=config.count, figures="")
        for latest in build_dataset(photos, out, config, sr_factory=factory, workers=workers):
            bar.update(task, completed=latest.done)
            for message in latest.left_out:
                if message not in warned:
                    warned.add(message)
                    warn(f"photo left out: {message}")
    kept = f", {latest.kept} of them from an earlier run" if latest.kept else ""
    left_out = f"; {len(warned)} photos left out" if warned else ""
    say(f"{latest.done} samples in {out}{kept}{left_out}")
    return latest


def _sr_factory(policy: Path | None) -> SRFactory:
    from finpercep.cli.sr_models import diffusion_sr_factory

    if policy is None:
        from finpercep.sr.packaged import packaged_policy_folder

        policy = packaged_policy_folder()
    return diffusion_sr_factory(policy)


def write_preview(out: Path, rows: int = _PREVIEW_ROWS) -> Path:
    """Write a contact sheet of the first samples of the training split; returns its path."""
    from itertools import islice

    from data_synth.preview import write_contact_sheet
    from data_synth.schema.dataset import read_split

    path = out / PREVIEW_NAME
    write_contact_sheet(path, islice(read_split(out, "train"), rows))
    return path
