"""What ladder training tells whoever runs it, step by step and rung by rung. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from finpercep.training.evaluate import RungQuality
from finpercep.training.selection import Validation


@dataclass(frozen=True)
class StepReport:
    """After one optimiser step of a rung.

    Attributes:
        rung: its name.
        step: 1-based, of that rung.
        losses: weighted terms of the loss by name, ``total`` among them; means over the processes.
        lr: learning rate.
        grad_norm: of the whole gradient before clipping; None where fp16 overflowed and the step was left out.
        validation: a look at the validation split after the step; None where there was none.
    """

    rung: str
    step: int
    losses: dict[str, float]
    lr: float
    grad_norm: float | None
    validation: Validation | None


@dataclass(frozen=True)
class RungReport:
    """A finished rung.

    Attributes:
        rung: its name.
        digest: of the stored weights.
        quality: their figures on up to 400 validation samples; None when there is none.
        step: the step after which the average was what is stored; None where that is not known.
        steps: how many were done.
    """

    rung: str
    digest: str
    quality: RungQuality | None
    step: int | None
    steps: int | None
