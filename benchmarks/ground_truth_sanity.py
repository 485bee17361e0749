"""Does the ground-truth map mean what it says?

    python -m benchmarks.ground_truth_sanity --photos photos/ [--limit 16]

For each artefact, on real photos: Spearman's ρ between severity (10 levels) and the map's mean, whole image; and, over masked
samples of random severity, Spearman's ρ between the map's energy (its sum) and what the samples lose in VSI and in FSIM, two
full-reference metrics that share nothing with the map's features but the aim. Identical images must give exactly 0.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import numpy.typing as npt
import pyiqa
import torch
from scipy.stats import spearmanr

from benchmarks.report import print_table, write_result
from data_synth.artefacts import ARTEFACT_KINDS, apply_artefact, artefact_of_severity, family_of
from data_synth.ground_truth import GroundTruthConfig, ground_truth_map
from data_synth.images import to_8bit, to_float
from data_synth.photos import gather
from data_synth.regions import MaskConfig, render_mask, sample_mask
from data_synth.sample import swap_region

LEVELS = np.linspace(0.05, 1.0, 10)
SIDE = 256
CONFIG = GroundTruthConfig()


def crops(photos: list[str], limit: int) -> list[npt.NDArray[np.float32]]:
    """The middle of each photo, spread evenly over the sources."""
    found = [photo for source in gather(photos) for photo in source.photos]
    chosen = [found[i] for i in np.linspace(0, len(found) - 1, min(limit, len(found))).astype(int)]
    images = []
    for photo in chosen:
        pixels = photo.read()
        top, left = ((side - SIDE) // 2 for side in pixels.shape[:2])
        images.append(to_float(np.ascontiguousarray(pixels[top : top + SIDE, left : left + SIDE])))
    return images


def severity_correlation(kind: Any, images: list[npt.NDArray[np.float32]]) -> list[float]:
    """ρ of severity and map mean on each image; what severity leaves open is the same on all levels."""
    everywhere = np.ones((SIDE, SIDE), dtype=np.float32)
    values = []
    for number, image in enumerate(images):
        broken = [apply_artefact(artefact_of_severity(np.random.default_rng(number), kind, float(s)), image) for s in LEVELS]
        means = [float(ground_truth_map(image, b, everywhere, CONFIG).mean()) for b in broken]
        values.append(float(spearmanr(LEVELS, means).statistic))
    return values


def energy_correlation(kind: Any, images: list[npt.NDArray[np.float32]], metrics: dict[str, Any], draws: int) -> dict[str, float]:
    """ρ of the map's sum and each metric's loss over masked samples of random severity."""
    energies: list[float] = []
    losses: dict[str, list[float]] = {name: [] for name in metrics}
    for number, image in enumerate(images):
        for draw in range(draws):
            rng = np.random.default_rng((number, draw))
            mask = render_mask(sample_mask(rng, MaskConfig()), image)
            broken = apply_artefact(artefact_of_severity(rng, kind, float(rng.uniform(0.05, 1))), image)
            gt8 = to_8bit(image)
            syn8 = swap_region(gt8, to_8bit(broken), mask)
            energies.append(float(ground_truth_map(image, to_float(syn8), mask, CONFIG).sum()))
            pair = [torch.from_numpy(to_float(picture)).permute(2, 0, 1)[None] for picture in (syn8, gt8)]
            with torch.no_grad():
                for name, metric in metrics.items():
                    losses[name].append(1 - float(metric(*pair)))
    return {name: float(spearmanr(energies, loss).statistic) for name, loss in losses.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", action="append", help="folder of photos; default: the packaged samples")
    parser.add_argument("--limit", type=int, default=16, help="photos used")
    parser.add_argument("--draws", type=int, default=3, help="masked samples a photo and artefact")
    arguments = parser.parse_args()
    images = crops(arguments.photos or ["samples"], arguments.limit)
    identical = max(float(ground_truth_map(image, image, np.ones((SIDE, SIDE), np.float32), CONFIG).max()) for image in images)
    metrics = {name: pyiqa.create_metric(name, device="cpu") for name in ("vsi", "fsim")}
    rows, figures = [], {}
    for kind in ARTEFACT_KINDS:
        of_severity = severity_correlation(kind, images)
        of_energy = energy_correlation(kind, images, metrics, arguments.draws)
        figures[kind] = {"severity_mean": float(np.mean(of_severity)), "severity_least": min(of_severity), **of_energy}
        rows.append([kind, family_of(kind), *figures[kind].values()])
    print_table(["artefact", "family", "ρ severity, mean", "ρ severity, least", "ρ VSI loss", "ρ FSIM loss"], rows)
    print(f"largest map value of identical images: {identical}")
    print(write_result("ground_truth_sanity", {"photos": len(images), "identical_max": identical, "kinds": figures}))


if __name__ == "__main__":
    main()
