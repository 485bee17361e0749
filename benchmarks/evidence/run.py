"""One arm with one seed: fine-tune, then measure on held-out photos. Everything it found ends in one JSON file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyiqa
import torch
from safetensors.torch import save

from benchmarks.evidence.arms import ARMS, POLICIES, Scale
from benchmarks.evidence.oracle import Oracle
from data_synth.degradations import DegradationConfig
from data_synth.photos import PhotoSource, find_photos, photo_source
from data_synth.schema import write_atomically
from finpercep.cli.finetune_run import gram_features
from finpercep.cli.photo_pairs import PhotoPairs, load_photos
from finpercep.cli.publishing import LocalPublisher
from finpercep.cli.refresh import LadderRefresher, RefreshConfig, build_known_data
from finpercep.curriculum.loop import finetune
from finpercep.curriculum.run_directory import RunDirectory
from finpercep.curriculum.tripwires import TRIPWIRES
from finpercep.curriculum.watch import HIGHER_BETTER
from finpercep.errors import Diverged
from finpercep.local_reward import LocalSource
from finpercep.predictor import load_predictors, packaged_model_folder
from finpercep.reward import RewardWeights, weights_on
from finpercep.rl.world import ALONE
from finpercep.sr.diffusion import DiffusionPolicy
from finpercep.sr.loading import load_policy
from finpercep.sr.panel import panel_scores
from finpercep.sr.policy import SRPolicy, sample_images
from finpercep.training.metrics_log import read_metrics

CROP = 128
"""Side of the held-out crops in px."""

DRAWN = 0
"""Seed of the held-out crops, of the noise they are sampled from, and of refreshes: the same for all arms and seeds."""

FURTHER = {"vif": True, "cw_ssim": True, "nlpd": False, "piqe": False}
"""Measures beside the monitor's panel, and whether higher is better; PIQE looks at the image alone."""

MEASURES = {**HIGHER_BETTER, **FURTHER}
"""All measures."""

KNOWN = "known"
"""Folder, in the output folder, of samples of the kind that the packaged reward model was trained on."""

CPU = torch.device("cpu")

SHOWN = 8
"""Crops whose images are kept for the page."""

KEPT = ("step", "rung", "next_rung", "reward", "reward_std", "score", "losses", "grad_norm", "decision", "seconds")
"""Of a step's metrics."""


@dataclass(frozen=True)
class Photos:
    """Folders: photos to train on, photos to measure on, and how many crops of these."""

    train: Path
    held_out: Path
    crops: int

    def pairs(self, crop: int) -> PhotoPairs:
        """What training draws from."""
        return PhotoPairs(load_photos(find_photos(self.train), crop), crop, DegradationConfig.light())

    def sources(self) -> list[PhotoSource]:
        """The photos to train on, as `data_synth` takes them."""
        return [photo_source(str(self.train))]

    def unseen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """HR (N, 3, 128, 128) and LR images of the held-out crops."""
        return PhotoPairs(load_photos(find_photos(self.held_out), CROP), CROP, DegradationConfig.light()).fixed(self.crops, DRAWN)


def measure(policy: SRPolicy, photos: Photos) -> tuple[dict[str, Any], torch.Tensor]:
    """The policy on the held-out crops: panel and tripwires of every crop, mean reward by every packaged rung; and its images."""
    hr, lr = photos.unseen()
    images = sample_images(policy, lr, range(len(lr)))
    panel = {
        **panel_scores(images, hr).values,
        **{name: wire(images, hr) for name, wire in TRIPWIRES.items()},
        **_further(images, hr),
    }
    rewards = {}
    source = LocalSource(load_predictors(packaged_model_folder()))
    with torch.no_grad():
        for rung in source.rungs():
            reward = source.reward_fn(rung, weights_on(source, rung, RewardWeights()))
            rewards[rung] = torch.cat([reward(part).reward for part in images.split(8)]).tolist()
    return {"panel": {name: panel[name].tolist() for name in MEASURES}, "rewards": rewards}, images


