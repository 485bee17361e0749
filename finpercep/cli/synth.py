"""`finpercep synth`: photos → data set, with SR models, networks broken on purpose and procedural artefacts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from data_synth.schema import MANIFEST_NAME
from finpercep.cli.console import progress_bar, say, warn
from finpercep.cli.options import Device
from finpercep.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

    from data_synth.build import Build, BuildProgress
    from data_synth.engines import Engine
    from data_synth.photos import PhotoSource
    from data_synth.plan import BuildConfig
    from data_synth.shards import NetworkFactory

PREVIEW_NAME = "preview.png"
_PREVIEW_ROWS = 24
_SR_CACHE_NAME = "sr-cache"
_GALLERY_SIDE = 256


def synth(
    out: Annotated[Path | None, typer.Option(help="Folder of the data set; run again to finish an interrupted build.")] = None,
    photos: Annotated[
        list[str] | None,
        typer.Option(help="Folder, hf:DATASET[:SPLIT[:COLUMN]] or samples (repeatable); default: the packaged sample photos."),
    ] = None,
    count: Annotated[int | None, typer.Option(help="Samples in all splits together; default 1000.")] = None,
    seed: Annotated[int | None, typer.Option(help="With a sample's index, decides everything about it; default 0.")] = None,
    workers: Annotated[int, typer.Option(help="Processes; the data set is the same for any number.")] = 1,
    crop: Annotated[int | None, typer.Option(help="Side of a sample in px, a multiple of 16; default 256.")] = None,
    scale: Annotated[int | None, typer.Option(help="Upscaling factor; default 4.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML with any setting of a build, see configs/; flags win over it.")
    ] = None,
    sr: Annotated[
        list[str] | None,
        typer.Option(
            help="SR model (repeatable): tiny | zoo[:DIR] | policy:DIR | random | spandrel:FILE | diffusers:DIR_OR_ID | "
            "folder:DIR; default: tiny, zoo and random."
        ),
    ] = None,
    no_sr: Annotated[bool, typer.Option("--no-sr", help="No SR model: procedural artefacts alone.")] = False,
    no_perturb: Annotated[bool, typer.Option("--no-perturb", help="Use SR networks only as they are, never broken.")] = False,
    segmenter: Annotated[str | None, typer.Option(help="SAM checkpoint (id or folder) for masks of whole objects.")] = None,
    features: Annotated[
        str | None,
        typer.Option(help="Features of the map: auto | weight-free | dinov3 | timm:MODEL[@FILE]; default weight-free."),
    ] = None,
    quality: Annotated[str | None, typer.Option(help="Pseudo quality: gmsd | lpips | dists | auto; default gmsd.")] = None,
    sr_cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps SR outputs for the next build; default sr-cache beside --out.")
    ] = None,
    no_sr_cache: Annotated[bool, typer.Option("--no-sr-cache", help="Keep no SR outputs.")] = False,
    engine: Annotated[
        Literal["processes", "ray"], typer.Option(help="Processes here, or Ray Data on many machines that share --out.")
    ] = "processes",
    ray_address: Annotated[
        str | None, typer.Option(help="A running Ray cluster; default: the one `ray start` names, else one of its own.")
    ] = None,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs each worker of --engine ray reserves; a share is allowed.")] = 0.0,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first photo that cannot be used.")] = False,
    preview: Annotated[bool, typer.Option("--preview", help=f"Also write {PREVIEW_NAME}, a contact sheet.")] = False,
    explain: Annotated[
        int | None,
        typer.Option(help="Build nothing; replay sample INDEX of --out (same --photos and --sr) as a picture, step by step."),
    ] = None,
    gallery: Annotated[
        Path | None, typer.Option(help="Build nothing; write a picture of every artefact at three severities.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Build a region-swapped data set from photos: clean, super-resolved and mixed images with ground-truth degradation maps.

    Example: finpercep synth --photos photos/ --out data/fgr --count 2000 --seed 0 --workers 2 --preview
    """
    from data_synth.photos import gather
    from finpercep.cli.sr_models import default_sources, network_factory
    from finpercep.cli.synth_config import build_config

    sources = gather(photos or ["samples"])
    if gallery:
        write_gallery(sources, gallery)
        return
    if out is None:
        raise ConfigError("--out is missing: the folder of the data set")
    flags = {
        "count": count,
        "seed": seed,
        "recipe.crop": crop,
        "ground_truth.features": features,
        "quality.metric": quality,
    }
    is_built = explain is not None and (out / MANIFEST_NAME).exists()
    settings = build_config(config, flags, scale=scale, built=out if is_built else None)
    factor = settings.recipe.scale
    names = [] if no_sr else sr or default_sources(factor)
    networks = network_factory(names, scale=factor, perturb=not no_perturb, segmenter=segmenter, device=device)
    cache = None if no_sr_cache else sr_cache or out.absolute().parent / _SR_CACHE_NAME
    makes = _engine(engine, workers, ray_address, gpus_per_worker)
    build = plan(sources, out, settings, networks=networks, sr_cache=cache, strict=strict)
    if explain is not None:
        write_explanation(build, explain)
        return
    run_build(build, makes)
    if preview:
        write_preview(out)
        say(f"contact sheet: {out / PREVIEW_NAME}")


