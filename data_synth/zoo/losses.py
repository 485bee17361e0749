"""What zoo members are trained for. Pure functions of tensors: images are N×3×H×W in [0, 1], logits of any shape.

Every function returns a scalar, the mean over everything; lower is better.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def charbonnier(sr: torch.Tensor, hr: torch.Tensor, eps: float = 1e-3) -> torch.Tensor:
    """Mean √((sr − hr)² + ε²) (Charbonnier et al., 1994; for SR: Lai et al., 2017, LapSRN, eq. 5)."""
    return torch.sqrt((sr - hr) ** 2 + eps**2).mean()


def low_frequency_l1(sr: torch.Tensor, hr: torch.Tensor, factor: int) -> torch.Tensor:
    """L1 between both images averaged over ``factor``×``factor`` px: colours and shapes are held, detail is free."""
    return F.l1_loss(F.avg_pool2d(sr, factor), F.avg_pool2d(hr, factor))


def hinge_discriminator(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """E[max(0, 1 − D(real))] + E[max(0, 1 + D(fake))] (Lim & Ye, 2017, Geometric GAN, arXiv 1705.02894)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: torch.Tensor) -> torch.Tensor:
    """−E[D(fake)] (Lim & Ye, 2017)."""
    return -fake.mean()


def relativistic_discriminator(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """−E[log σ(C(r) − E C(f))] − E[log(1 − σ(C(f) − E C(r)))]: relativistic average GAN (Jolicoeur-Martineau, 2018, §4.2)."""
    return F.softplus(fake.mean() - real).mean() + F.softplus(fake - real.mean()).mean()


def relativistic_generator(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """The same with real and fake exchanged: the generator wants its images more real than the average photo's patch."""
    return relativistic_discriminator(fake, real)


def feature_l1(sr: Sequence[torch.Tensor], hr: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean over levels of the L1 between features N×C×h×w, in units of the mean feature of ``hr`` (Johnson et al., 2016)."""
    return torch.stack([F.l1_loss(a, b) / b.mean().clamp_min(1e-6) for a, b in zip(sr, hr, strict=True)]).mean()


def texture_l1(sr: Sequence[torch.Tensor], hr: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean over levels of the L1 between Gram matrices, in units of the mean entry of ``hr``'s (Gatys et al., 2015, eq. 4)."""
    grams = [(gram(a), gram(b)) for a, b in zip(sr, hr, strict=True)]
    return torch.stack([F.l1_loss(a, b) / b.mean().clamp_min(1e-6) for a, b in grams]).mean()


def gram(features: torch.Tensor) -> torch.Tensor:
    """Uncentred covariance of channels: N×C×h×w → N×C×C, divided by h·w."""
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[-1]
