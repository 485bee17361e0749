"""Does the reward model see faults of families and SR networks that it was never trained on?

    python -m benchmarks.held_out_families --data runs/data --out runs/folds [--steps 500,1300,2800] [--fold gan …]

Leave one group of families out, train a ladder from scratch on what is left, and measure it on test photos (held out as well)
whose faults are all of that group; then the next group. The dataset is one of `finpercep synth`. Beside the rungs, shown the
image alone and with its LR picture, stand the two baselines that have learnt nothing, on the same samples. Run again, finished
folds are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import print_table, write_result
from data_synth.schema import read_split
from finpercep.cli.eval_rm import read_provenance
from finpercep.cli.train_rm_config import train_config
from finpercep.predictor import load_predictors
from finpercep.training.data import Samples, Selected
from finpercep.training.dataset_evaluation import evaluate_judges
from finpercep.training.judges import baselines, rung_judges
from finpercep.training.run_config import claim_config
from finpercep.training.train import train_ladder

FOLDS: Mapping[str, frozenset[str]] = {
    "gan": frozenset({"gan", "perceptual", "texture"}),
    "diffusion": frozenset({"diffusion", "noise", "colour"}),
    "hallucination": frozenset({"hallucination", "geometry"}),
    "perturbed": frozenset({"perturbed", "random", "periodic"}),
    "regression": frozenset({"regression", "smoothing", "sharpening", "compression", "sampling"}),
}
"""Every family of artefacts and of packaged networks is in exactly one; people's own checkpoints and outputs are in none."""


def without(samples: Any, families: frozenset[str]) -> Samples:
    """The samples that have nothing of ``families``."""
    found = [read_provenance(recipe).families for recipe in samples.recipes()]
    return Selected(samples, [i for i, own in enumerate(found) if not own & families])


def only(samples: Any, families: frozenset[str]) -> Samples:
    """The samples whose faults are all of ``families``."""
    found = [read_provenance(recipe).families for recipe in samples.recipes()]
    return Selected(samples, [i for i, own in enumerate(found) if own and own <= families])


def run_fold(name: str, data: Path, out: Path, settings: Path, flags: Mapping[str, Any]) -> dict[str, Any]:
    families = FOLDS[name]
    train, validation, test = (read_split(data, split) for split in ("train", "validation", "test"))
    kept = without(train, families)
    config = train_config(settings, flags)
    claim_config(out / name / "config.toml", {"train": dataclasses.asdict(config), "left_out": sorted(families)})
    for _ in train_ladder(kept, without(validation, families), config, out / name):
        pass
    judges = [*rung_judges(load_predictors(out / name).values()), *baselines()]
    unseen = only(test, families)
    reports = {report.name: report.to_json() for report in evaluate_judges(judges, unseen, read_provenance)}
    return {
        "families": sorted(families),
        "steps": config.steps,
        "crop": config.crop,
        "trained_on": len(kept),
        "tested_on": len(unseen),
        "judges": reports,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset of `finpercep synth`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the folds' ladders")
    parser.add_argument("--config", type=Path, default=Path("configs/rm-cpu.toml"), help="settings of `finpercep train-rm`")
    parser.add_argument("--steps", help="steps of each rung; default the settings'")
    parser.add_argument("--fold", action="append", choices=list(FOLDS), help="only this one; repeatable")
    parser.add_argument("--crop", type=int, help="side of the training crops; default the settings'")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    steps = tuple(int(part) for part in arguments.steps.split(",")) if arguments.steps else None
    flags = {"steps": steps, "crop": arguments.crop, "seed": arguments.seed}
    run = (arguments.data, arguments.out, arguments.config, flags)
    folds = {name: run_fold(name, *run) for name in arguments.fold or FOLDS}
    rows = []
    for name, fold in folds.items():
        for judge, found in fold["judges"].items():
            seen, order = found["map"] or {}, found["ranking"]
            figures = [seen.get("paired_auroc"), seen.get("clean_mean"), order["triplet"], order["gt_over_syn"]]
            rows.append([name, fold["tested_on"], judge, *("–" if figure is None else f"{figure:.3f}" for figure in figures)])
    print_table(["left out", "samples", "judge", "map AUROC, paired", "map on gt", "gt > syn > sr", "gt > syn"], rows)
    print(write_result("held_out_families", {"seed": arguments.seed, "folds": folds}))


if __name__ == "__main__":
    main()