def _engine(name: str, workers: int, ray_address: str | None, gpus_per_worker: float) -> Engine:
    from data_synth.engines.processes import ProcessEngine
    from data_synth.engines.ray_data import RayEngine

    if ray_address and name != "ray":
        raise ConfigError("--ray-address is for --engine ray; add it, or leave the address out")
    if name == "ray":
        return RayEngine(workers, ray_address, gpus_per_worker)
    return ProcessEngine(workers)


def plan(
    sources: Sequence[PhotoSource],
    out: Path,
    config: BuildConfig,
    *,
    networks: NetworkFactory,
    sr_cache: Path | None = None,
    strict: bool = False,
) -> Build:
    """Look through the photos under a progress bar, name those left out (an error when ``strict``), and plan the build."""
    from data_synth.build import plan_build

    with progress_bar() as bar:
        task = bar.add_task("photos", total=sum(len(source.photos) for source in sources), figures="")
        build = plan_build(
            sources,
            out,
            config,
            networks=networks,
            sr_cache=sr_cache,
            strict=strict,
            on_scanned=lambda done: bar.update(task, completed=done),
        )
    for message in build.scan.left_out:
        warn(f"photo left out: {message}")
    for choice in build.choices:
        say(choice)
    return build


def run_build(build: Build, engine: Engine) -> BuildProgress:
    """Build (or finish) a data set under a progress bar, and say what came of it."""
    from data_synth.build import BuildProgress

    total = build.config.count
    latest = BuildProgress(0, total, 0, ())
    with progress_bar() as bar:
        task = bar.add_task("synth", total=total, figures="")
        for latest in build.run(engine):
            bar.update(task, completed=latest.done)
    kept = f", {latest.kept} of them from an earlier run" if latest.kept else ""
    left_out = f"; {len(latest.left_out)} photos left out" if latest.left_out else ""
    say(f"{latest.done} samples in {build.out}{kept}{left_out}")
    return latest


def write_preview(out: Path, rows: int = _PREVIEW_ROWS) -> Path:
    """Write a contact sheet of the first samples of the training split; returns its path."""
    from itertools import islice

    from data_synth.preview import write_contact_sheet
    from data_synth.schema.dataset import read_split

    path = out / PREVIEW_NAME
    write_contact_sheet(path, islice(read_split(out, "train"), rows))
    return path


def write_explanation(build: Build, index: int) -> Path:
    """Replay a sample of ``build`` as a picture of each step, beside the data set's folder; print its recipe."""
    from data_synth.explain import explain_sheet

    recipe, ingredients = build.replay(index)
    path = build.out.with_name(f"{build.out.name}-sample-{index}.png")
    save_picture(explain_sheet(recipe, ingredients, build.config.ground_truth), path)
    print(recipe.to_json())
    say(f"sample {index}, step by step: {path}")
    return path


def write_gallery(sources: Sequence[PhotoSource], path: Path) -> None:
    """Every artefact on the middle of the first photo."""
    from data_synth.gallery import artefact_gallery

    pixels = sources[0].photos[0].read()
    top, left = (max(0, side - _GALLERY_SIDE) // 2 for side in pixels.shape[:2])
    save_picture(artefact_gallery(pixels[top : top + _GALLERY_SIDE, left : left + _GALLERY_SIDE]), path)
    say(f"gallery of artefacts: {path}")


def save_picture(picture: Image, path: Path) -> None:
    """Write a picture in the format its name ends in. Raises `ConfigError` when that is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except ValueError as error:
        raise ConfigError(f"{path}: must end in .png, .jpg or .webp") from error
