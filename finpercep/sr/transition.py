"""One denoising step as a Gaussian: where it goes on average and how much fresh noise it adds. Pure tensor arithmetic.

Three forms of the same step, from a state x and the network's x̂0. All reach the same marginals; they differ in the noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from diffusers.utils.torch_utils import randn_tensor

from finpercep.errors import ConfigError
from finpercep.sr.noise_path import FlowMatching, Generators, Level, NoisePath

NoiseForm = Literal["ddim", "flow-grpo", "dance"]


@dataclass(frozen=True)
class Sampler:
    """How a policy is sampled.

    Attributes:
        num_steps: denoising steps of one sample.
        noise: form of a step: ``ddim`` for every path, ``flow-grpo`` and ``dance`` for flow matching alone.
        eta: how much fresh noise a step adds; 0 is deterministic (the ODE), 1 with ``ddim`` as much as DDPM.
    """

    num_steps: int
    noise: NoiseForm = "ddim"
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ConfigError(f"num_steps must be at least 1, got {self.num_steps}")
        if self.noise not in FORMS:
            raise ConfigError(f"noise must be one of {', '.join(FORMS)}, got {self.noise!r}")
        if not 0 <= self.eta < math.inf or (self.noise == "ddim" and self.eta > 1):
            raise ConfigError(f"eta must be finite and >= 0, and at most 1 with ddim, got {self.eta}")


@dataclass(frozen=True)
class Transition:
    """The distribution of the state after a step.

    Attributes:
        mean: (N, C, h, w), differentiable wherever the network was.
        std: (), >= 0; 0 is a deterministic step.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def sample(self, generators: Generators) -> torch.Tensor:
        """A state drawn from it. The noise is drawn for deterministic steps too, so that η does not move later draws."""
        return self.mean + self.std * randn_tensor(
            self.mean.shape, generator=list(generators), device=self.mean.device, dtype=self.mean.dtype
        )

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """Log-density of ``x`` at every position, (N, h, w) float32: the mean over channels, so that its mean over positions is
        the mean over all dimensions, as DDPO and GRPO take it.

        Raises:
            ValueError: the step is deterministic.
        """
        if self.std <= 0:
            raise ValueError("a deterministic step has no density")
        std = self.std.float()
        squared = ((x.float() - self.mean.float()) / std) ** 2
        return (-squared / 2 - std.log() - math.log(2 * math.pi) / 2).mean(dim=1)

    def kl(self, reference: Transition) -> torch.Tensor:
        """KL(this ‖ reference) = ‖μ − μ_ref‖² / 2s² at every position, (N, h, w), mean over channels; s is the same."""
        return (((self.mean.float() - reference.mean.float()) / self.std.float()) ** 2 / 2).mean(dim=1)


@dataclass(frozen=True)
class StepState:
    """What a form of the step starts from: state and x̂0 (N, C, h, w), the levels before and after it, and the prior, if any."""

    path: NoisePath
    x: torch.Tensor
    clean: torch.Tensor
    now: Level
    after: Level
    prior: torch.Tensor | None = None


class StepForm(Protocol):
    """(state, η) → where the step goes."""

    def __call__(self, state: StepState, eta: float) -> Transition:
        """Where the step goes."""
        ...


def ddim(state: StepState, eta: float) -> Transition:
    """X' = a'·x̂0 + √(s'² − σ²)·ε̂ + σ·z, σ = η·posterior std (DDIM, arXiv 2010.02502, eq. 12 and 16; any path)."""
    epsilon = (state.x - state.path.mean(state.clean, state.now, state.prior)) / state.now.noise
    std = eta * state.path.posterior_std(state.now, state.after)
    kept = (state.after.noise**2 - std**2).clamp_min(0).sqrt()
    return Transition(state.path.mean(state.clean, state.after, state.prior) + kept * epsilon, std)


def flow_grpo(state: StepState, eta: float) -> Transition:
    """μ = x(1 + s²Δ/2σ) + v(1 + s²(1−σ)/2σ)Δ, s = η√(σ/(1−σ)), std = s√−Δ   (Flow-GRPO, arXiv 2505.05470, eq. 9).

    At σ = 1 the next σ stands in the denominator. The last step, to σ = 0, is deterministic: no noise is left in the image.
    """
    sigma, following = _flow_levels(state)
    delta = following - sigma
    spread = eta * (sigma / (1 - torch.where(sigma >= 1, following, sigma))).sqrt()
    if following == 0:
        spread = torch.zeros_like(spread)
    velocity = (state.x - state.clean) / sigma
    mean = state.x * (1 + spread**2 * delta / (2 * sigma))
    mean = mean + velocity * (1 + spread**2 * (1 - sigma) / (2 * sigma)) * delta
    return Transition(mean, spread * (-delta).sqrt())


def dance(state: StepState, eta: float) -> Transition:
    """μ = x + Δv − ½η²·score·Δ, score = −(x − (1−σ)x̂0)/σ², std = η√−Δ   (DanceGRPO, arXiv 2505.07818, eq. 8).

    The last step is deterministic, as in `flow_grpo`.
    """
    sigma, following = _flow_levels(state)
    delta = following - sigma
    eta = 0.0 if following == 0 else eta
    velocity = (state.x - state.clean) / sigma
    score = -(state.x - (1 - sigma) * state.clean) / sigma**2
    return Transition(state.x + delta * velocity - eta**2 / 2 * score * delta, eta * (-delta).sqrt())


def _flow_levels(state: StepState) -> tuple[torch.Tensor, torch.Tensor]:
    if not isinstance(state.path, FlowMatching):
        raise ConfigError("noise flow-grpo and dance are for flow matching; use ddim with this policy")
    return state.now.noise, state.after.noise


FORMS: Mapping[str, StepForm] = {"ddim": ddim, "flow-grpo": flow_grpo, "dance": dance}
