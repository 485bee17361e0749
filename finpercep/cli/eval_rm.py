"""`finpercep eval-rm`: rungs and baselines on a dataset, against human scores, and against human artefact masks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_synth.schema import RGB8, Split
from finpercep.cli.console import progress_bar, say, show, warn
from finpercep.cli.options import Device, Seed
from finpercep.cli.results_table import results_table
from finpercep.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from finpercep.predictor import Predictor
    from finpercep.report.page import Section, Table
    from finpercep.training.dataset_evaluation import Provenance
    from finpercep.training.iqa_metrics import MetricJudge


def eval_rm(
    data: Annotated[Path | None, typer.Option(help="Dataset folder made by `finpercep synth`.")] = None,
    mos: Annotated[Path | None, typer.Option(help="CSV with human scores: columns image, mos (higher is better).")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of --mos's pictures; default the CSV's, or images/ in it.")] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Pictures with human artefact masks: images/NAME.EXT, masks/NAME.png and perhaps originals/NAME.EXT; "
            "or side by side NAME.EXT, NAME.mask.png, NAME.original.EXT. White is marked."
        ),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Ladder folder; default the packaged one.")] = None,
    rung: Annotated[str | None, typer.Option(help="Measure this rung alone; default every rung of the ladder.")] = None,
    split: Annotated[
        Split, typer.Option(help="Split of the dataset; validation photos chose and calibrated the weights, so they flatter.")
    ] = "test",
    metric: Annotated[
        list[str] | None, typer.Option(help="No-reference metric of pyiqa to stand beside: piqe, clipiqa, musiq, …; repeatable.")
    ] = None,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples behind the intervals of --mos.", min=2)] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with best and worst cases as pictures.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Measure a ladder on photos held out by `synth` (paired map AUROC first), and on what people scored or marked.

    Example: finpercep eval-rm --data runs/data --json
    """
    from data_synth.device import resolve_device
    from finpercep.predictor import load_predictors, packaged_model_folder

    if data is None and mos is None and masks is None:
        raise ConfigError("there is nothing to measure on: give --data, --mos or --masks")
    folder = model or packaged_model_folder()
    rungs = _chosen(load_predictors(folder, resolve_device(device)), rung)
    result = Result()
    metrics = _metrics(metric or [], result, resolve_device(device))
    if data is not None and split != "test":
        warn(f"the {split} split had a part in training: its figures flatter")
    if data is not None:
        _measure_dataset(result, rungs, metrics, data, split, html is not None)
    if mos is not None:
        _measure_opinions(result, rungs, metrics, mos, images, seed, resamples, html is not None)
    if masks is not None:
        _measure_masks(result, rungs, masks, html is not None)
    if as_json:
        print(json.dumps({"model": str(folder), **result.record}, allow_nan=False), flush=True)
    else:
        for title, table in result.tables.items():
            show(results_table(title, table))
    if html is not None:  # last: what was measured is not lost to a path that cannot be written
        _write_page(html, folder, rungs, result)


@dataclass
class Result:
    """What the measurements add up to: the JSON object, tables by title, sections of the page."""

    record: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)


Rungs = Mapping[str, "Predictor"]


def _chosen(predictors: dict[str, Predictor], rung: str | None) -> dict[str, Predictor]:
    if rung is not None and rung not in predictors:
        raise ConfigError(f"unknown --rung {rung!r}; the ladder has {', '.join(predictors)}")
    return {name: predictor for name, predictor in predictors.items() if rung in {None, name}}


def _metrics(names: Sequence[str], result: Result, device: torch.device) -> list[MetricJudge]:
    """The metrics that can be had; a warning, and a line in the record, for each that cannot."""
    from finpercep.errors import WeightsError
    from finpercep.training.iqa_metrics import MetricJudge

    found = []
    for name in names:
        try:
            found.append(MetricJudge(name, device))
        except WeightsError as error:
            warn(str(error))
            result.record.setdefault("left_out", {})[name] = str(error)
    return found


