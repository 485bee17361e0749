"""How much reward does a change buy that nobody sees?

    python -m benchmarks.rm_robustness --photos photos/ [--model runs/ladder …] [--crops 24] [--steps 10]

Photos, best ones that no ladder was trained on, are degraded and brought back by the packaged SR model. The SR images are then
changed by gradient ascent on the reward, no channel of a pixel by more than a radius of grey levels (of 255). ``crossed``
is the share of the way from the SR images' reward to the photos' that this gains: at 1 they pass for photos, at 0 the reward
cannot be bought. A policy that is trained through the reward looks for the same changes, but makes them for all images alike.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import print_table, write_result
from data_synth.degradations import DegradationConfig
from data_synth.photos import photo_source
from finpercep.cli.photo_pairs import PhotoPairs
from finpercep.local_reward import LocalSource
from finpercep.predictor import load_predictors, packaged_model_folder
from finpercep.reward import RewardFn, RewardWeights
from finpercep.sr.loading import load_policy
from finpercep.sr.policy import sample_images

CROP = 128
RADII = (1, 2, 4)
"""In grey levels."""

BATCH = 8


def bought(reward: RewardFn, images: torch.Tensor, radius: float, steps: int) -> torch.Tensor:
    """``images`` changed by at most ``radius``, so that their reward is high."""
    changed = images
    for _ in range(steps):
        changed = changed.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(reward(changed).reward.sum(), changed)
        step = changed.detach() + 2.5 * radius / steps * gradient.sign()
        changed = step.clamp(images - radius, images + radius).clamp(0, 1)
    return changed


def rewards(reward: RewardFn, images: torch.Tensor) -> float:
    with torch.no_grad():
        return float(torch.cat([reward(part).reward for part in images.split(BATCH)]).mean())


def measure(model: Path, hr: torch.Tensor, sr: torch.Tensor, steps: int) -> list[dict[str, Any]]:
    """A line for every rung of a ladder."""
    source = LocalSource(load_predictors(model))
    lines = []
    for rung in source.rungs():
        weights = RewardWeights() if source.has_map(rung) else RewardWeights(1.0, 0.0, 0.0)
        reward = source.reward_fn(rung, weights)
        start, photo = rewards(reward, sr), rewards(reward, hr)
        line: dict[str, Any] = {
            "ladder": "packaged" if model == packaged_model_folder() else model.name,
            "rung": rung,
            "reward_photos": photo,
            "reward_sr": start,
        }
        for radius in RADII:
            changed = torch.cat([bought(reward, part, radius / 255, steps) for part in sr.split(BATCH)])
            line[f"crossed_{radius}"] = (rewards(reward, changed) - start) / (photo - start)
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", default="samples", help="a folder, or samples")
    parser.add_argument("--model", type=Path, nargs="*", default=[], help="ladders to stand beside the packaged one.")
    parser.add_argument("--crops", type=int, default=24)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    photos = [photo.read() for photo in photo_source(arguments.photos).photos]
    pairs = PhotoPairs(photos, CROP, DegradationConfig.light())
    hr, lr = pairs.fixed(arguments.crops, 0)
    sr = sample_images(load_policy("tiny"), lr, range(len(lr)))
    lines = [line for model in (packaged_model_folder(), *arguments.model) for line in measure(model, hr, sr, arguments.steps)]
    print_table(tuple(lines[0]), [tuple(line.values()) for line in lines])
    settings = {"crops": arguments.crops, "side": CROP, "steps": arguments.steps}
    print(write_result("rm_robustness", {"settings": settings, "lines": lines}))


if __name__ == "__main__":
    main()
