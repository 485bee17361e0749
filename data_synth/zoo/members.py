"""The table of the zoo: what each member's network is, what it is trained for, and so what it gets wrong.

All numbers of the zoo stand here. Knows no training loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from data_synth.zoo.errors import ZooError
from data_synth.zoo.networks import GeneratorConfig

Family = Literal["regression", "perceptual", "gan"]


@dataclass(frozen=True)
class Objective:
    """Weights of a member's loss terms; a term of weight 0 is not computed (see `losses`).

    Attributes:
        l1: mean absolute error.
        charbonnier: Charbonnier's smooth L1.
        low_frequency: L1 between both images reduced by the scale.
        feature: L1 between features of a fixed random network.
        texture: L1 between Gram matrices of these features.
        adversarial: the generator's adversarial loss.
        adversarial_loss: its form; None for none.
        warmup: share of the steps trained with L1 alone before the terms above count.
        discriminator_rate: the discriminator's learning rate in units of the generator's (two time scales: Heusel et al., 2017).
        discriminator_width: channels of the discriminator's first layer.
        discriminator_kernel: side of its strided filters; 3, which 2 does not divide, hands a checkerboard to the generator.
    """

    l1: float = 0.0
    charbonnier: float = 0.0
    low_frequency: float = 0.0
    feature: float = 0.0
    texture: float = 0.0
    adversarial: float = 0.0
    adversarial_loss: Literal["relativistic", "hinge"] | None = None
    warmup: float = 0.0
    discriminator_rate: float = 2.0
    discriminator_width: int = 32
    discriminator_kernel: int = 4

    def __post_init__(self) -> None:
        weights = (self.l1, self.charbonnier, self.low_frequency, self.feature, self.texture, self.adversarial)
        if min(weights) < 0 or not any(weights):
            raise ZooError(f"an objective needs weights >= 0, one of them positive, got {weights}")
        if (self.adversarial > 0) != (self.adversarial_loss is not None):
            raise ZooError(
                f"an adversarial weight and its loss go together, got {self.adversarial} and {self.adversarial_loss!r}"
            )
        if not 0 <= self.warmup < 1:
            raise ZooError(f"warmup must be a share of the steps in [0, 1), got {self.warmup}")


@dataclass(frozen=True)
class Member:
    """One network of the zoo and its training.

    Attributes:
        name: what it is called on disk and, with ``zoo-`` before it, in recipes.
        family: what kind of faults it makes when trained (`SRModel.family`).
        generator: its network.
        objective: what it is trained for.
        blind_share: share of training pairs with heavy blind degradation; the others are light.
        learning_rate: peak, the generator's.
        effort: its number of steps in units of the run's.
    """

    name: str
    family: Family
    generator: GeneratorConfig
    objective: Objective
    blind_share: float = 0.5
    learning_rate: float = 6e-4
    effort: float = 1.0

    def warmup_steps(self, steps: int) -> int:
        """How many of ``steps`` are trained with L1 alone."""
        return round(self.objective.warmup * steps)

    def family_at(self, step: int, steps: int) -> Family:
        """Family of the network after ``step`` of ``steps``: ``regression`` while it has known nothing but L1."""
        return "regression" if step <= self.warmup_steps(steps) else self.family


MEMBERS: tuple[Member, ...] = (
    Member(
        "l1",
        "regression",
        GeneratorConfig(body="residual", width=32, blocks=6, upsampler="pixel-shuffle"),
        Objective(l1=1.0),
        blind_share=0.3,
    ),
    Member(
        "charbonnier",
        "regression",
        GeneratorConfig(body="residual", width=32, blocks=6, upsampler="nearest", skip="none"),
        Objective(charbonnier=1.0),
        blind_share=1.0,
    ),
    Member(
        "gan-relativistic",
        "gan",
        GeneratorConfig(body="dense", width=40, blocks=4, tail=16, upsampler="nearest", refine=1),
        Objective(l1=1.0, feature=0.05, adversarial=0.01, adversarial_loss="relativistic", warmup=0.25),
        blind_share=0.3,
        learning_rate=3e-4,
    ),
    Member(
        "gan-hinge",
        "gan",
        GeneratorConfig(body="residual", width=40, blocks=6, tail=16, upsampler="nearest", refine=2, noise=4),
        Objective(low_frequency=1.0, l1=0.3, texture=0.1, adversarial=0.025, adversarial_loss="hinge", warmup=0.15),
        blind_share=0.2,
        learning_rate=3e-4,
    ),
    Member(
        "gan-weak",
        "gan",
        GeneratorConfig(body="residual", width=32, blocks=6, tail=16, upsampler="nearest", refine=1, noise=4),
        Objective(l1=1.0, texture=0.05, adversarial=0.003, adversarial_loss="relativistic", warmup=0.25),
        blind_share=0.2,
        learning_rate=4e-4,
    ),
    Member(
        "random-perceptual",
        "perceptual",
        GeneratorConfig(body="residual", width=32, blocks=6, tail=16, upsampler="pixel-shuffle", refine=1, noise=4),
        Objective(low_frequency=1.0, feature=0.05, texture=1.0),
        blind_share=0.3,
    ),
    Member(
        "transposed",
        "gan",
        GeneratorConfig(body="residual", width=32, blocks=5, tail=16, upsampler="transposed"),
        Objective(l1=1.0, adversarial=0.03, adversarial_loss="hinge", warmup=0.2, discriminator_kernel=3),
        learning_rate=4e-4,
    ),
)
"""The default zoo."""


def choose_members(names: Iterable[str], scale: int) -> tuple[Member, ...]:
    """The members called ``names`` (all when empty), in the table's order, for upscaling by ``scale``.

    Raises:
        ZooError: no member of that name, or a scale other than 2 or 4.
    """
    wanted = tuple(names) or tuple(member.name for member in MEMBERS)
    if unknown := sorted(set(wanted) - {member.name for member in MEMBERS}):
        raise ZooError(f"no zoo member is called {', '.join(unknown)}; there are {', '.join(m.name for m in MEMBERS)}")
    return tuple(
        dataclasses.replace(member, generator=dataclasses.replace(member.generator, scale=scale))
        for member in MEMBERS
        if member.name in wanted
    )
