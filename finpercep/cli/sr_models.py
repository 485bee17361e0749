"""The packaged diffusion SR model as `data_synth` sees SR models: variants by number of sampling steps."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from finpercep.cli.libraries import hush

if TYPE_CHECKING:
    import torch

    from data_synth.sr_models import SRFactory, SRModel
    from finpercep.sr.tiny import TinyDiffusionSR

STEPS = (1, 2, 4)
"""Sampling steps of the variants: one step blurs, several invent; both kinds of defect are wanted."""


class DiffusionSRModel:
    """`data_synth.sr_models.SRModel` over a diffusion policy with a fixed number of steps."""

    def __init__(self, policy: TinyDiffusionSR, weights_digest: str) -> None:
        self.policy = policy
        self.name = f"{policy.name}-{policy.num_steps}step"
        self.version = weights_digest
        self.scale = policy.scale

    def __call__(self, lr: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """SR images of ``lr`` (N×3×h×w in [0, 1]); image i's noise comes from seed i alone."""
        from finpercep.sr.policy import seeded_generators

        return self.policy.sample(lr, seeded_generators(seeds))


def diffusion_sr_models(folder: Path, steps: Sequence[int] = STEPS) -> Mapping[str, SRModel]:
    """The policy in ``folder``, once for each number of steps; the variants share its weights."""
    hush()  # this also runs in worker processes, which no command line has prepared
    from finpercep.sr.tiny import TinyDiffusionSR

    policy = TinyDiffusionSR.from_pretrained(folder)
    policy.unet.requires_grad_(False).eval()
    digest = policy_digest(folder)
    models = [DiffusionSRModel(policy.with_steps(count), digest) for count in steps]
    return {model.name: model for model in models}


def diffusion_sr_factory(folder: Path, steps: Sequence[int] = STEPS) -> SRFactory:
    """`diffusion_sr_models` to be called in worker processes."""
    return partial(diffusion_sr_models, folder, tuple(steps))


def policy_digest(folder: Path) -> str:
    """Digest of what decides the model's output: settings, scheduler and weights, but no model card or log beside them."""
    digest = hashlib.sha256()
    for path in sorted([folder / "policy.json", *(folder / "scheduler").iterdir(), *(folder / "unet").iterdir()]):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
