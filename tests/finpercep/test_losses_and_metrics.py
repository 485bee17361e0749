"""Losses against hand-computed values; metrics against closed forms."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from finpercep.training.learning_rate import warmup_cosine
from finpercep.training.losses import align_loss, map_loss, margins, quality_loss, ranking_loss
from finpercep.training.map_tally import MapTally, count_image
from finpercep.training.metrics import VISIBLE, map_quality, ranking_quality


def test_map_loss_is_l1_where_the_map_is_known():
    logits = torch.tensor([[[0.0, 100.0]]])
    target = torch.tensor([[[0.25, 0.0]]])
    everywhere, left = torch.ones(1, 1, 2), torch.tensor([[[1.0, 0.0]]])
    assert map_loss(logits, target, everywhere, bce_weight=0).item() == pytest.approx((0.25 + 1.0) / 2)
    assert map_loss(logits, target, left, bce_weight=0).item() == pytest.approx(0.25)


def test_map_loss_with_cross_entropy():
    logits, target = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    assert map_loss(logits, target, torch.ones(1, 2, 2), bce_weight=2.0).item() == pytest.approx(0.5 + 2 * np.log(2))


def test_focal_cross_entropy_weighs_what_is_missed():
    """At M = 0.5 the quality focal loss is 0.5^γ · BCE; where the map is right it is 0."""
    logits, target, everywhere = torch.zeros(1, 1, 1), torch.ones(1, 1, 1), torch.ones(1, 1, 1)
    got = map_loss(logits, target, everywhere, bce_weight=1.0, focal=2.0).item()
    assert got == pytest.approx(0.5 + 0.25 * np.log(2))
    assert map_loss(logits, target * 0.5, everywhere, bce_weight=1.0, focal=2.0).item() == 0


def test_ranking_loss_is_the_papers():
    gt, syn, sr = torch.tensor([0.9]), torch.tensor([0.85]), torch.tensor([0.8])
    m = torch.tensor([0.1])
    assert ranking_loss(gt, syn, sr, margin_sr=m, margin_gt=m).item() == pytest.approx(0.05 + 0.05, abs=1e-6)
    assert ranking_loss(gt, torch.tensor([0.7]), torch.tensor([0.5]), margin_sr=m, margin_gt=m).item() == 0.0


def test_margins_shrink_with_the_measured_difference():
    better, worse = torch.tensor([1.0, 1.0, 0.5]), torch.tensor([0.2, 0.96, 0.5])
    assert torch.allclose(margins(better, worse, 0.1), torch.tensor([0.1, 0.02, 0.0]), atol=1e-6)


def test_align_and_quality_loss():
    assert align_loss(torch.tensor([0.9, 0.5]), torch.tensor([0.8, 0.7])).item() == pytest.approx(0.15)
    assert quality_loss(torch.tensor([0.9]), torch.tensor([0.4])).item() == pytest.approx(0.5)


def test_learning_rate_warms_up_and_ends_at_a_hundredth():
    rates = [warmup_cosine(step, 100, 1.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[4] == pytest.approx(1.0)
    assert all(a >= b for a, b in pairwise(rates[5:]))
    assert 0.01 <= rates[-1] < 0.012


def quality_of(seen, clean, target):
    """Figures of maps (N, H, W) of syn and of gt, and of M_gt."""
    tally = MapTally()
    for one, original, known in zip(seen, clean, target, strict=True):
        tally.add(count_image(one, known > VISIBLE, original_map=original, target=known))
    return map_quality(tally.figures())


def test_map_quality_is_scikit_learns_on_all_pixels_at_once():
    """Where the map lives near 0, and where many values are equal."""
    rng = np.random.default_rng(5)
    target = np.where(rng.uniform(size=(6, 24, 24)) < 0.1, rng.uniform(size=(6, 24, 24)), 0)
    visible = target > VISIBLE
    for scale, levels in ((0.01, 10**6), (1.0, 20)):
        seen, clean = (np.round(scale * rng.uniform(size=target.shape) ** 2 * levels) / levels for _ in range(2))
        seen = np.minimum(seen * np.where(visible, 2, 1), 1)
        quality = quality_of(seen, clean, target)
        changed, labels = seen[visible], np.repeat([True, False], visible.sum())
        assert quality.paired_auroc == pytest.approx(roc_auc_score(labels, [*changed, *clean[visible]]), abs=5e-4)
        assert quality.auroc == pytest.approx(roc_auc_score(visible.ravel(), seen.ravel()), abs=5e-4)
        assert quality.auprc == pytest.approx(average_precision_score(visible.ravel(), seen.ravel()), abs=2e-3)
        assert quality.prevalence == pytest.approx(visible.mean())
        assert quality.l1 == pytest.approx(np.abs(seen - target).mean())
        assert quality.clean_mean == pytest.approx(clean.mean())


def test_a_map_of_texture_gains_nothing_in_paired_auroc():
    """The defect sits on texture; a map that only follows texture has a high plain AUROC and is blind in the paired one."""
    rng = np.random.default_rng(0)
    texture = np.zeros((1, 40, 40))
    texture[:, :20] = rng.uniform(0.5, 1, (1, 20, 40))
    target = np.zeros((1, 40, 40))
    target[:, :20] = 1.0
    quality = quality_of(texture, texture, target)
    assert quality.auroc == 1.0
    assert quality.paired_auroc == 0.5
    seeing = quality_of(target, np.zeros_like(target), target)
    assert (seeing.paired_auroc, seeing.l1, seeing.clean_mean) == (1.0, 0.0, 0.0)


def test_map_quality_without_a_defect_is_undefined_not_a_number():
    quality = quality_of(np.zeros((1, 4, 4)), np.zeros((1, 4, 4)), np.zeros((1, 4, 4)))
    assert (quality.paired_auroc, quality.auroc, quality.auprc) == (None, None, None)


def test_ranking_counts_ties_as_wrong_and_skips_samples_without_defect():
    gt, syn, sr = np.array([0.9, 0.9, 0.1]), np.array([0.8, 0.9, 0.2]), np.array([0.7, 0.5, 0.3])
    quality = ranking_quality(gt, syn, sr, np.array([True, True, False]))
    assert (quality.gt_over_syn, quality.syn_over_sr, quality.triplet, quality.count) == (0.5, 1.0, 0.5, 2)
    assert ranking_quality(gt, syn, sr, np.zeros(3, dtype=bool)).triplet is None
