"""`finpercep score`: score pictures here, or through a server; the same numbers either way."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from data_synth.schema.pixels import PHOTO_SUFFIXES, RGB8, decode_rgb
from finpercep.cli.console import progress_bar, warn
from finpercep.cli.map_files import MapFiles
from finpercep.cli.options import TokenFile, read_token
from finpercep.errors import ConfigError, FinpercepError, RewardChanged, RewardUnavailable

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Row:
    """One picture's line. The names are the command line's contract; numbers are null where there is an ``error``."""

    image: str
    score: float | None
    max_degradation: float | None
    mean_degradation: float | None
    width: int | None
    height: int | None
    rung: str
    digest: str
    error: str | None


class Result(Protocol):
    """What both `finpercep.predictor.Assessment` and `finpercep.client.ImageScore` have."""

    @property
    def score(self) -> float:
        """In [0, 1], higher is better."""
        ...

    @property
    def max_degradation(self) -> float | None:
        """None without a map."""
        ...

    @property
    def mean_degradation(self) -> float | None:
        """None without a map."""
        ...

    @property
    def map(self) -> torch.Tensor | None:
        """float32 H×W in [0, 1], or None."""
        ...


@dataclass(frozen=True)
class Rung:
    """A rung to score with, in this process or on a server."""

    name: str
    digest: str
    has_map: bool
    score: Callable[[Path, RGB8], Result]


def score(
    images: Annotated[list[Path], typer.Argument(help="Pictures to score.", show_default=False)],
    map_to: Annotated[Path | None, typer.Option("--map", help="Folder for the maps; or one picture's name, x.png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON Lines instead of a table.")] = False,
    server: Annotated[str | None, typer.Option(help="Score through the server at this address.")] = None,
    model: Annotated[Path | None, typer.Option(help="Folder of a ladder; the packaged one when absent.")] = None,
    rung: Annotated[str | None, typer.Option(help="Rung of the ladder; its finest when absent.")] = None,
    lr: Annotated[
        Path | None,
        typer.Option(help="What the pictures were made from: one's low-resolution picture, or a folder with the same names."),
    ] = None,
    token_file: TokenFile = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:i].")] = "auto",
) -> None:
    """Score pictures: score in [0, 1], higher is better; degradation in [0, 1], 1 is worst. Exit code 1 if any failed.

    Example: finpercep score photo.png --map maps/
    """
    if server and model:
        raise ConfigError("--model and --server exclude each other: a server has its own model")
    lr_of = _lr_pictures(images, lr) if lr else {}
    maps = MapFiles.plan(images, map_to) if map_to else None
    want_map = maps is not None
    source = _on_server(server, rung, want_map, lr_of, read_token(token_file)) if server else _here(model, rung, device, lr_of)
    with source as chosen:
        if maps and not chosen.has_map:
            raise ConfigError(f"{chosen.name} has no map; leave --map away, or choose a later --rung")
        for warning in maps.warnings if maps else ():
            warn(warning)
        rows = []
        for path in _progress(images):
            rows.append(_score_one(path, chosen, maps))
            if as_json:
                print(json.dumps(dataclasses.asdict(rows[-1])), flush=True)
    if not as_json:
        _print_table(rows, chosen)
    if any(row.error for row in rows):
        raise typer.Exit(1)


def _lr_pictures(images: Sequence[Path], lr: Path) -> dict[Path, Path]:
    """Every picture's LR picture: the file, or the one of the same stem in the folder."""
    if not lr.is_dir():
        if len(images) > 1:
            raise ConfigError(f"--lr must be a folder when there are {len(images)} pictures, got {lr}")
        return {images[0]: lr}
    by_stem: dict[str, Path] = {}
    for path in sorted(path for path in lr.iterdir() if path.suffix.lower() in PHOTO_SUFFIXES):
        if (other := by_stem.setdefault(path.stem, path)) != path:
            raise ConfigError(f"--lr {lr} must hold one picture of a name, found {other.name} and {path.name}")
    if missing := [str(image) for image in images if image.stem not in by_stem]:
        raise ConfigError(f"--lr {lr} must hold a picture of the same name for each, found none for {', '.join(missing[:3])}")
    return {image: by_stem[image.stem] for image in images}


