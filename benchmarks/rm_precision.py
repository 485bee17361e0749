"""What do channels_last, bf16 and half precision cost a reward model in accuracy?

    python -m benchmarks.rm_precision --photos photos/ [--model runs/ladder] [--limit 64] [--device cpu|cuda]

Clean crops of real photos and the same crops with a patch of an artefact. Against float32 in the usual layout: largest and
mean difference of the score, largest and mean difference of the map, and how many of the (clean, broken) pairs change their
order. Pairs closer than the largest score difference can change it without anybody seeing which is right.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import print_table, write_result
from data_synth.artefacts import ARTEFACT_KINDS, apply_artefact, artefact_of_severity
from data_synth.images import to_8bit, to_float
from data_synth.photos import gather
from data_synth.regions import MaskConfig, render_mask, sample_mask
from data_synth.sample import swap_region
from finpercep.predictor import load_predictors, packaged_model_folder
from finpercep.reward_model.model import FinPercepRM, RewardOutput

SIDE = 256
Runner = Callable[[torch.Tensor], RewardOutput]


def pairs(photos: list[str], limit: int) -> torch.Tensor:
    """(2N, 3, SIDE, SIDE): clean crops, then the same with one artefact each."""
    found = [photo for source in gather(photos) for photo in source.photos]
    chosen = [found[i] for i in np.linspace(0, len(found) - 1, min(limit, len(found))).astype(int)]
    clean, broken = [], []
    for number, photo in enumerate(chosen):
        pixels = photo.read()
        top, left = ((side - SIDE) // 2 for side in pixels.shape[:2])
        crop = np.ascontiguousarray(pixels[top : top + SIDE, left : left + SIDE])
        rng = np.random.default_rng(number)
        mask = render_mask(sample_mask(rng, MaskConfig()), to_float(crop))
        changed = apply_artefact(artefact_of_severity(rng, ARTEFACT_KINDS[number % len(ARTEFACT_KINDS)], 0.7), to_float(crop))
        clean.append(crop)
        broken.append(swap_region(crop, to_8bit(changed), mask))
    return torch.tensor(np.stack(clean + broken)).permute(0, 3, 1, 2).float() / 255


def runners(model: FinPercepRM, device: str) -> dict[str, Runner]:
    """The ways to run a model that are compared with plain float32."""
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    narrow = {dtype: copy.deepcopy(model).to(dtype) for dtype in (torch.bfloat16, torch.float16)}

    def autocast(images: torch.Tensor) -> RewardOutput:
        with torch.autocast(device, dtype=torch.bfloat16):
            return model(images)

    return {
        "channels_last": lambda images: last(images.contiguous(memory_format=torch.channels_last)),
        "bf16 autocast": autocast,
        "bf16 weights and images": lambda images: narrow[torch.bfloat16](images.bfloat16()),
        "fp16 weights and images": lambda images: narrow[torch.float16](images.half()),
    }


@torch.no_grad()
def in_batches(run: Runner, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    outputs = [run(part) for part in images.split(8)]
    maps = [output.map.float().cpu() for output in outputs if output.map is not None]
    return torch.cat([output.score.float().cpu() for output in outputs]), torch.cat(maps) if maps else None


def departure(run: Runner, images: torch.Tensor, score: torch.Tensor, degradation: torch.Tensor | None) -> dict[str, Any]:
    got, got_map = in_batches(run, images)
    count = len(images) // 2
    flipped = ((score[:count] > score[count:]) != (got[:count] > got[count:])).sum()
    figures: dict[str, Any] = {"score_max": float((got - score).abs().max()), "score_mean": float((got - score).abs().mean())}
    if got_map is not None and degradation is not None:
        difference = (got_map - degradation).abs()
        figures |= {"map_max": float(difference.max()), "map_mean": float(difference.mean())}
    return figures | {"pairs_flipped": int(flipped)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", action="append", help="folder of photos; default: the packaged samples")
    parser.add_argument("--model", type=Path, default=packaged_model_folder())
    parser.add_argument("--limit", type=int, default=64, help="photos used")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    images = pairs(arguments.photos or ["samples"], arguments.limit).to(arguments.device)
    figures: dict[str, dict[str, Any]] = {}
    rows = []
    for rung, predictor in load_predictors(arguments.model, arguments.device).items():
        reference = in_batches(predictor.model, images)
        figures[rung] = {
            name: departure(run, images, *reference) for name, run in runners(predictor.model, arguments.device).items()
        }
        for name, found in figures[rung].items():
            rows.append([rung, name, *(f"{found[key]:.1e}" if key in found else "" for key in KEYS), found["pairs_flipped"]])
    print_table(["rung", "run as", "score, largest", "score, mean", "map, largest", "map, mean", "pairs flipped"], rows)
    print(write_result("rm_precision", {"pairs": len(images) // 2, "device": arguments.device, "rungs": figures}))


KEYS = ("score_max", "score_mean", "map_max", "map_mean")


if __name__ == "__main__":
    main()
