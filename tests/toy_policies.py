"""Diffusion policies whose answers are known in closed form, and a small convolutional one on a flow path."""

from __future__ import annotations

import json

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch.nn import functional as F

from finpercep.reward import Rewards
from finpercep.sr.diffusion import DiffusionPolicy
from finpercep.sr.noise_path import FlowMatching, Level, VariancePreserving


def variance_preserving():
    return VariancePreserving(
        DDIMScheduler(
            num_train_timesteps=1000,
            beta_schedule="squaredcos_cap_v2",
            prediction_type="sample",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
        )
    )


def flow_matching():
    return FlowMatching(FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000))


class _Means(torch.nn.Module):
    def __init__(self, mean):
        super().__init__()
        self.mean = torch.nn.Parameter(mean.clone())


class GaussianPolicy(DiffusionPolicy):
    """The exact denoiser of images that are N(mean, spread²) at every position: x̂0 = E[x0 | x]. Its mean is trained.

    States are images; the LR image is as large as they are and conditions nothing.
    """

    name = "gaussian"

    def __init__(self, mean, sampler, *, spread=0.1, path=None):
        self.network, self.spread = _Means(mean), spread
        super().__init__(path or variance_preserving(), sampler, scale=1)

    def networks(self):
        return {"network": self.network}

    def condition(self, lr):
        return lr

    def encode(self, images, condition):
        return images

    def decode(self, clean, condition):
        return clean

    def state_shape(self, condition):
        return (len(condition), *self.network.mean.shape)

    def posterior(self, x, level):
        """E[x0 | x]."""
        gain = level.signal * self.spread**2 / ((level.signal * self.spread) ** 2 + level.noise**2)
        return self.network.mean + gain * (x - level.signal * self.network.mean)

    def predict(self, x, timestep, condition):
        if isinstance(self.path, FlowMatching):
            sigma = timestep / self.path.scheduler.config.num_train_timesteps
            sigma = sigma[:, None, None, None] if sigma.ndim else sigma
            level = Level(timestep, 1 - sigma, sigma)
            return (x - self.posterior(x, level)) / sigma
        return self.posterior(x, self.path.at(timestep))

    def save_pretrained(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "policy.json").write_text(json.dumps(self.network.mean.tolist()))


class _StepBiases(torch.nn.Module):
    def __init__(self, steps):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.linspace(-0.1, 0.1, steps))


class StepwisePolicy(GaussianPolicy):
    """As its base, but what is trained is one number a step, added to that step's x̂0: gradients show which steps were reached."""

    def __init__(self, mean, sampler, **settings):
        super().__init__(mean, sampler, **settings)
        self.network.requires_grad_(False)
        self.biases = _StepBiases(sampler.num_steps)

    def networks(self):
        return {"biases": self.biases}

    def predict(self, x, timestep, condition):
        index = [int(level.timestep) for level in self.levels[:-1]].index(int(timestep))
        return super().predict(x, timestep, condition) + self.biases.bias[index] * torch.tanh(x)


class _Convolutions(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(7, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 3, 3, padding=1)
        )

    def forward(self, x, sigma, upsampled):
        plane = torch.as_tensor(sigma).reshape(-1, 1, 1, 1).expand(len(x), 1, *x.shape[-2:])
        return self.layers(torch.cat([x, upsampled, plane], dim=1))


class ConvolutionalFlow(DiffusionPolicy):
    """Rectified flow on residuals to the enlarged LR image, a few hundred parameters, random weights."""

    name = "toy-flow"

    def __init__(self, sampler):
        torch.manual_seed(0)
        self.network = _Convolutions()
        super().__init__(flow_matching(), sampler, scale=4)

    def networks(self):
        return {"network": self.network}

    def condition(self, lr):
        return F.interpolate(lr, scale_factor=4)

    def encode(self, images, condition):
        return (images - condition) / 0.2

    def decode(self, clean, condition):
        return (condition + 0.2 * clean).clamp(0, 1)

    def state_shape(self, condition):
        return condition.shape

    def predict(self, x, timestep, condition):
        return self.network(x, timestep / 1000, condition)

    def save_pretrained(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "policy.json").write_text("{}")


class BrightnessReward:
    """A `MapRewardFn` with a known gradient: R is the mean of the image, the map what is missing to white."""

    def __init__(self):
        self.calls = []

    def __call__(self, images):
        self.calls.append((tuple(images.shape), images.requires_grad))
        mean = images.mean(dim=(1, 2, 3))
        return Rewards(mean, mean.detach(), torch.zeros_like(mean), torch.zeros_like(mean))

    def with_map(self, images):
        return self(images), (1 - images).mean(dim=1)


class Collect:
    """`Optimise` that only adds up gradients, or hands them to plain gradient descent."""

    def __init__(self, policy, lr=0.0):
        self.parameters, self.lr, self.losses, self.steps = list(policy.parameters()), lr, [], 0

    def backward(self, loss):
        self.losses.append(loss.item())
        loss.backward()

    def step(self):
        self.steps += 1
        if self.lr:
            with torch.no_grad():
                for parameter in self.parameters:
                    parameter -= self.lr * parameter.grad
                    parameter.grad = None

    def gradient(self):
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        return torch.cat([gradient.flatten() for gradient in found])
