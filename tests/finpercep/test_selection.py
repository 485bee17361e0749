"""Which weights are stored, and when a rung ends."""

from __future__ import annotations

import pytest
import torch

from finpercep.training.data import spread
from finpercep.training.evaluate import RungQuality
from finpercep.training.metrics import MapQuality, RankingQuality
from finpercep.training.selection import Selection, validation_figure


def quality(triplet, paired=None, has_map=True):
    seen = MapQuality(paired, paired, paired, 0.1, 0.1, 0.1) if has_map else None
    return RungQuality(seen, RankingQuality(triplet, triplet, triplet, 4), {})


@pytest.mark.parametrize(
    ("found", "figure"),
    [
        (quality(0.5, 0.9), 0.7),
        (quality(0.5, has_map=False), 0.5),
        (quality(None, 0.9), 0.9),
        (quality(None, None), None),
    ],
)
def test_the_figure_is_the_mean_of_what_can_be_measured(found, figure):
    assert validation_figure(found) == (None if figure is None else pytest.approx(figure))


def look(selection, step, triplet):
    return selection.judge(quality(triplet, has_map=False), {"step": torch.tensor(step)}, step)


def test_the_best_is_kept_and_of_equals_the_later():
    selection = Selection()
    looks = [look(selection, step, figure) for step, figure in [(10, 0.5), (20, 0.8), (30, 0.8), (40, 0.6)]]
    assert [one.improved for one in looks] == [True, True, False, False]
    assert (selection.step, selection.figure, selection.weights["step"].item()) == (30, 0.8, 30)


def test_patience_counts_steps_since_the_figure_rose():
    selection = Selection()
    assert not selection.exhausted(1000, 5), "nothing was measured yet"
    look(selection, 10, 0.5)
    look(selection, 14, 0.5)
    assert [selection.exhausted(step, 5) for step in (14, 15)] == [False, True]
    assert not selection.exhausted(1000, 0)


def test_a_figure_that_cannot_be_measured_chooses_nothing():
    selection = Selection()
    assert look(selection, 10, None).figure is None
    assert selection.weights is None and selection.step == 0


def test_its_state_brings_it_back():
    selection = Selection()
    look(selection, 10, 0.5)
    assert Selection(**selection.state()) == selection


def test_samples_are_spread_over_the_split():
    assert list(spread(range(10), 4)) == [0, 2, 5, 7]
    assert list(spread(range(3), 64)) == [0, 1, 2]
    assert spread(range(10), 4)[1:3] == [2, 5]
    assert len(spread([], 4)) == 0