def _measure_dataset(
    result: Result, rungs: Rungs, metrics: Sequence[MetricJudge], data: Path, split: Split, with_pictures: bool
) -> None:
    from data_synth.schema import read_split
    from finpercep.report.evaluation import dataset_sections
    from finpercep.report.evaluation_tables import dataset_table, group_tables
    from finpercep.training.dataset_evaluation import evaluate_judges
    from finpercep.training.judges import Judge, baselines, rung_judges

    samples = read_split(data, split)
    if not len(samples):
        raise ConfigError(f"{data}: split {split!r} is empty; there is nothing to measure on")
    own = rung_judges(rungs.values())
    judges: list[Judge] = [*own, *metrics, *baselines()]
    with _progress(f"{data.name} {split}", len(samples)) as advance:
        reports = evaluate_judges(judges, samples, read_provenance, on_samples=advance)
    by_name = {report.name: report.to_json() for report in reports}
    result.record |= {"data": str(data), "split": split, "samples": len(samples)}
    result.record["rungs"] = {judge.name: by_name.pop(judge.name) for judge in own}
    result.record["baselines"] = by_name
    result.tables[f"{data.name}, {split}: {len(samples)} samples"] = dataset_table(reports)
    result.tables |= {title: table for title, table in group_tables(reports).items() if table.rows}
    if with_pictures:
        finest = next(report for report in reports if report.name == list(rungs)[-1])
        result.sections += dataset_sections(reports, finest, samples, _map_or_none(list(rungs.values())[-1]))


def read_provenance(recipe: str) -> Provenance:
    """Where a sample's defects come from; ``unknown`` when its recipe is not one of ours. Clean samples have no family."""
    from data_synth.recipe import Recipe
    from data_synth.schema import SchemaError
    from finpercep.training.dataset_evaluation import Provenance

    try:
        parsed = Recipe.from_json(recipe)
    except SchemaError:
        return Provenance("unknown", frozenset())
    return Provenance(parsed.origin, frozenset() if parsed.kind == "clean" else parsed.families)


def _measure_opinions(
    result: Result,
    rungs: Rungs,
    metrics: Sequence[MetricJudge],
    mos: Path,
    images: Path | None,
    seed: int,
    resamples: int,
    with_pictures: bool,
) -> None:
    from finpercep.report.evaluation import opinion_sections
    from finpercep.report.evaluation_tables import agreement_table
    from finpercep.training.baselines import laplacian_energy_map
    from finpercep.training.human_scores import ScoreOf, evaluate_opinions, read_opinions
    from finpercep.training.judges import LAPLACIAN

    opinions = read_opinions(mos, images)
    judges: dict[str, ScoreOf] = {name: _score_of(predictor) for name, predictor in rungs.items()}
    judges |= {metric.name: metric.score for metric in metrics}
    judges[LAPLACIAN] = lambda pixels: 1 - float(laplacian_energy_map(pixels).mean())
    with _progress(mos.name, len(opinions)) as advance:
        reports = evaluate_opinions(judges, opinions, seed=seed, replicates=resamples, on_picture=lambda: advance(1))
    by_name = {report.name: report.agreement.to_json() for report in reports}
    result.record["mos"] = {
        "csv": str(mos),
        "images": len(opinions),
        "seed": seed,
        "rungs": {name: {"digest": predictor.digest, **by_name[name]} for name, predictor in rungs.items()},
        "baselines": {name: by_name[name] for name in judges if name not in rungs},
    }
    result.tables[f"{mos.name}: human scores"] = agreement_table(reports)
    if with_pictures:
        result.sections += opinion_sections(reports, reports[len(rungs) - 1], _map_or_none(list(rungs.values())[-1]))


