"""Evaluation against truth: closed forms, scikit-learn and scipy, values by hand, and maps whose figures are known beforehand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from data_synth.schema import Row
from finpercep.errors import ConfigError
from finpercep.training.agreement import Logistic, agreement, bootstrap, fit_logistic, interval, kendall, pearson, spearman
from finpercep.training.baselines import consistency_map, laplacian_energy_map
from finpercep.training.dataset_evaluation import Case, Provenance, area_label, best_and_worst, evaluate_judges, ranking_figures
from finpercep.training.judges import BaselineJudge, Judgement, baselines
from finpercep.training.map_tally import (
    BINS,
    MapTally,
    bins_of,
    count_image,
    counted_auroc,
    counted_average_precision,
    lower_edge,
    pixel_figures,
)
from finpercep.training.metrics import VISIBLE
from tests.fakes import photo


def counts(values):
    return np.bincount(bins_of(np.asarray(values, dtype=np.float64)), minlength=BINS).astype(np.int64)


def test_auroc_and_average_precision_by_hand():
    """Positives 0.9, 0.4; negatives 0.6, 0.4, 0.1: pairs won 3 + 1.5 of 6; precision 1/1 at 0.9 and 2/4 at 0.4."""
    positive, negative = counts([0.9, 0.4]), counts([0.6, 0.4, 0.1])
    assert counted_auroc(positive, negative) == pytest.approx(4.5 / 6)
    assert counted_average_precision(positive, negative) == pytest.approx(0.5 * 1 + 0.5 * 2 / 4)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 50]), st.sampled_from([2, 7, 10**6]))
def test_counted_figures_are_scikit_learns_on_the_same_bins(seed, scale, levels):
    """Also with heavy ties (few levels), and with maps that live close to 0."""
    rng = np.random.default_rng(seed)
    labels = rng.uniform(size=300) < 0.3
    labels[:2] = (True, False)
    values = np.round(rng.uniform(size=300) ** scale * levels) / levels
    bins = bins_of(values)
    positive, negative = counts(values[labels]), counts(values[~labels])
    assert counted_auroc(positive, negative) == pytest.approx(roc_auc_score(labels, bins), abs=1e-12)
    assert counted_average_precision(positive, negative) == pytest.approx(average_precision_score(labels, bins), abs=1e-12)


def test_rounding_to_bins_costs_nothing_that_shows():
    """Against scikit-learn on the unrounded values, for a map whose values are all below 0.01."""
    rng = np.random.default_rng(0)
    labels = rng.uniform(size=20_000) < 0.05
    values = 10 ** rng.normal(-4 + 0.5 * labels, 0.5)
    positive, negative = counts(values[labels]), counts(values[~labels])
    assert counted_auroc(positive, negative) == pytest.approx(roc_auc_score(labels, values), abs=2e-4)
    assert counted_average_precision(positive, negative) == pytest.approx(average_precision_score(labels, values), abs=2e-3)


def test_bins_are_ordered_and_the_fixed_threshold_is_an_edge():
    values = np.linspace(0, 1, 5001)
    assert (np.diff(bins_of(values)) >= 0).all()
    assert (bins_of(np.array([0.0, 1.0])) == [0, BINS - 1]).all()
    below, at = bins_of(np.array([np.nextafter(0.5, 0) - 1e-6, 0.5]))
    assert lower_edge(int(at)) == 0.5 and below < at
    for value in (0.01, 0.3, 0.77, 0.999):
        edge = lower_edge(int(bins_of(np.array([value]))[0]))
        assert edge <= value < edge * 1.002


@pytest.mark.parametrize("bad", [np.nan, -0.01, 1.01])
def test_a_map_outside_its_range_is_refused(bad):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        bins_of(np.array([0.5, bad]))


def test_iou_and_pointing_by_hand():
    """Marked: 4 pixels. At 0.5 the map has 2 of them and 1 other: 2 / 5. At 0.3 it has all 4 and 1 other: 4 / 5."""
    marks = np.array([[1, 1, 1, 1, 0, 0, 0, 0]], dtype=bool)
    seen = np.array([[0.8, 0.6, 0.3, 0.3, 0.9, 0.1, 0.1, 0.1]])
    figures = pixel_figures(count_image(seen, marks))
    assert figures.iou_fixed == pytest.approx(2 / 5)
    assert figures.iou_best == pytest.approx(4 / 5)
    assert figures.best_threshold == pytest.approx(0.3, rel=2e-3)
    assert figures.prevalence == 0.5 and figures.auprc_over_chance == pytest.approx(figures.auprc / 0.5)
    assert count_image(seen, marks).pointing == 0.0
    assert count_image(np.where(seen == 0.9, 0.8, seen), marks).pointing == 0.5  # a draw between a marked and another pixel
    assert count_image(np.full((1, 8), 0.2), marks).pointing == 0.5  # points anywhere: chance


def test_the_tally_of_one_image_is_that_image_and_of_many_is_pooled_or_meant():
    rng = np.random.default_rng(1)
    images = []
    for share in (0.1, 0.4):
        marks = rng.uniform(size=(20, 20)) < share
        images.append((np.clip(rng.normal(0.3 + 0.3 * marks, 0.2), 0, 1), marks, np.clip(rng.normal(0.3, 0.2, (20, 20)), 0, 1)))
    tally = MapTally()
    for seen, marks, clean in images:
        tally.add(count_image(seen, marks, original_map=clean))
    tally.add(count_image(np.full((20, 20), 0.4), np.zeros((20, 20), dtype=bool)))  # nothing marked: counts when pooled
    found = tally.figures()
    own = [pixel_figures(count_image(seen, marks, original_map=clean)) for seen, marks, clean in images]
    assert found.per_image.paired_auroc == pytest.approx(np.mean([o.paired_auroc for o in own]))
    assert found.per_image.auprc == pytest.approx(np.mean([o.auprc for o in own]))
    assert found.per_image.iou_best <= np.mean([o.iou_best for o in own]) + 1e-12  # one threshold for all
    assert (found.images, found.marked_images) == (3, 2)
    values = bins_of(np.concatenate([*(seen.ravel() for seen, _, _ in images), np.full(400, 0.4)]))
    labels = np.concatenate([*(marks.ravel() for _, marks, _ in images), np.zeros(400, dtype=bool)])
    assert found.pooled.auroc == pytest.approx(roc_auc_score(labels, values))
    changed, same = (np.concatenate([image[i][image[1]] for image in images]) for i in (0, 2))
    expected = roc_auc_score(np.repeat([1, 0], [len(changed), len(same)]), bins_of(np.concatenate([changed, same])))
    assert found.pooled.paired_auroc == pytest.approx(expected)


def test_without_a_mark_figures_are_undefined_not_numbers():
    figures = pixel_figures(count_image(np.zeros((4, 4)), np.zeros((4, 4), dtype=bool), original_map=np.zeros((4, 4))))
    assert (figures.paired_auroc, figures.auroc, figures.auprc, figures.iou_fixed) == (None, None, None, None)
    assert MapTally().figures().pooled.auroc is None


# -- datasets ------------------------------------------------------------------------------------------------------------


def row(index: int, side: int = 32) -> Row:
    """A photo whose most textured quarter is swapped with a blurred copy, so that texture and defect coincide; LR is gt's."""
    gt = photo(side, side, index)
    rng = np.random.default_rng(index)
    gt[: side // 2, : side // 2] = rng.integers(0, 256, (side // 2, side // 2, 3))
    sr = np.clip(gt.astype(int) + rng.integers(-1, 2, gt.shape) * 20, 0, 255).astype(np.uint8)
    mask = np.zeros((side, side), dtype=np.float32)
    size = (2, 4, 8, 16, 32)[index % 5]
    mask[:size, :size] = 1
    syn = np.where(mask[..., None] > 0, sr, gt)
    return Row(gt=gt, lr=gt[::4, ::4], sr=sr, syn=syn, mask=mask, map=mask.copy(), recipe=json.dumps({"i": index}),
               source_id=f"p{index}", index=100 + index, quality_gt=1.0, quality_sr=0.5, quality_syn=0.7)  # fmt: skip


ROWS = [row(index) for index in range(10)]


def provenance(recipe: str) -> Provenance:
    index = json.loads(recipe)["i"]
    return Provenance("model" if index < 5 else "artefact", frozenset({"blur"} if index < 8 else {"blur", "noise"}))


class Oracle:
    """Knows the truth: M_gt on syn, nothing on gt; scores fall with it."""

    name, digest = "oracle", "d"

    def judge(self, rows):
        truth = np.stack([r.map for r in rows])
        share = truth.mean(axis=(1, 2), dtype=np.float64)
        return Judgement(np.ones(len(rows)), 0.9 - share / 2, np.full(len(rows), 0.1), np.zeros_like(truth), truth)


class Blind(Oracle):
    """A global score that never looks, and no map."""

    name, digest = "blind", None

    def judge(self, rows):
        same = np.full(len(rows), 0.5)
        return Judgement(same, same, same, None, None)


def texture_of_gt(rows):
    """A map of gt's texture, whatever is shown: it follows texture and sees no defect."""
    maps = np.stack([laplacian_energy_map(r.gt) for r in rows])
    return Judgement(*[np.zeros(len(rows))] * 3, maps, maps)


class Texture(Oracle):
    name = "texture"

    def judge(self, rows):
        return texture_of_gt(rows)


def test_a_perfect_map_gets_ones_and_a_map_of_texture_is_blind_when_paired():
    perfect, texture, blind = evaluate_judges([Oracle(), Texture(), Blind()], ROWS, provenance, batch_size=3)
    maps = perfect.overall.map
    pooled, per_image = maps.pooled, maps.per_image
    assert (pooled.paired_auroc, pooled.auprc, pooled.iou_fixed, pooled.iou_best) == (1.0, 1.0, 1.0, 1.0)
    assert (per_image.paired_auroc, per_image.iou_best, maps.pointing, maps.clean_mean, maps.l1) == (1.0, 1.0, 1.0, 0.0, 0.0)
    assert perfect.overall.ranking.triplet == perfect.overall.ranking.score_paired == 1.0
    assert texture.overall.map.pooled.paired_auroc == 0.5
    small = [texture.by_area[label].map.pooled.auroc for label in ("0–1 %", "1–3 %", "3–10 %")]
    assert min(small) > 0.7  # which the plain AUROC does not notice
    assert blind.overall.map is None
    assert (blind.overall.ranking.score_paired, blind.overall.ranking.triplet) == (0.5, 0.0)


def test_streamed_figures_agree_with_the_exact_ones_on_arrays():
    rng = np.random.default_rng(3)
    seen, clean = (np.clip(rng.normal(0.2, 0.2, (10, 32, 32)), 0, 1).astype(np.float32) for _ in range(2))
    target = np.stack([r.map for r in ROWS])
    seen = np.clip(seen + 0.1 * target, 0, 1)
    visible = target > VISIBLE

    class Given(Oracle):
        def judge(self, rows):
            at = [r.index - 100 for r in rows]
            return Judgement(*[np.zeros(len(rows))] * 3, clean[at], seen[at])

    found = evaluate_judges([Given()], ROWS, provenance, batch_size=4)[0].overall.map
    labels = np.repeat([True, False], visible.sum())
    paired = roc_auc_score(labels, [*seen[visible], *clean[visible]])
    assert found.pooled.paired_auroc == pytest.approx(paired, abs=2e-4)
    assert found.pooled.auroc == pytest.approx(roc_auc_score(visible.ravel(), seen.ravel()), abs=2e-4)
    assert found.pooled.auprc == pytest.approx(average_precision_score(visible.ravel(), seen.ravel()), abs=2e-3)
    assert found.l1 == pytest.approx(np.abs(seen - target).mean(), abs=1e-6)
    assert found.clean_mean == pytest.approx(clean.mean(), abs=1e-6)
    assert found.pooled.prevalence == pytest.approx(visible.mean())


def test_groups_count_every_sample_where_it_belongs():
    (report,) = evaluate_judges([Oracle()], ROWS, provenance, batch_size=4)
    assert {label: group.samples for label, group in report.by_area.items()} == {
        "0–1 %": 2, "1–3 %": 2, "3–10 %": 2, "10–30 %": 2, "30–100 %": 2,
    }  # fmt: skip
    assert {label: group.samples for label, group in report.by_origin.items()} == {"artefact": 5, "model": 5}
    assert {label: group.samples for label, group in report.by_family.items()} == {"blur": 10, "noise": 2}
    text = report.to_json()
    assert json.loads(json.dumps(text, allow_nan=False)) == text
    assert next(iter(text["map"])) == "paired_auroc"
    assert text["by"]["family"]["noise"]["ranking"]["count"] == 2


def test_area_labels():
    assert [area_label(a) for a in (0.0, 1e-4, 0.01, 0.0999, 0.1, 1.0)] == [
        None,
        "0–1 %",
        "1–3 %",
        "3–10 %",
        "10–30 %",
        "30–100 %",
    ]


def test_batches_do_not_change_figures():
    one, many = (evaluate_judges(baselines(), ROWS, provenance, batch_size=size) for size in (1, 32))
    assert [r.to_json() for r in one] == [r.to_json() for r in many]


def case(index, scores, area=0.1, paired=None):
    return Case(index, index, "p", area, Provenance("model", frozenset()), scores, paired)


def test_ranking_counts_ties_as_wrong_in_triplets_and_as_half_when_paired():
    cases = [case(0, (0.9, 0.8, 0.7)), case(1, (0.9, 0.9, 0.5)), case(2, (0.1, 0.2, 0.3)), case(3, (0.1, 0.2, 0.3), area=0.0)]
    found = ranking_figures(cases)
    assert (found.score_paired, found.gt_over_syn, found.triplet, found.count) == (0.5, 1 / 3, 1 / 3, 3)
    assert found.score_drop == pytest.approx(0.0, abs=1e-12)
    assert ranking_figures(cases[3:]).score_paired is None


def test_best_and_worst_cases_never_overlap():
    cases = [case(i, (0.5, 0.5 - i / 10, 0.1), paired=i / 4) for i in range(5)] + [case(9, (1, 0, 0), area=0.0)]
    chosen = best_and_worst(cases, 6)
    assert [c.index for c in chosen["best"]] == [4, 3]
    assert [c.index for c in chosen["worst"]] == [0, 1]
    by_score = best_and_worst([case(i, (0.5, i / 10, 0.1)) for i in range(4)], 1)
    assert (by_score["best"][0].index, by_score["worst"][0].index) == (0, 3)


# -- baselines -----------------------------------------------------------------------------------------------------------


def test_the_energy_map_follows_texture_alone():
    flat, edges = np.full((32, 32, 3), 90, dtype=np.uint8), photo(32, 32)
    edges[:, 16:] = 128
    edges[:, :16] = np.random.default_rng(0).integers(0, 256, (32, 16, 3))
    assert laplacian_energy_map(flat).max() == pytest.approx(0, abs=1e-9)
    energy = laplacian_energy_map(edges)
    assert energy[:, :10].min() > energy[:, 26:].max()
    assert energy.min() >= 0 and energy.max() < 1


def test_the_consistency_map_sees_what_contradicts_the_input_and_nothing_else():
    lr = np.full((8, 8, 3), 100, dtype=np.uint8)
    sr = np.full((32, 32, 3), 100, dtype=np.uint8)
    assert consistency_map(sr, lr).max() == 0
    # An invented checkerboard whose mean is the input's: bicubic reduction by four takes it away.
    grid = (np.indices((32, 32)).sum(0) % 2 * 2 - 1)[..., None]
    invented = (sr + 40 * grid).astype(np.uint8)
    sr[8:16, 8:16] = 160
    assert consistency_map(invented, lr)[8:24, 8:24].max() < 0.1
    found = consistency_map(sr, lr)
    assert found[10:14, 10:14].min() > 0.7 and found[24:, 24:].max() < 0.05


def test_a_baselines_score_falls_with_its_map():
    judge = BaselineJudge("b", consistency_map)
    judgement = judge.judge(ROWS[:2])
    assert judgement.score_syn == pytest.approx([1 - m.mean() for m in judgement.map_syn])


# -- agreement with people -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truth", [Logistic(90, 10, 0.6, 0.08), Logistic(10, 90, 0.4, 0.05), Logistic(4.6, 1.2, -3.0, 2.0)])
def test_the_logistic_fit_recovers_its_parameters(truth):
    rng = np.random.default_rng(0)
    scores = rng.uniform(truth.centre - 5 * truth.width, truth.centre + 5 * truth.width, 400)
    found = fit_logistic(scores, truth(scores))
    assert found is not None and found.width > 0
    # Swapping the ends and mirroring the slope is the same curve; width is kept positive, so the ends are unique.
    for name in ("high", "low", "centre", "width"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=1e-3, abs=1e-3), name
    noisy = truth(scores) + rng.normal(0, 0.02 * abs(truth.high - truth.low), 400)
    assert fit_logistic(scores, noisy).centre == pytest.approx(truth.centre, abs=0.2 * truth.width)


def test_the_fit_makes_a_saturated_relation_linear():
    truth = Logistic(100, 0, 0.5, 0.03)
    scores = np.linspace(0, 1, 60)
    found = agreement(scores, truth(scores), replicates=20)
    assert found.plcc.value == pytest.approx(1.0, abs=1e-6) and found.rmse.value == pytest.approx(0, abs=1e-3)
    assert pearson(scores, truth(scores)) < 0.92


def test_a_straight_line_is_fitted_too():
    scores = np.linspace(0, 1, 50)
    found = agreement(scores, 3 + 40 * scores, replicates=10)
    assert found.plcc.value > 0.999 and found.rmse.value < 0.6 and found.srcc.value == 1.0


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_rank_correlations_with_ties(seed, levels):
    """KRCC against tau-b counted pair by pair and against scipy; SRCC against scipy."""
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(0, levels, 25).astype(float) for _ in range(2))
    a[:2], b[:2] = (0, 1), (0, 1)
    signs = [np.sign(x[:, None] - x[None, :])[np.triu_indices(25, 1)] for x in (a, b)]
    tau = (signs[0] * signs[1]).sum() / np.sqrt((signs[0] ** 2).sum() * (signs[1] ** 2).sum())
    assert kendall(a, b) == pytest.approx(tau) == pytest.approx(kendalltau(a, b).statistic)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)


