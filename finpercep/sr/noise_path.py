"""Where a diffusion state stands between a clean image and noise, for each family of diffusion models; pure tensor arithmetic.

Every family here adds noise as x_t = a·x0 + b·y + s·ε with ε ~ N(0, 1); y is a prior that only residual shifting has (b = 1 − a).
A `NoisePath` knows (a, s) at each step and what the network predicts there; it knows no network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from finpercep.errors import ConfigError

Generators = Sequence[torch.Generator]
"""One generator an image, so that an image's noise does not depend on the batch it rides in."""


@dataclass(frozen=True)
class Level:
    """A point of the path, or one for each image of a batch.

    Attributes:
        timestep: what the network is told, () or (N,).
        signal: a in [0, 1], () or (N, 1, 1, 1), float32; 1 is clean.
        noise: s >= 0, of the same shape; 0 is clean.
    """

    timestep: torch.Tensor
    signal: torch.Tensor
    noise: torch.Tensor

    def to(self, device: torch.device) -> Level:
        """The same on ``device``."""
        return Level(self.timestep.to(device), self.signal.to(device), self.noise.to(device))


CLEAN = Level(torch.tensor(0), torch.tensor(1.0), torch.tensor(0.0))
"""After the last step."""


class NoisePath(ABC):
    """The levels of a sampler, and the arithmetic between state, network output, clean image and noise."""

    @abstractmethod
    def levels(self, num_steps: int) -> tuple[Level, ...]:
        """The levels before each of ``num_steps`` steps, noisiest first, and `CLEAN` after the last."""

    @abstractmethod
    def draw(self, generators: Generators) -> Level:
        """A level for each image as supervised training draws them."""

    @abstractmethod
    def clean(self, x: torch.Tensor, prediction: torch.Tensor, level: Level) -> torch.Tensor:
        """x̂0 from the state and the network's output there."""

    @abstractmethod
    def target(self, clean: torch.Tensor, noise: torch.Tensor, level: Level) -> torch.Tensor:
        """What the network should put out, given x0 and ε."""

    def mean(self, clean: torch.Tensor, level: Level, prior: torch.Tensor | None) -> torch.Tensor:  # noqa: ARG002
        """The state without its noise: a·x0, and b·y where there is a prior."""
        return level.signal * clean

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor, level: Level, prior: torch.Tensor | None) -> torch.Tensor:
        """x_t of x0 and ε."""
        return self.mean(clean, level, prior) + level.noise * noise

    def posterior_std(self, now: Level, after: Level) -> torch.Tensor:
        """Standard deviation of q(x_after | x_now, x0) in the Markov chain with these marginals (arXiv 2006.11239, eq. 7)."""
        kept = now.signal * after.noise / after.signal
        return after.noise / now.noise * (now.noise**2 - kept**2).clamp_min(0).sqrt()


class VariancePreserving(NoisePath):
    """a² + s² = 1: DDPM, DDIM, Stable Diffusion 1 and 2. Levels and prediction type are the scheduler's."""

    def __init__(self, scheduler: DDIMScheduler) -> None:
        self.scheduler = scheduler
        self.prediction_type = str(scheduler.config.prediction_type)
        if self.prediction_type not in ("epsilon", "sample", "v_prediction"):
            raise ConfigError(f"prediction_type must be epsilon, sample or v_prediction, got {self.prediction_type!r}")

    def levels(self, num_steps: int) -> tuple[Level, ...]:
        """See `NoisePath`; at `timesteps`."""
        return (*(self.at(timestep) for timestep in self.timesteps(num_steps)), CLEAN)

    def timesteps(self, num_steps: int) -> torch.Tensor:
        """``num_steps`` training timesteps, falling, as the scheduler spaces them. Raises `ConfigError`: not so many exist."""
        total = self.scheduler.config.num_train_timesteps
        if not 1 <= num_steps <= total:
            raise ConfigError(f"num_steps must lie in 1…{total}, got {num_steps}")
        self.scheduler.set_timesteps(num_steps)
        found: torch.Tensor = self.scheduler.timesteps[:num_steps].cpu()  # rounding lets trailing spacing end with one more, −1
        if found[0] >= total:
            offset = self.scheduler.config.steps_offset
            raise ConfigError(f"num_steps must be below {total} with leading spacing and steps_offset {offset}, got {num_steps}")
        return found

    def at(self, timestep: torch.Tensor) -> Level:
        """The level of a training timestep, () or (N,)."""
        alpha = self.scheduler.alphas_cumprod[timestep].float()
        alpha = alpha[:, None, None, None] if alpha.ndim else alpha
        return Level(timestep, alpha.sqrt(), (1 - alpha).sqrt())

    def draw(self, generators: Generators) -> Level:
        """Uniform over the training timesteps."""
        total = self.scheduler.config.num_train_timesteps
        return self.at(torch.cat([torch.randint(total, (1,), generator=generator) for generator in generators]))

    def clean(self, x: torch.Tensor, prediction: torch.Tensor, level: Level) -> torch.Tensor:
        """x̂0 of an ε, x0 or v prediction (arXiv 2202.00512, Appendix D)."""
        if self.prediction_type == "v_prediction":
            return level.signal * x - level.noise * prediction
        return prediction if self.prediction_type == "sample" else (x - level.noise * prediction) / level.signal

    def target(self, clean: torch.Tensor, noise: torch.Tensor, level: Level) -> torch.Tensor:
        """ε, x0 or v = a·ε − s·x0."""
        if self.prediction_type == "v_prediction":
            return level.signal * noise - level.noise * clean
        return clean if self.prediction_type == "sample" else noise


class FlowMatching(NoisePath):
    """a = 1 − σ, s = σ, v = ε − x0: rectified flow, Stable Diffusion 3. The levels are the scheduler's."""

    def __init__(self, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        self.scheduler = scheduler

    def levels(self, num_steps: int) -> tuple[Level, ...]:
        """See `NoisePath`."""
        self.scheduler.set_timesteps(num_steps)
        pairs = zip(self.scheduler.timesteps.cpu(), self.scheduler.sigmas[:-1].cpu().float(), strict=True)
        return (*(Level(timestep, 1 - sigma, sigma) for timestep, sigma in pairs), CLEAN)

    def draw(self, generators: Generators) -> Level:
        """σ logit-normal (arXiv 2403.03206, §3.1), then shifted as the scheduler shifts its own."""
        sigma = torch.cat([torch.randn(1, generator=generator) for generator in generators]).sigmoid()
        shift = float(self.scheduler.config.shift)
        sigma = shift * sigma / (1 + (shift - 1) * sigma)
        wide = sigma[:, None, None, None]
        return Level(sigma * self.scheduler.config.num_train_timesteps, 1 - wide, wide)

    def clean(self, x: torch.Tensor, prediction: torch.Tensor, level: Level) -> torch.Tensor:
        """x̂0 = x − σ·v."""
        return x - level.noise * prediction

    def target(self, clean: torch.Tensor, noise: torch.Tensor, level: Level) -> torch.Tensor:  # noqa: ARG002
        """V = ε − x0."""
        return noise - clean