def _measure_masks(result: Result, rungs: Rungs, masks: Path, with_pictures: bool) -> None:
    from finpercep.report.evaluation import mask_sections
    from finpercep.report.evaluation_tables import mask_table
    from finpercep.training.artefact_masks import MapOf, evaluate_masks, find_marked
    from finpercep.training.baselines import laplacian_energy_map
    from finpercep.training.judges import LAPLACIAN

    pictures = find_marked(masks)
    mapping = {name: predictor for name, predictor in rungs.items() if predictor.has_map}
    if not mapping:
        raise ConfigError(f"--masks needs a rung with a map, and {', '.join(rungs)} has none; choose a later --rung")
    judges: dict[str, MapOf] = {name: _map_of(predictor) for name, predictor in mapping.items()}
    judges[LAPLACIAN] = laplacian_energy_map
    with _progress(masks.name, len(pictures)) as advance:
        reports = evaluate_masks(judges, pictures, on_picture=lambda: advance(1))
    by_name = {report.name: report.to_json() for report in reports}
    result.record["masks"] = {
        "folder": str(masks),
        "images": len(pictures),
        "originals": sum(picture.original is not None for picture in pictures),
        "rungs": {name: {"digest": predictor.digest, **by_name[name]} for name, predictor in mapping.items()},
        "baselines": {LAPLACIAN: by_name[LAPLACIAN]},
    }
    result.tables[f"{masks.name}: human artefact masks"] = mask_table(reports)
    if with_pictures:
        result.sections += mask_sections(reports, reports[len(mapping) - 1], _map_or_none(list(mapping.values())[-1]))


def _score_of(predictor: Predictor) -> Callable[[RGB8], float]:
    return lambda pixels: predictor.assess(pixels).score


def _map_of(predictor: Predictor) -> Callable[[RGB8], npt.NDArray[np.float32]]:
    def of(pixels: RGB8) -> npt.NDArray[np.float32]:
        degradation_map = predictor.assess(pixels).map
        if degradation_map is None:
            raise ConfigError(f"{predictor.rung} has no map; choose a later --rung")
        found: npt.NDArray[np.float32] = degradation_map.numpy()
        return found

    return of


def _map_or_none(predictor: Predictor) -> Callable[[RGB8], npt.NDArray[np.float32] | None]:
    return _map_of(predictor) if predictor.has_map else lambda _: None


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    with progress_bar() as bar:
        task = bar.add_task(f"measure {what}", total=total, figures="")
        yield lambda count: bar.advance(task, count)


def _write_page(path: Path, folder: Path, rungs: Rungs, result: Result) -> None:
    from finpercep.report.page import Report, write_report

    digests = ", ".join(f"{name} {predictor.digest[:19]}" for name, predictor in rungs.items())
    summary = f"Ladder {folder.name} ({digests}). Pictures show the finest rung measured; its map is laid over a greyed picture."
    write_report(Report("Reward model evaluation", summary, _key_figures(result.record, list(rungs)), result.sections), path)
    say(f"page written to {path}")


def _key_figures(record: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, str]]:
    from finpercep.report.runs import figure

    figures = []
    name = names[-1]
    if "rungs" in record:
        own = record["rungs"][name]
        if own["map"] is not None:
            figures.append((f"{name}: map AUROC, paired", figure(own["map"]["paired_auroc"])))
            figures.append((f"{name}: mean map on clean photos", figure(own["map"]["clean_mean"])))
        figures.append((f"{name}: order gt > syn > sr", figure(own["ranking"]["triplet"])))
    if "mos" in record:
        figures.append((f"{name}: SRCC with people", figure(record["mos"]["rungs"][name]["srcc"]["value"])))
    if name in record.get("masks", {}).get("rungs", {}):
        own = record["masks"]["rungs"][name]
        kind = "AUROC" if own["paired_auroc"] is None else "paired AUROC"
        figures.append((f"{name}: human masks, {kind}", figure(own["auroc" if kind == "AUROC" else "paired_auroc"])))
    return figures