def test_a_constant_score_agrees_with_nobody():
    found = agreement(np.full(20, 0.5), np.arange(20.0), replicates=10)
    assert (found.srcc.value, found.krcc.value, found.plcc.value, found.srcc.low, found.logistic) == (None,) * 5
    assert found.unfitted == 10
    with pytest.raises(ConfigError, match="at least 8 images, got 3"):
        agreement(np.arange(3.0), np.arange(3.0))


def test_intervals_are_reproducible_and_narrow_with_the_number_of_images():
    rng = np.random.default_rng(5)
    scores = rng.normal(size=400)
    opinions = scores + rng.normal(size=400)
    few, many = (agreement(scores[:n], opinions[:n], seed=1, replicates=150) for n in (40, 400))
    assert few == agreement(scores[:40], opinions[:40], seed=1, replicates=150)
    assert few != agreement(scores[:40], opinions[:40], seed=2, replicates=150)
    for name in ("srcc", "krcc", "plcc", "rmse"):
        a, b = getattr(few, name), getattr(many, name)
        assert a.low < a.value < a.high and b.low < b.value < b.high
        assert 2 < (a.high - a.low) / (b.high - b.low) < 5  # √10


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Two normals of correlation 0.7: Spearman's is 6/π asin(0.35) (Pearson, 1907). 60 draws of 60; 95 % gives 57 ± 1.7."""
    truth, covered = 6 / np.pi * np.arcsin(0.35), 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        a = rng.normal(size=60)
        b = 0.7 * a + np.sqrt(1 - 0.49) * rng.normal(size=60)
        resampled = bootstrap(lambda x, y: (spearman(x, y),), a, b, seed=seed, replicates=120)
        low, high = interval([figures[0] for figures in resampled])
        covered += low < truth < high
    assert 50 <= covered <= 60
