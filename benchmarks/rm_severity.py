"""Does the score fall, and the map rise, as an artefact gets worse?

    python -m benchmarks.rm_severity --photos photos/ [--model runs/ladder] [--limit 12]

For each artefact and photo: Spearman's ρ of severity (10 levels and none at all) with −score, and with the map's mean. Once with
the artefact on the whole image, once inside a patch of a tenth of it; each for the image alone, and beside the photo's LR picture
(half of them degraded mildly, half blindly). The photos should be ones the model was not trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr

from benchmarks.ground_truth_sanity import LEVELS, SIDE, crops
from benchmarks.report import print_table, write_result
from data_synth.artefacts import ARTEFACT_KINDS, apply_artefact, artefact_of_severity, family_of
from data_synth.degradations import DegradationConfig, degrade, sample_degradation
from data_synth.images import to_8bit
from data_synth.sample import swap_region
from finpercep.predictor import Predictor, load_predictor, packaged_model_folder

PATCH = 80  # px: a tenth of the image
Pictures = list[npt.NDArray[np.float32]]


def series(kind: Any, image: npt.NDArray[np.float32], seed: int, *, whole: bool) -> torch.Tensor:
    """The image at severity 0 and at every level; what severity leaves open is the same on all of them."""
    clean = to_8bit(image)
    mask = np.full((SIDE, SIDE), float(whole), dtype=np.float32)
    top, left = np.random.default_rng(seed).integers(0, SIDE - PATCH, 2)
    mask[top : top + PATCH, left : left + PATCH] = 1
    levels = [artefact_of_severity(np.random.default_rng(seed), kind, float(severity)) for severity in LEVELS]
    pictures = [clean, *(swap_region(clean, to_8bit(apply_artefact(level, image)), mask) for level in levels)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def lr_picture(image: npt.NDArray[np.float32], seed: int) -> torch.Tensor:
    """The photo's LR picture, as a batch of one; of every second photo degraded blindly."""
    settings = DegradationConfig() if seed % 2 else DegradationConfig.light()
    degraded = to_8bit(degrade(image, sample_degradation(np.random.default_rng(seed), settings)))
    return torch.from_numpy(degraded).permute(2, 0, 1)[None].float() / 255


@torch.no_grad()
def correlations(predictor: Predictor, kind: Any, images: Pictures, *, whole: bool, with_lr: bool = False) -> dict[str, float]:
    severities = [0.0, *LEVELS]
    of_score, of_map = [], []
    for number, image in enumerate(images):
        pictures = series(kind, image, number, whole=whole)
        lr = lr_picture(image, number).expand(len(pictures), -1, -1, -1) if with_lr else None
        seen = predictor.score(pictures, lr)
        of_score.append(float(spearmanr(severities, -seen.score.numpy()).statistic))
        if seen.map is not None:
            of_map.append(float(spearmanr(severities, seen.map.mean(dim=(1, 2)).numpy()).statistic))
    figures = {"score_mean": float(np.mean(of_score)), "score_least": min(of_score)}
    return figures | ({"map_mean": float(np.mean(of_map))} if of_map else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", action="append", help="folder of photos; default: the packaged samples")
    parser.add_argument("--model", type=Path, default=packaged_model_folder())
    parser.add_argument("--rung", default=None, help="default: the last")
    parser.add_argument("--limit", type=int, default=12, help="photos used")
    arguments = parser.parse_args()
    predictor = load_predictor(arguments.model, arguments.rung)
    images = crops(arguments.photos or ["samples"], arguments.limit)
    ways = {"whole": (True, False), "patch": (False, False)}
    if predictor.takes_lr:
        ways |= {"whole + LR": (True, True), "patch + LR": (False, True)}
    rows, figures = [], {}
    for kind in ARTEFACT_KINDS:
        found = {
            name: correlations(predictor, kind, images, whole=whole, with_lr=with_lr) for name, (whole, with_lr) in ways.items()
        }
        figures[kind] = found
        rows.append([kind, family_of(kind), *(figure for one in found.values() for figure in one.values())])
    names = ["ρ score", "ρ score, least", *(["ρ map"] if predictor.has_map else [])]
    print_table(["artefact", "family", *(f"{name}, {way}" for way in ways for name in names)], rows)
    about = {"rung": predictor.rung, "digest": predictor.digest, "photos": len(images)}
    print(write_result("rm_severity", about | {"kinds": figures}))


if __name__ == "__main__":
    main()
