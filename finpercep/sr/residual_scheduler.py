"""Residual shifting (ResShift, arXiv 2307.12348): the chain shifts from the clean image to the LR one, and adds little noise.

    x_t = x0 + η_t·(y − x0) + κ·√η_t·ε                                             eq. 2
    q(x_s | x_t, x0) = N((η_s/η_t)·x_t + ((η_t − η_s)/η_t)·x0, κ²·η_s·(η_t − η_s)/η_t)     eq. 6, s < t any two levels

`ResidualShiftScheduler` is a diffusers scheduler; `ResidualShift` is the same as a `NoisePath`.
"""

from __future__ import annotations

import math

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config

from finpercep.errors import ConfigError
from finpercep.sr.noise_path import CLEAN, Generators, Level, NoisePath


class ResidualShiftScheduler(SchedulerMixin, ConfigMixin):
    """The levels η_t and a step of the chain.

    Args:
        num_train_timesteps: T; the network is told t in 0 … T − 1.
        kappa: κ, how much noise goes with a unit of shift.
        power: p; the larger, the longer η_t stays small (eq. 11).
        first_noise: κ·√η_1, the noise of the first level.
        last_eta: η_T, nearly 1: the chain ends at y and noise.
        prediction_type: ``sample``: the network predicts x0.
    """

    order = 1

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 15,
        kappa: float = 2.0,
        power: float = 0.3,
        first_noise: float = 0.04,
        last_eta: float = 0.99,
        prediction_type: str = "sample",
    ) -> None:
        if prediction_type != "sample":
            raise ConfigError(f"prediction_type must be sample, got {prediction_type!r}")
        if num_train_timesteps < 2:
            raise ConfigError(f"num_train_timesteps must be at least 2, got {num_train_timesteps}")
        first_eta = min((first_noise / kappa) ** 2, 0.001)
        if not 0 < first_eta < last_eta < 1:
            raise ConfigError(f"0 < first eta < last eta < 1 is needed, got {first_eta} and {last_eta}")
        growth = math.log(last_eta / first_eta)
        position = torch.linspace(0, 1, num_train_timesteps, dtype=torch.float64) ** power
        self.etas = (math.log(first_eta) + growth * position).exp().float()
        """(T,), rising: √η_t is geometric in a power of t (eq. 10 and 11)."""
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Evenly spaced levels from the last one down. Raises `ConfigError` when there are not so many."""
        total = self.config.num_train_timesteps
        if not 1 <= num_inference_steps <= total:
            raise ConfigError(f"num_steps must lie in 1…{total}, got {num_inference_steps}")
        steps = torch.linspace(total, total / num_inference_steps, num_inference_steps, dtype=torch.float64)
        self.timesteps = (steps.round().long() - 1).to(device)

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The state with the variance of data of unit variance: x / √(1 + κ²η)."""
        return sample / (1 + self.config.kappa**2 * self._eta(timestep, sample)).sqrt()

    def add_noise(
        self, original_samples: torch.Tensor, lr_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """x_t (eq. 2)."""
        eta = self._eta(timesteps, original_samples)
        return original_samples + eta * (lr_samples - original_samples) + self.config.kappa * eta.sqrt() * noise

    def step(self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The state at the next of ``timesteps``, from x̂0 (eq. 6); x̂0 itself after the last."""
        place = int((self.timesteps == timestep.to(self.timesteps.device)).nonzero())
        if place + 1 == len(self.timesteps):
            return model_output
        eta, after = (self._eta(t, sample) for t in self.timesteps[place : place + 2])
        mean = after / eta * sample + (eta - after) / eta * model_output
        return mean + self.config.kappa * (after * (eta - after) / eta).sqrt() * noise

    def _eta(self, timestep: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        eta = self.etas[timestep.cpu()].to(like.device)
        return eta[:, None, None, None] if eta.ndim else eta


class ResidualShift(NoisePath):
    """a = 1 − η, s = κ√η, prior y with b = η. The levels are the scheduler's; η = 1 of a `Sampler` is the paper's sampler."""

    def __init__(self, scheduler: ResidualShiftScheduler) -> None:
        self.scheduler = scheduler

    def levels(self, num_steps: int) -> tuple[Level, ...]:
        """See `NoisePath`."""
        self.scheduler.set_timesteps(num_steps)
        return (*(self.at(timestep) for timestep in self.scheduler.timesteps.cpu()), CLEAN)

    def at(self, timestep: torch.Tensor) -> Level:
        """The level of a training timestep, () or (N,)."""
        eta = self.scheduler.etas[timestep]
        eta = eta[:, None, None, None] if eta.ndim else eta
        return Level(timestep, 1 - eta, self.scheduler.config.kappa * eta.sqrt())

    def draw(self, generators: Generators) -> Level:
        """Uniform over the training timesteps."""
        total = self.scheduler.config.num_train_timesteps
        return self.at(torch.cat([torch.randint(total, (1,), generator=generator) for generator in generators]))

    def mean(self, clean: torch.Tensor, level: Level, prior: torch.Tensor | None) -> torch.Tensor:
        """(1 − η)·x0 + η·y."""
        assert prior is not None
        return level.signal * clean + (1 - level.signal) * prior

    def posterior_std(self, now: Level, after: Level) -> torch.Tensor:
        """κ·√(η'(η − η')/η)."""
        return after.noise * ((after.signal - now.signal) / (1 - now.signal)).clamp_min(0).sqrt()

    def clean(self, x: torch.Tensor, prediction: torch.Tensor, level: Level) -> torch.Tensor:  # noqa: ARG002
        """The network's output is x̂0."""
        return prediction

    def target(self, clean: torch.Tensor, noise: torch.Tensor, level: Level) -> torch.Tensor:  # noqa: ARG002
        """x0."""
        return clean