def _score_one(path: Path, rung: Rung, maps: MapFiles | None) -> Row:
    """One picture's row. What is wrong with a picture goes into its row; what is wrong with the server ends the command."""
    size: tuple[int | None, int | None] = (None, None)
    try:
        pixels = decode_rgb(path)
        size = (pixels.shape[1], pixels.shape[0])
        result = rung.score(path, pixels)
        if maps and result.map is not None:
            maps.write(path, pixels, result.map.numpy())
    except (RewardUnavailable, RewardChanged):
        raise
    except FinpercepError as error:
        return Row(str(path), None, None, None, *size, rung.name, rung.digest, str(error))
    return Row(str(path), result.score, result.max_degradation, result.mean_degradation, *size, rung.name, rung.digest, None)


@contextmanager
def _here(model: Path | None, rung: str | None, device: str, lr_of: Mapping[Path, Path]) -> Iterator[Rung]:
    """A rung of a ladder on this machine; ``lr_of``: the LR pictures of those that have one."""
    from data_synth.device import resolve_device
    from finpercep.predictor import load_predictors, packaged_model_folder

    predictors = load_predictors(model or packaged_model_folder(), resolve_device(device))
    name = rung or list(predictors)[-1]
    if name not in predictors:
        raise ConfigError(f"unknown --rung {name!r}; the ladder has {', '.join(predictors)}")
    predictor = predictors[name]
    if lr_of and not predictor.takes_lr:
        raise ConfigError(f"{name} takes no LR picture; leave --lr away, or choose a ladder that was trained with lr_input")

    def assess(path: Path, pixels: RGB8) -> Result:
        return predictor.assess(pixels, lr=decode_rgb(lr_of[path]) if path in lr_of else None)

    yield Rung(name, predictor.digest, predictor.has_map, assess)


@contextmanager
def _on_server(url: str, rung: str | None, want_map: bool, lr_of: Mapping[Path, Path], token: str | None) -> Iterator[Rung]:
    """A rung of a server; ``lr_of``: the LR pictures of those that have one."""
    from finpercep.client import RewardClient

    with RewardClient(url, token=token) as client:
        served = client.model()
        rungs = {one.name: one for one in served.rungs}
        name = rung or served.rung
        if name not in rungs:
            raise ConfigError(f"unknown --rung {name!r}; {url} has {', '.join(rungs)}")
        chosen = rungs[name]
        if lr_of and not chosen.takes_lr:
            raise ConfigError(
                f"{name} takes no LR picture; leave --lr away, or ask a server whose ladder was trained with lr_input"
            )

        def ask(path: Path, _: RGB8) -> Result:
            # the file as it is, not the decoded pixels again: smaller on the way up, and the server decodes with the same code
            return client.score_files([path], rung=name, map=want_map, lr=[lr_of[path]] if path in lr_of else None)[0]

        yield Rung(name, chosen.digest, chosen.has_map, ask)


def _progress(images: Sequence[Path]) -> Iterator[Path]:
    """The pictures, with a bar when there are several."""
    if len(images) == 1:
        yield images[0]
        return
    with progress_bar() as bar:
        yield from bar.track(images, task_id=bar.add_task("score", total=len(images), figures=""))


def _print_table(rows: Sequence[Row], rung: Rung) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    title = f"{rung.name} (digest {rung.digest[:19]}): score, higher is better; degradation, 1 is worst"
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("image", overflow="fold")
    for column in ("size", "score", "max degr.", "mean degr."):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        size = "" if row.width is None else f"{row.width}x{row.height}"
        if row.error:
            table.add_row(f"{escape(row.image)}\n[red]{escape(row.error)}[/red]", size, "failed", "", "")
        else:
            numbers = (row.score, row.max_degradation, row.mean_degradation)
            table.add_row(escape(row.image), size, *("–" if number is None else f"{number:.4f}" for number in numbers))
    Console(highlight=False).print(table)
