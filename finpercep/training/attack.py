"""Adversarial training: a model that also learns from images changed, invisibly, to fool it (Madry et al., arXiv 1706.06083).

A policy that is trained through a reward finds such changes by itself: a faint grain, which photographs have and SR outputs lack,
turns the map of a broken image black. Who has learned from them has a gradient that points to what shows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from finpercep.errors import ConfigError
from finpercep.training.data import TripletBatch

PICTURES = ("gt", "syn", "sr")


@dataclass(frozen=True)
class AttackConfig:
    """Settings of adversarial training.

    Attributes:
        radius: largest change of a channel of a pixel, images being in [0, 1]; 0: none.
        steps: of projected gradient ascent, from a random start. One, of 1.25 radii, is the fast form (Wong et al., arXiv
            2001.03994).
        share: of the triplets of a batch that are attacked; the others stay as they are.
    """

    radius: float = 0.0
    steps: int = 1
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.radius < 1:
            raise ConfigError(f"attack.radius must lie in [0, 1), got {self.radius}")
        if self.steps < 1:
            raise ConfigError(f"attack.steps must be at least 1, got {self.steps}")
        if not 0 < self.share <= 1:
            raise ConfigError(f"attack.share must lie in (0, 1], got {self.share}")


def attacked(
    batch: TripletBatch, loss: Callable[[TripletBatch], torch.Tensor], config: AttackConfig, places: range | None = None
) -> TripletBatch:
    """The batch with gt, syn and sr of some of its triplets changed by at most ``radius`` so that ``loss`` rises.

    What they should be told stays as it was. Random numbers are torch's; the gradient reaches no parameter. Which triplets it
    is depends on their ``places`` in the batch of all processes alone; None: there is one process.
    """
    chosen = torch.tensor([is_victim(place, config.share) for place in places or range(len(batch.gt))], device=batch.gt.device)
    if not config.radius or not chosen.any():
        return batch
    victims = TripletBatch(**{name: value[chosen] for name, value in vars(batch).items()})
    clean = torch.stack([getattr(victims, name) for name in PICTURES])
    change = torch.empty_like(clean).uniform_(-config.radius, config.radius)
    length = config.radius * (1.25 if config.steps == 1 else 2.5 / config.steps)
    for _ in range(config.steps):
        images = (clean + change).clamp(0, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(loss(dataclasses.replace(victims, **dict(zip(PICTURES, images, strict=True)))), images)
        change = (change + length * gradient.sign()).clamp(-config.radius, config.radius)
    changed = (clean + change).clamp(0, 1)
    joined = {name: getattr(batch, name).clone() for name in PICTURES}
    for name, own in zip(PICTURES, changed, strict=True):
        joined[name][chosen] = own
    return dataclasses.replace(batch, **joined)


def is_victim(place: int, share: float) -> bool:
    """Whether the triplet at a place of the batch is attacked: a ``share`` of all places, spread evenly."""
    return math.floor((place + 1) * share) > math.floor(place * share)