@torch.no_grad()
def _further(images: torch.Tensor, hr: torch.Tensor) -> dict[str, torch.Tensor]:
    """`FURTHER`, (N,) each."""
    metrics = {name: pyiqa.create_metric(name) for name in FURTHER}
    return {name: metric(images, hr).flatten().double() for name, metric in metrics.items()}


def start_policy(scale: Scale) -> DiffusionPolicy:
    """Where all arms start."""
    return load_policy(POLICIES[scale.policy])


def measure_start(scale: Scale, photos: Photos, out: Path) -> dict[str, Any]:
    """The policy at the start on the held-out crops, measured once."""
    result = out / "start.json"
    if not result.exists():
        found, images = measure(start_policy(scale), photos)
        hr, lr = photos.unseen()
        shown = {"images": images, "hr": hr, "bicubic": bicubic(lr)}
        write_atomically(out / "start.safetensors", save({name: part[:SHOWN].contiguous() for name, part in shown.items()}))
        write_atomically(result, json.dumps(found).encode())
    start: dict[str, Any] = json.loads(result.read_text())
    return start


def refresh_config(scale: Scale) -> RefreshConfig:
    """How the arm that refreshes does it."""
    return RefreshConfig(samples=scale.refresh_samples, steps=scale.refresh_steps, batch_size=8, crop=CROP)


def prepare(scale: Scale, photos: Photos, out: Path) -> None:
    """Build the data set that stands for what the reward model knows, once for all seeds."""
    build_known_data(photos.sources(), out / KNOWN, refresh_config(scale), start_policy(scale).scale, seed=DRAWN)


def bicubic(lr: torch.Tensor) -> torch.Tensor:
    """LR images enlarged four times."""
    return torch.nn.functional.interpolate(lr, scale_factor=4, mode="bicubic", align_corners=False).clamp(0, 1)


def run_arm(name: str, seed: int, scale: Scale, photos: Photos, out: Path, ladder_folder: Path) -> None:
    """Run an arm, unless its result is there; an interrupted run is continued."""
    folder = out / name / f"seed-{seed}"
    result = folder / "result.json"
    if result.exists():
        return
    arm = ARMS[name]
    config = arm.config(scale, seed)
    policy = start_policy(scale)
    pairs, ladder = photos.pairs(config.crop), LocalSource(load_predictors(ladder_folder))
    oracle = Oracle(pairs, config.batch_size) if arm.reward == "oracle" else None
    refresher = _refresher(ladder, ladder_folder, folder, scale, photos, out) if arm.reward == "refreshed" else None
    features = gram_features("reward", CPU).extractor
    rewarded_by = "packaged" if ladder_folder == packaged_model_folder() else ladder_folder.name
    record = {"arm": name, "seed": seed, "policy": scale.policy, "ladder": rewarded_by, "config": config.to_json()}
    try:
        run = RunDirectory(folder)
        for _ in finetune(policy, oracle or ladder, oracle or pairs, features, config, run, refresher=refresher):
            pass
    except Diverged as error:
        write_atomically(result, json.dumps({**record, "diverged": str(error)}).encode())
        return
    found, images = measure(policy, photos)
    record = {
        **record,
        "steps": [{name: step[name] for name in KEPT} for step in read_metrics(run.metrics_path)],
        **found,
    }
    write_atomically(folder / "images.safetensors", save({"images": images[:SHOWN].contiguous()}))
    write_atomically(result, json.dumps(record).encode())


def _refresher(
    ladder: LocalSource, ladder_folder: Path, folder: Path, scale: Scale, photos: Photos, out: Path
) -> LadderRefresher:
    return LadderRefresher(
        folder / "refresh",
        ladder_folder,
        photos.sources(),
        dataclasses.replace(refresh_config(scale), data=str(out / KNOWN)),
        LocalPublisher(ladder, CPU),
        device=CPU,
        world=ALONE,
        seed=DRAWN,  # divides the photos as the known data do, so that their test photos stay unseen
    )
