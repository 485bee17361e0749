"""The weights that ship: small enough, described by their cards, and good for what they are for."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy import ndimage

from data_synth.artefacts import apply_artefact, artefact_of_severity
from data_synth.degradations import DegradationConfig
from data_synth.images import to_8bit, to_float
from data_synth.photos import sample_photos
from data_synth.sample import swap_region
from finpercep.cli.photo_pairs import PhotoPairs
from finpercep.cli.sr_models import packaged_zoo_folder
from finpercep.predictor import load_predictors, packaged_model_folder
from finpercep.sr.loading import load_policy, packaged_policy_folder
from finpercep.sr.panel import panel_scores
from finpercep.sr.policy import seeded_generators


def size_mb(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def test_size_and_cards():
    assert size_mb(packaged_model_folder()) <= 10
    assert size_mb(packaged_policy_folder() / "unet") <= 10
    assert size_mb(packaged_zoo_folder()) <= 6
    for folder in (packaged_model_folder(), packaged_policy_folder(), packaged_zoo_folder()):
        card = (folder / "README.md").read_text().lower()
        for word in ("licence", "held-out", "command", "limits"):
            assert word in card, (folder, word)


def test_the_cards_figures_are_the_measured_ones():
    """Every number of the SR card's table is the one `train-sr` wrote beside the weights."""
    folder = packaged_policy_folder()
    card = (folder / "README.md").read_text()
    for means in json.loads((folder / "evaluation.json").read_text())["means"].values():
        for name, value in means.items():
            assert (f"{value:.2f}" if name == "psnr" else f"{value:.4f}") in card


def test_the_ladders_figures_are_the_measured_ones():
    """Every row of the ladder card's table is what `eval-rm` wrote beside the weights, which are those it measured."""
    folder = packaged_model_folder()
    card = (folder / "README.md").read_text()
    rungs = json.loads((folder / "evaluation.json").read_text())["rungs"]
    for rung, predictor in load_predictors(folder).items():
        assert rungs[rung]["digest"] == predictor.digest
    for name in ("RM_0", "RM_1", "RM_2", "RM_2 + LR"):
        map_figures, ranking = rungs[name]["map"] or {}, rungs[name]["ranking"]
        cells = [map_figures.get(figure) for figure in ("paired_auroc", "auroc", "l1", "clean_mean")]
        cells += [ranking[figure] for figure in ("triplet", "gt_over_syn", "syn_over_sr")]
        assert f"| {name} | {' | '.join('–' if cell is None else f'{cell:.3f}' for cell in cells)} |" in card


SIDE = 192


def clean_crops():
    """The middle of every sample photograph; the model was not trained on them."""
    for photo in sample_photos():
        pixels = photo.read()
        top, left = ((side - SIDE) // 2 for side in pixels.shape[:2])
        yield np.ascontiguousarray(pixels[top : top + SIDE, left : left + SIDE])


@pytest.fixture(scope="module")
def finest():
    return list(load_predictors(packaged_model_folder()).values())[-1]


@pytest.mark.parametrize("kind", ["checkerboard", "texture", "displaced_detail", "grain"])
def test_a_planted_defect_lowers_the_score_and_lights_the_map(finest, kind):
    """Same pixels, clean against broken.

    Painterly smoothing is left out: the score falls, but the map hardly sees it (the model card says so).
    """
    mask = np.zeros((SIDE, SIDE), dtype=np.float32)
    mask[60:130, 60:130] = 1
    falls, rises = [], []
    for clean in clean_crops():
        changed = apply_artefact(artefact_of_severity(np.random.default_rng(0), kind, 1.0), to_float(clean))
        broken = swap_region(clean, to_8bit(changed), mask)
        before, after = finest.assess(clean), finest.assess(broken)
        falls.append(before.score - after.score)
        rises.append(float((after.map - before.map)[mask > 0].mean()))
    assert np.mean(falls) > 0 and np.mean(rises) > 0.05
    assert np.mean(np.array(falls) > 0) >= 0.75
    assert np.mean(np.array(rises) > 0) >= 0.75


def test_a_seam_is_not_a_defect(finest):
    """Clean swapped for clean, one grey level apart so that there is a seam at all: the map must not light up along it."""
    mask = np.zeros((SIDE, SIDE), dtype=np.float32)
    mask[50:140, 40:120] = 1
    inside = mask > 0
    seam = ndimage.binary_dilation(inside, iterations=4) & ~ndimage.binary_erosion(inside, iterations=4)
    for clean in clean_crops():
        lighter = np.minimum(clean, 254) + 1
        before, after = finest.assess(clean), finest.assess(swap_region(clean, lighter, mask))
        assert float((after.map - before.map).numpy()[seam].mean()) < 0.02
        assert abs(before.score - after.score) < 0.02


def test_clean_photos_raise_no_alarm(finest):
    assert np.mean([finest.assess(photo.read()).mean_degradation for photo in sample_photos()]) <= 0.05


@torch.no_grad()
def test_the_sr_model_beats_bicubic_where_its_card_says_so():
    photos = [photo.read() for photo in sample_photos()]
    hr, lr = PhotoPairs(photos, 128, DegradationConfig.light()).fixed(16, seed=0)
    bicubic = torch.nn.functional.interpolate(lr, scale_factor=4, mode="bicubic", align_corners=False).clamp(0, 1)
    ours = load_policy("tiny").sample(lr, seeded_generators(range(16)))
    theirs, mine = panel_scores(bicubic, hr).means(), panel_scores(ours, hr).means()
    assert mine["fsim"] > theirs["fsim"] and mine["vsi"] > theirs["vsi"] and mine["gmsd"] < theirs["gmsd"]
