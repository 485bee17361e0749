"""Do the numbers mean what they say? Reliability of score and map on photos that neither training nor calibration saw.

    python -m benchmarks.rm_calibration --data runs/data [--model runs/ladder] [--plot docs/reliability.png]

Where the map says m, M_gt should be m on average: on smooth, middling and textured pixels alike (thirds of the photos by gt's
Laplacian energy). Where the score says s, the pseudo quality should be s. Shown with the calibration of the packaged config and
without it. ECE: expected calibration error, |said − true| weighted by how often it is said.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import print_table, write_result
from data_synth.schema import Row, read_split
from finpercep.predictor import load_predictors, packaged_model_folder
from finpercep.report.figures import Curve, curves
from finpercep.reward_model.config import RewardModelConfig
from finpercep.reward_model.model import FinPercepRM
from finpercep.training.baselines import laplacian_energy_map
from finpercep.training.calibration import ReliabilityBin, calibration_error, reliability
from finpercep.training.data import spread
from finpercep.training.evaluate import Predictions, predict_split

TEXTURES = ("smooth", "middling", "textured")
Curves = dict[str, tuple[ReliabilityBin, ...]]


def curves_of(seen: Predictions, texture: np.ndarray) -> Curves:
    score = np.concatenate([seen.score_gt, seen.score_syn, seen.score_sr])
    quality = np.concatenate([np.ones_like(seen.quality_syn), seen.quality_syn, seen.quality_sr])
    found: Curves = {"score": reliability(score, quality)}
    if seen.map_syn is not None:
        found["map"] = reliability(seen.map_syn, seen.target)
        for number, name in enumerate(TEXTURES):
            found[f"map, {name}"] = reliability(seen.map_syn[texture == number], seen.target[texture == number])
    return found


def textures(rows: list[Row]) -> np.ndarray:
    """0, 1 or 2 for every pixel: which third of all pixels it is in by texture energy of gt."""
    energy = np.stack([laplacian_energy_map(row.gt) for row in rows])
    return np.digitize(energy, np.quantile(energy, [1 / 3, 2 / 3]))


def uncalibrated(model: FinPercepRM) -> RewardModelConfig:
    return dataclasses.replace(model.config, score_scale=1.0, score_shift=0.0, map_scale=1.0, map_shift=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--model", type=Path, default=packaged_model_folder())
    parser.add_argument("--limit", type=int, default=400, help="samples used, spread over the split")
    parser.add_argument("--plot", type=Path, help="write the curves of the finest rung as a picture")
    arguments = parser.parse_args()
    split = read_split(arguments.data, arguments.split)
    rows = list(spread(split, arguments.limit))
    texture = textures(rows)
    figures: dict[str, Any] = {}
    table = []
    shown: dict[str, Curves] = {}
    for rung, predictor in load_predictors(arguments.model).items():
        model = predictor.model
        shown = {"calibrated": curves_of(predict_split(model, rows), texture)}
        model.config = uncalibrated(model)
        shown["as trained"] = curves_of(predict_split(model, rows), texture)
        errors = {how: {name: calibration_error(curve) for name, curve in found.items()} for how, found in shown.items()}
        figures[rung] = {"ece": errors, "curves": {n: [dataclasses.asdict(b) for b in c] for n, c in shown["calibrated"].items()}}
        table += [[rung, name, errors["as trained"][name], errors["calibrated"][name]] for name in errors["calibrated"]]
    print_table(["rung", "number", "ECE as trained", "ECE calibrated"], table)
    if arguments.plot:
        arguments.plot.write_bytes(picture(shown))
    print(write_result("rm_calibration", {"samples": len(rows), "split": arguments.split, "rungs": figures}))


def picture(shown: dict[str, Curves]) -> bytes:
    def line(name: str, curve: tuple[ReliabilityBin, ...], faint: bool = False) -> Curve:
        return Curve(name, [one.predicted for one in curve], [one.actual for one in curve], faint)

    ideal = Curve("", [0, 1], [0, 1], faint=True)
    calibrated, trained = shown["calibrated"], shown["as trained"]
    maps = [line(name, calibrated[f"map, {name}"]) for name in TEXTURES]
    panels = {
        "score: what is true where it says so": [
            line("calibrated", calibrated["score"]),
            line("as trained", trained["score"]),
            ideal,
        ],
        "map": [line("calibrated", calibrated["map"]), line("as trained", trained["map"]), ideal],
        "map by texture of the photo": [*maps, ideal],
    }
    return curves(panels, x_label="said", height=3.4)


if __name__ == "__main__":
    main()
