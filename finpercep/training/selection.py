"""Which weights of a rung are stored, and when it has been trained long enough: by one figure on the validation split."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from finpercep.training.evaluate import RungQuality

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Validation:
    """A look at the validation split.

    Attributes:
        figure: `validation_figure`; None where it is undefined.
        quality: all figures.
        improved: whether ``figure`` is above all earlier ones of the rung.
    """

    figure: float | None
    quality: RungQuality
    improved: bool


def validation_figure(quality: RungQuality) -> float | None:
    """The number that chooses weights: the mean of paired AUROC and the share of triplets in order; of RM_0, the order alone.

    Both lie in [0, 1], higher is better. What cannot be measured is left out; None where no sample has a visible defect.
    """
    figures = [quality.ranking.triplet, quality.map.paired_auroc if quality.map else None]
    known = [figure for figure in figures if figure is not None]
    return fmean(known) if known else None


@dataclass
class Selection:
    """The best so far. Of equal figures the later one's weights are kept (they are better fitted), but it is no improvement.

    Attributes:
        figure: of the best; None before there is one.
        step: the 1-based step it was measured after.
        weights: at that step, on the CPU.
        rose: the step after which the figure last rose.
    """

    figure: float | None = None
    step: int = 0
    weights: Weights | None = None
    rose: int = 0

    def judge(self, quality: RungQuality, weights: Weights, step: int) -> Validation:
        """Take in a look at the validation split after ``step``."""
        figure = validation_figure(quality)
        improved = figure is not None and (self.figure is None or figure > self.figure)
        if figure is not None and (improved or figure == self.figure):
            self.figure, self.step, self.weights = figure, step, weights
        if improved:
            self.rose = step
        return Validation(figure, quality, improved)

    def exhausted(self, step: int, patience: int) -> bool:
        """Whether ``patience`` steps without improvement have passed after ``step``; never with a patience of 0."""
        return self.figure is not None and 0 < patience <= step - self.rose

    def state(self) -> dict[str, Any]:
        """Plain values and tensors, for a run state; ``Selection(**state)`` brings it back."""
        return dict(vars(self))
