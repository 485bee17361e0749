"""Training of one zoo member on (hr, lr) crops, with snapshots along the way.

Crops come in as a function, so this module knows nothing about photos or degradations. Step s draws its batch from (seed, s)
alone and nothing else is random after the first weights, so an interrupted run continues exactly.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from data_synth.device import computes_bf16
from data_synth.schema.pixels import write_atomically
from data_synth.zoo import losses
from data_synth.zoo.errors import ZooError
from data_synth.zoo.members import Member, Objective
from data_synth.zoo.networks import RandomFeatures, build_discriminator, build_generator, seeded_noise
from data_synth.zoo.store import StoredNetwork, write_network

DrawPair = Callable[[np.random.Generator], tuple[torch.Tensor, torch.Tensor]]
"""One training pair: hr 3×H×W and lr 3×H/scale×W/scale, float32 in [0, 1]; the draw depends on the generator alone."""

STATE_NAME = "run_state.pt"
_BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class ZooTrainConfig:
    """Settings of `train_member`.

    Attributes:
        steps: optimiser steps of a member of effort 1.
        batch_size: crops a step.
        crop: side of an HR crop in px, a multiple of 8; what draws the pairs reads it here.
        snapshots: shares of a member's steps after which its weights are kept; the last must be 1.
        save_every: steps between run states.
        seed: decides first weights and batches.
        autocast: convolve in bfloat16 where the device computes it in hardware, about twice as fast there.
    """

    steps: int = 2000
    batch_size: int = 8
    crop: int = 80
    snapshots: tuple[float, ...] = (0.05, 0.2, 1.0)
    save_every: int = 200
    seed: int = 0
    autocast: bool = True

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.save_every) < 1:
            raise ZooError(
                f"steps, batch_size and save_every must be positive, got {self.steps}, {self.batch_size}, {self.save_every}"
            )
        if self.crop < 16 or self.crop % 8:
            raise ZooError(f"crop must be a multiple of 8 of at least 16, got {self.crop}")
        ascending = all(a < b for a, b in zip(self.snapshots, self.snapshots[1:], strict=False))
        if not self.snapshots or self.snapshots[0] <= 0 or self.snapshots[-1] != 1 or not ascending:
            raise ZooError(f"snapshots must be ascending shares of the steps in (0, 1] that end with 1, got {self.snapshots}")

    def steps_of(self, member: Member) -> int:
        """The steps ``member`` is trained for."""
        return max(1, round(self.steps * member.effort))

    def snapshot_steps(self, member: Member) -> tuple[int, ...]:
        """The steps after which ``member`` is kept, ascending, without repetition."""
        return tuple(sorted({max(1, round(share * self.steps_of(member))) for share in self.snapshots}))


@dataclass(frozen=True)
class ZooProgress:
    """State after a step: member, step (1-based) of ``steps``, the loss terms of that step before their weights."""

    member: str
    step: int
    steps: int
    terms: dict[str, float]


def train_member(
    member: Member, draw_pair: DrawPair, config: ZooTrainConfig, out: Path, device: torch.device | str = "cpu"
) -> Iterator[ZooProgress]:
    """Train ``member``; its snapshots are written to ``out`` (see `store.write_network`) as their steps are reached.

    Args:
        member: what to train.
        draw_pair: makes one training pair of the member's scale.
        config: how long and with what batches.
        out: folder of the zoo; ``out/training/MEMBER/run_state.pt`` is where an interrupted run continues.
        device: where to train.

    Yields:
        Progress after every step that was not done before.

    Raises:
        ZooError: a non-finite loss, or a run state that is damaged or of another run.
    """
    steps, snapshots = config.steps_of(member), config.snapshot_steps(member)
    state_path = out / "training" / member.name / STATE_NAME
    trainer = MemberTrainer(member, config, torch.device(device))
    first = trainer.load(state_path)
    with ThreadPoolExecutor(1) as prefetch:
        upcoming = prefetch.submit(draw_batch, draw_pair, config, member, first)
        for step in range(first, steps):
            hr, lr = upcoming.result()
            upcoming = prefetch.submit(draw_batch, draw_pair, config, member, step + 1)
            terms = trainer.step(hr, lr, step)
            done = step + 1
            if done in snapshots:
                stored = StoredNetwork.of(member.name, member.family_at(done, steps), done, steps, member.generator)
                write_network(out, stored, trainer.generator.state_dict())
            if done % config.save_every == 0 or done == steps:
                trainer.save(state_path, done)
            yield ZooProgress(member.name, done, steps, terms)
        upcoming.cancel()


def draw_batch(draw_pair: DrawPair, config: ZooTrainConfig, member: Member, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch of ``step`` (0-based): hr B×3×H×W, lr B×3×h×w. Decided by the seed, the member's name and the step."""
    rng = np.random.default_rng((config.seed, name_seed(member.name), step))
    hr, lr = zip(*(draw_pair(rng) for _ in range(config.batch_size)), strict=True)
    return torch.stack(hr), torch.stack(lr)


def noise_seeds(config: ZooTrainConfig, member: Member, step: int) -> list[int]:
    """Seeds of the noise that a generator gets with the batch of ``step``, one an image."""
    sequence = np.random.SeedSequence((config.seed, name_seed(member.name), step, 1))
    return [int(seed) for seed in sequence.generate_state(config.batch_size)]


def name_seed(name: str) -> int:
    """A number for a name, the same in every process."""
    return zlib.crc32(name.encode())


