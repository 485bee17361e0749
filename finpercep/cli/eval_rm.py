"""`finpercep eval-rm`: map and ranking quality of every rung on a dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from data_synth.schema import Split
from finpercep.cli.console import figures_table, show
from finpercep.cli.options import Device
from finpercep.cli.train_rm import quality_rows


def eval_rm(
    data: Annotated[Path, typer.Option(help="Dataset folder made by `finpercep synth`.")],
    model: Annotated[Path | None, typer.Option(help="Ladder folder; default the packaged one.")] = None,
    split: Annotated[Split, typer.Option(help="Split of the dataset: validation or test.")] = "validation",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    device: Device = "auto",
) -> None:
    """Measure every rung on photos held out by `synth`: paired map AUROC first, then ranking, by defect size.

    Example: finpercep eval-rm --data runs/data --json
    """
    from data_synth.schema import read_split
    from finpercep.cli.device import resolve_device
    from finpercep.errors import ConfigError
    from finpercep.predictor import load_predictors, packaged_model_folder
    from finpercep.training.evaluate import evaluate_rung
    from finpercep.training.train import RungReport

    samples = read_split(data, split)
    if not len(samples):
        raise ConfigError(f"{data}: split {split!r} is empty; there is nothing to measure on")
    reports = []
    for rung, predictor in load_predictors(model or packaged_model_folder(), resolve_device(device)).items():
        reports.append(RungReport(rung, predictor.digest, evaluate_rung(predictor.model, samples)))
    if as_json:
        rungs = {r.rung: {"digest": r.digest, **r.quality.to_json()} for r in reports if r.quality is not None}
        print(json.dumps({"data": str(data), "split": split, "samples": len(samples), "rungs": rungs}))
        return
    for report in reports:
        show(figures_table(f"{report.rung} on {split}", quality_rows(report)))
