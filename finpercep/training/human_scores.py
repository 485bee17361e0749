"""Pictures with mean opinion scores: reading the CSV, and how well judges agree with it."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_synth.schema import RGB8, decode_rgb
from finpercep.errors import ConfigError, ImageError
from finpercep.training.agreement import MIN_IMAGES, Agreement, agreement

ScoreOf = Callable[[RGB8], float]
"""A picture, uint8 H×W×3 RGB → its score, higher is better."""


@dataclass(frozen=True)
class Opinion:
    """A picture and what people think of it: a mean opinion score, higher is better, on any scale."""

    image: Path
    mos: float


def read_opinions(path: Path, images: Path | None = None) -> list[Opinion]:
    """Read a CSV with the columns ``image`` and ``mos``; further columns are ignored.

    Args:
        path: the CSV, UTF-8.
        images: folder that ``image`` is relative to; by default the CSV's own, or the folder ``images`` in it.

    Raises:
        ConfigError: a missing file, column or picture, or an opinion that is not a number (names the line); or no CSV in UTF-8.
    """
    if not path.is_file():
        raise ConfigError(f"--mos {path}: expected a CSV with the columns image and mos, found no such file")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            missing = [name for name in ("image", "mos") if name not in (reader.fieldnames or [])]
            if missing:
                raise ConfigError(f"{path}: needs the columns image and mos, got {', '.join(reader.fieldnames or []) or 'none'}")
            opinions = [_opinion(row, f"{path}, line {reader.line_num}", path, images) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: expected a CSV in UTF-8, which cannot be read: {error}") from error
    if len(opinions) < MIN_IMAGES:
        raise ConfigError(f"{path}: needs at least {MIN_IMAGES} rated pictures, got {len(opinions)}")
    return opinions


def _opinion(row: Mapping[str, str | None], where: str, path: Path, images: Path | None) -> Opinion:
    name, text = row["image"] or "", row["mos"] or ""
    try:
        mos = float(text)
    except ValueError as error:
        raise ConfigError(f"{where}: mos must be a number, got {text!r}") from error
    if not math.isfinite(mos):
        raise ConfigError(f"{where}: mos must be finite, got {text!r}")
    folders = [images] if images is not None else [path.parent, path.parent / "images"]
    for folder in folders:
        if name and (folder / name).is_file():
            return Opinion(folder / name, mos)
    looked = " or ".join(str(folder) for folder in folders)
    raise ConfigError(f"{where}: no picture {name!r} in {looked}; name their folder with --images")


@dataclass(frozen=True)
class RatedCase:
    """A picture with its opinion, its score, and the opinion that the logistic fit expects (None without a fit)."""

    opinion: Opinion
    score: float
    expected: float | None


@dataclass(frozen=True)
class HumanReport:
    """One judge's agreement with people, and every picture."""

    name: str
    agreement: Agreement
    cases: tuple[RatedCase, ...]


def evaluate_opinions(
    judges: Mapping[str, ScoreOf],
    opinions: Sequence[Opinion],
    *,
    seed: int = 0,
    replicates: int = 1000,
    on_picture: Callable[[], None] = lambda: None,
) -> list[HumanReport]:
    """Score every picture once with every judge, and compare. The same resamples serve all judges.

    Raises:
        ImageError: a picture that cannot be read or scored; names it.
    """
    scores: dict[str, list[float]] = {name: [] for name in judges}
    for opinion in opinions:
        pixels = decode_rgb(opinion.image)
        for name, score_of in judges.items():
            try:
                scores[name].append(score_of(pixels))
            except ImageError as error:
                raise ImageError(f"{opinion.image}: {error}") from error
        on_picture()
    mos = np.array([opinion.mos for opinion in opinions])
    return [_report(name, np.array(own), mos, opinions, seed, replicates) for name, own in scores.items()]


def _report(
    name: str, scores: np.ndarray, mos: np.ndarray, opinions: Sequence[Opinion], seed: int, replicates: int
) -> HumanReport:
    found = agreement(scores, mos, seed=seed, replicates=replicates)
    expected = [None] * len(scores) if found.logistic is None else [float(v) for v in found.logistic(scores)]
    cases = [RatedCase(o, float(s), e) for o, s, e in zip(opinions, scores, expected, strict=True)]
    return HumanReport(name, found, tuple(cases))