class MemberTrainer:
    """Networks and optimisers of one member, and one step of their training."""

    def __init__(self, member: Member, config: ZooTrainConfig, device: torch.device) -> None:
        self.member, self.config, self.device = member, config, device
        self.objective = member.objective
        self._is_narrow = config.autocast and bool(computes_bf16(device))
        seed = (config.seed * 2654435761 + name_seed(member.name)) % 2**63
        self.generator = build_generator(member.generator, seed).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.optimiser = torch.optim.Adam(self.generator.parameters(), lr=member.learning_rate, betas=_BETAS)
        self.discriminator = build_discriminator(
            self.objective.discriminator_width, self.objective.discriminator_kernel, seed
        ).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.discriminator_optimiser = torch.optim.Adam(self.discriminator.parameters(), lr=member.learning_rate, betas=_BETAS)
        self.features = RandomFeatures().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def step(self, hr: torch.Tensor, lr: torch.Tensor, step: int) -> dict[str, float]:
        """One optimiser step (two with a discriminator) on a batch; returns the loss terms. ``step`` is 0-based.

        Raises:
            ZooError: a loss that is not finite.
        """
        hr, lr = (x.to(self.device).contiguous(memory_format=torch.channels_last) for x in (hr, lr))
        steps = self.config.steps_of(self.member)
        objective = Objective(l1=1.0) if step < self.member.warmup_steps(steps) else self.objective
        rate = learning_rate(step, steps, self.member.learning_rate)
        noise = seeded_noise(self.generator.config, lr, noise_seeds(self.config, self.member, step))
        with self._autocast():
            sr = self.generator(lr, noise)
        terms = self._generator_terms(objective, sr, hr)
        loss = torch.stack([getattr(objective, name) * value for name, value in terms.items()]).sum()
        _descend(self.optimiser, loss, rate)
        if objective.adversarial:
            terms["discriminator"] = self._discriminator_loss(objective, sr.detach(), hr)
            _descend(self.discriminator_optimiser, terms["discriminator"], rate * objective.discriminator_rate)
        values = {name: float(value.detach()) for name, value in terms.items()}
        if not all(math.isfinite(value) for value in values.values()):
            raise ZooError(
                f"zoo member {self.member.name}, step {step + 1}: losses must be finite, got {values}; "
                f"lower its learning rate (now {self.member.learning_rate})"
            )
        return values

    def _generator_terms(self, objective: Objective, sr: torch.Tensor, hr: torch.Tensor) -> dict[str, torch.Tensor]:
        terms: dict[str, torch.Tensor] = {}
        if objective.l1:
            terms["l1"] = F.l1_loss(sr, hr)
        if objective.charbonnier:
            terms["charbonnier"] = losses.charbonnier(sr, hr)
        if objective.low_frequency:
            terms["low_frequency"] = losses.low_frequency_l1(sr, hr, self.member.generator.scale)
        if objective.feature or objective.texture:
            sr_features, hr_features = (self._features(image) for image in (sr, hr))
            if objective.feature:
                terms["feature"] = losses.feature_l1(sr_features, hr_features)
            if objective.texture:
                terms["texture"] = losses.texture_l1(sr_features, hr_features)
        if objective.adversarial:
            self.discriminator.requires_grad_(False)
            fake = self._judge(sr)
            if objective.adversarial_loss == "hinge":
                terms["adversarial"] = losses.hinge_generator(fake)
            else:
                terms["adversarial"] = losses.relativistic_generator(self._judge(hr), fake)
        return terms

    def _discriminator_loss(self, objective: Objective, sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        self.discriminator.requires_grad_(True)
        real, fake = self._judge(hr), self._judge(sr)
        hinge = objective.adversarial_loss == "hinge"
        return losses.hinge_discriminator(real, fake) if hinge else losses.relativistic_discriminator(real, fake)

    def _judge(self, image: torch.Tensor) -> torch.Tensor:
        with self._autocast():
            return self.discriminator(image).float()

    def _features(self, image: torch.Tensor) -> list[torch.Tensor]:
        with self._autocast():
            return [level.float() for level in self.features(image)]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_narrow)

    # -- run state --------------------------------------------------------------------------------------------------

    def save(self, path: Path, step: int) -> None:
        """Write everything that step ``step`` (0-based) continues from."""
        buffer = io.BytesIO()
        torch.save({"run": self._run(), "step": step, "parts": {n: p.state_dict() for n, p in self._parts().items()}}, buffer)
        write_atomically(path, buffer.getvalue())

    def load(self, path: Path) -> int:
        """Continue from what `save` wrote; returns the step to go on with, 0 when there is no such file.

        Raises:
            ZooError: the file is damaged, or of a run with other settings.
        """
        if not path.exists():
            return 0
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            run, step = state["run"], int(state["step"])
            if run == self._run():
                for name, part in self._parts().items():
                    part.load_state_dict(state["parts"][name])
        except (RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
            raise ZooError(f"{path}: damaged run state ({error}); remove it to train the member again") from error
        if run != self._run():
            raise ZooError(f"{path}: a run with other settings was begun here ({run}, now {self._run()}); use another folder")
        return step

    def _parts(self) -> dict[str, Any]:
        return {
            "generator": self.generator,
            "optimiser": self.optimiser,
            "discriminator": self.discriminator,
            "discriminator_optimiser": self.discriminator_optimiser,
        }

    def _run(self) -> str:
        settings = asdict(self.config)
        del settings["save_every"]  # when states are written changes nothing
        return json.dumps({"member": asdict(self.member), "config": settings}, sort_keys=True)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear rise over the first 2 % of the steps, then a cosine down to a tenth of the peak; ``step`` is 0-based. Pure."""
    rise = max(1, steps // 50)
    if step < rise:
        return peak * (step + 1) / rise
    progress = (step - rise) / max(1, steps - rise)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


def _descend(optimiser: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
    optimiser.step()
