"""What the demo measures on held-out photos: the server on a planted defect, SR models beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_synth.artefacts import ArtefactKind, apply_artefact, artefact_of_severity
from data_synth.degradations import DegradationConfig
from data_synth.ground_truth import GroundTruthConfig, ground_truth_map
from data_synth.photos import Photo
from data_synth.regions import MaskConfig, render_mask, sample_mask
from data_synth.sample import swap_region
from data_synth.schema import RGB8
from finpercep.cli.photo_pairs import PhotoPairs, load_photos
from finpercep.client import ImageScore, RewardClient
from finpercep.local_reward import LocalReward
from finpercep.predictor import load_predictors
from finpercep.reward import RewardWeights
from finpercep.reward_model.model import MIN_SIDE
from finpercep.sr.loading import load_policy
from finpercep.sr.panel import PanelScores, panel_scores
from finpercep.sr.policy import sample_images

PLANTED: tuple[ArtefactKind, ...] = ("texture", "painterly", "checkerboard")
PLANTED_SIDE = 256
"""Side in px of the crop a defect is planted in; smaller where the photo is."""
PLANTED_AREA = 0.06
PLACES = 12
"""Places that are tried; the defect goes where it shows most, since on a plain wall it would not show at all."""


@dataclass(frozen=True)
class Planted:
    """A clean crop of a held-out photo, the same with one defect planted, and what the server said of both."""

    kind: str
    clean: RGB8
    broken: RGB8
    mask: np.ndarray
    of_clean: ImageScore
    of_broken: ImageScore


def score_planted_defect(client: RewardClient, photos: Sequence[Photo], seed: int) -> list[Planted]:
    """Plant one defect of each kind in a held-out photo and ask the server about the photo and its broken copies."""
    photo = load_photos(photos, MIN_SIDE)[0]
    clean = _centre(photo, min(PLANTED_SIDE, *photo.shape[:2]))
    planted = []
    for number, kind in enumerate(PLANTED):
        broken, mask = plant(clean, kind, np.random.default_rng((seed, number)))
        before, after = client.score_images([clean, broken], map=True)
        planted.append(Planted(kind, clean, broken, mask, before, after))
    return planted


def plant(clean: RGB8, kind: ArtefactKind, rng: np.random.Generator) -> tuple[RGB8, np.ndarray]:
    """``clean`` with one defect of full severity planted where it shows most, by M_gt; and the mask, float32 in [0, 1]."""
    pixels = clean.astype(np.float32) / np.float32(255)
    changed = apply_artefact(artefact_of_severity(rng, kind, 1.0), pixels)
    config = MaskConfig(shapes={"ellipse": 1.0}, area=(PLANTED_AREA, PLANTED_AREA), pieces=1)
    masks = [render_mask(sample_mask(rng, config), pixels) for _ in range(PLACES)]
    shown = [float(ground_truth_map(pixels, changed, mask, GroundTruthConfig()).mean()) for mask in masks]
    mask = masks[int(np.argmax(shown))]
    return swap_region(clean, np.rint(changed * 255).astype(np.uint8), mask), mask


def _centre(photo: RGB8, side: int) -> RGB8:
    top, left = ((length - side) // 2 for length in photo.shape[:2])
    return np.ascontiguousarray(photo[top : top + side, left : left + side])


@dataclass(frozen=True)
class Evaluation:
    """SR models and bicubic on held-out crops.

    Attributes:
        lr: (N, 3, h, w) in [0, 1]; ``hr``: their ground truth (N, 3, H, W).
        images: the SR images (N, 3, H, W) of ``bicubic`` and of each model.
        panels: full-reference metrics of each against ``hr``.
        rewards: mean reward R_k of each, and of ``GT``, under the finest rung.
        rung: that rung.
    """

    lr: torch.Tensor
    hr: torch.Tensor
    images: dict[str, torch.Tensor]
    panels: dict[str, PanelScores]
    rewards: dict[str, float]
    rung: str


def evaluate_policies(
    policies: Mapping[str, str], photos: Sequence[Photo], ladder: Path, crop: int, count: int, seed: int
) -> Evaluation:
    """Sample all ``policies`` on the same LR crops with the same noise; measure against ground truth the reward never saw."""
    hr, lr = PhotoPairs(load_photos(photos, crop), crop, DegradationConfig.light()).fixed(count, seed)
    images = {"bicubic": torch.nn.functional.interpolate(lr, scale_factor=4, mode="bicubic", align_corners=False).clamp(0, 1)}
    for name, policy in policies.items():
        images[name] = sample_images(load_policy(policy), lr, range(seed, seed + len(lr)))
    finest = list(load_predictors(ladder).values())[-1]
    reward = LocalReward(finest, RewardWeights())
    with torch.no_grad():
        rewards = {name: float(reward(batch).reward.mean()) for name, batch in {**images, "GT": hr}.items()}
    return Evaluation(lr, hr, images, {name: panel_scores(batch, hr) for name, batch in images.items()}, rewards, finest.rung)
