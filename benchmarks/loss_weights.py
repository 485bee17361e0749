"""What do the weights, the margins and the map loss of `finpercep train-rm` do?

    python -m benchmarks.loss_weights --data runs/data --test-data runs/kodak-data --photos kodak/ --out runs/losses [--rows …]

RM_2 is grown from the packaged RM_1 under the packaged anchor RM_0, as in training: once with every setting at its default, and
once for each row with that setting changed. All else, the order of the batches included, is the same for one seed. Measured on
the test split of a dataset of other photos. RM_1 has learnt with the defaults, so a row says what a setting does to the finest
rung, not to the trunk. Severity: Spearman's ρ of severity and −score, as in `benchmarks.rm_severity`, on three photos. Runs are
processes of one thread, as many as there are cores; a run that is there is not run again. The row `severity: 1` of the
record is of a term that ranked milder versions of a fault; it gained nothing, and is gone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.ground_truth_sanity import crops
from benchmarks.report import print_table, write_result
from benchmarks.rm_severity import Pictures, correlations
from data_synth.artefacts import ARTEFACT_KINDS
from data_synth.schema import read_split, write_atomically
from finpercep.cli.eval_rm import read_provenance
from finpercep.cli.publishing import copy_folder
from finpercep.cli.train_rm_config import train_config
from finpercep.predictor import Predictor, load_predictor, load_predictors, packaged_model_folder
from finpercep.training.data import spread
from finpercep.training.dataset_evaluation import evaluate_judges
from finpercep.training.judges import rung_judges
from finpercep.training.train import train_ladder

DEFAULTS = "the defaults"
ROWS: Mapping[str, Mapping[str, float]] = {
    DEFAULTS: {},
    "map: L1 alone": {"map_bce": 0.0},
    "map: focal 2": {"map_focal": 2.0},
    "map: none": {"map": 0.0},
    "rank × 3": {"rank": 3.0},
    "rank: none": {"rank": 0.0},
    "margins 0.3": {"margin_sr": 0.3, "margin_gt": 0.3},
    "quality: none": {"quality": 0.0},
    "align: none": {"align": 0.0},
}
"""What is changed in `finpercep.training.objective.LossWeights`."""

SMALL = ("0–1 %", "1–3 %")
"""Areas of which the order is shown by itself."""

FIGURES = {
    "map AUROC, paired": ("map", "paired_auroc"),
    "map L1": ("map", "l1"),
    "map on gt": ("map", "clean_mean"),
    "gt > syn > sr": ("ranking", "triplet"),
    "gt > syn": ("ranking", "gt_over_syn"),
}

SEVERITY_PHOTOS = 3

VALIDATION = 48
"""Validation samples, on which weights are chosen and calibrated."""


def run(
    row: str, seed: int, data: Path, test_data: Path, photos: str, out: Path, steps: int, batch_size: int, test: int
) -> dict[str, Any]:
    """One RM_2, trained and measured; kept in ``out``."""
    folder = out / re.sub(r"\W+", "-", row) / f"seed-{seed}"
    result = folder / "result.json"
    if not result.exists():
        packaged = load_predictors(packaged_model_folder())
        for rung in list(packaged)[:-1]:
            copy_folder(packaged_model_folder() / rung, folder / rung, "config.json")
        models = [predictor.model for predictor in packaged.values()]
        flags = {
            "ladder.map_strides": [model.config.map_stride for model in models[1:]],
            "steps": [1] * (len(models) - 1) + [steps],
            "batch_size": batch_size,
            "lr": 7e-4,
            "precision": "fp32",
            "validate_every": steps,
            "save_every": steps,
            "seed": seed,
            **{f"loss.{name}": value for name, value in ROWS[row].items()},
        }
        config = train_config(None, flags, models[-1].config)
        train, validation = read_split(data, "train"), spread(read_split(data, "validation"), VALIDATION)
        for _ in train_ladder(train, validation, config, folder):
            pass
        finest = load_predictor(folder, list(packaged)[-1])
        (report,) = evaluate_judges(rung_judges([finest])[:1], spread(read_split(test_data, "test"), test), read_provenance)
        severity = severity_order(finest, crops([photos], SEVERITY_PHOTOS))
        write_atomically(result, json.dumps({**report.to_json(), "severity": severity}).encode())
    found: dict[str, Any] = json.loads(result.read_text())
    figures = {name: found[group][key] for name, (group, key) in FIGURES.items()}
    order = {f"order, {area}": found["by"]["area"][area]["ranking"]["triplet"] for area in SMALL}
    return figures | order | {f"ρ severity, {where}": found["severity"][where] for where in ("whole", "patch")}


def severity_order(finest: Predictor, images: Pictures) -> dict[str, float]:
    """Mean over all artefacts, on the whole image and inside a patch."""
    return {
        name: statistics.fmean(correlations(finest, kind, images, whole=whole)["score_mean"] for kind in ARTEFACT_KINDS)
        for name, whole in (("whole", True), ("patch", False))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset of `finpercep synth` to train on")
    parser.add_argument("--test-data", type=Path, required=True, help="another, of other photos, whose test split is measured")
    parser.add_argument("--photos", required=True, help="folder of the other photos, for severity")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", default=",".join(ROWS), help="which of them; the defaults come along")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--test", type=int, default=200, help="samples measured, spread over the split")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, which inherit it
    names = [DEFAULTS, *(row for row in arguments.rows.split(",") if row != DEFAULTS)]
    if unknown := set(names) - set(ROWS):
        parser.error(f"--rows: there are {', '.join(ROWS)}, got {', '.join(sorted(unknown))}")
    where = (arguments.data, arguments.test_data, arguments.photos, arguments.out)
    size = (arguments.steps, arguments.batch_size, arguments.test)
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        tasks = {(row, seed): pool.submit(run, row, seed, *where, *size) for seed in range(arguments.seeds) for row in names}
        runs = {key: task.result() for key, task in tasks.items()}
    rows = {}
    for row in names:
        each = [runs[row, seed] for seed in range(arguments.seeds)]
        rows[row] = {name: [one[name] for one in each] for name in each[0]}
    shown = list(rows[DEFAULTS])
    print_table(["changed", *shown], [[row, *(_told(found[name]) for name in shown)] for row, found in rows.items()])
    about = {
        "steps": arguments.steps,
        "batch_size": arguments.batch_size,
        "trained_on": len(read_split(arguments.data, "train")),
        "tested_on": min(arguments.test, len(read_split(arguments.test_data, "test"))),
    }
    print(write_result("loss_weights", {**about, "rows": rows}))


def _told(values: list[float]) -> str:
    """The mean, and the seeds' standard deviation."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{deviation}"


if __name__ == "__main__":
    main()
