"""Any SR network, broken on purpose for the length of a call: endless faults of the kind real networks make.

After DeepAugment (Hendrycks et al. 2021, arXiv 2006.16241), which distorts weights and activations of image-to-image networks at
random. Deviations: one fault a call; the input's size or noise level may be wrong instead; and the fault's magnitude is searched,
on a small window, so that the output changes by the amount drawn: how much a network bears differs by orders of magnitude
from layer to layer. An output that has lost its image is made again with half the fault.
Calls share the network: not thread-safe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, TypeGuard

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data_synth.device import device_mark
from data_synth.sr_models.input_faults import INPUT_FAULTS, InputFault, draw_input_fault
from data_synth.sr_models.low_band import low_band, with_low_band_of
from data_synth.sr_models.network_faults import NETWORK_FAULTS, Fault, draw_fault
from data_synth.sr_models.protocol import Span, SRCall, SRModel, SRModelError

VERSION = "1"
"""Raise it whenever a change here, in `network_faults` or in `input_faults` changes an output."""

KIND, STRENGTH = "perturbation", "perturbation_strength"
PERTURBATIONS: tuple[str, ...] = (*NETWORK_FAULTS, *INPUT_FAULTS)
"""By the integer setting ``perturbation``."""
DEFAULT_STRENGTH = Span(0.012, 0.08, "log")
"""Of the setting ``perturbation_strength``: RMS change of the output, in [0, 1] units; ``wrong_scale`` has none to choose."""

_WINDOW = 24
"""Side, in LR px, of the window the magnitude is searched on."""
_TRIALS = 4
_CLOSE = 1.4
"""Ratio of wanted and found change at which the search ends."""
_MAGNITUDES = (0.003, 4.0)
_UNMOVED = 0.3
"""Share of the wanted change below which another fault is drawn: some layers hardly matter."""
_DRAWS = 3
_RETRIES = 3
_LOST = 0.1
"""Mean absolute difference, in [0, 1] units, of an output's low band from the LR image's at which its image counts as lost."""
_KEPT_LOW_SHARE = 0.7
"""Share of calls whose output keeps the LR image's low frequencies: SR models seldom get those wrong, broken ones often do."""


class NetworkSR(SRModel, Protocol):
    """An SR model whose network can be reached."""

    @property
    def module(self) -> nn.Module:
        """The network that `__call__` runs."""
        ...


def is_network(model: SRModel) -> TypeGuard[NetworkSR]:
    """Whether ``model`` is a `NetworkSR`, and so can be perturbed."""
    return isinstance(getattr(model, "module", None), nn.Module)


class PerturbedSR:
    """`SRModel` that breaks ``base`` anew in each call. Its settings are the base's, which perturbation, and its strength."""

    family = "perturbed"

    def __init__(self, base: NetworkSR, *, strength: Span = DEFAULT_STRENGTH) -> None:
        if not is_network(base):
            raise SRModelError(f"SR model {base.name}: only a model with a network (`module`) can be perturbed")
        self._base = base
        self.name = f"{base.name}~perturbed"
        mark = device_mark(next((weight.device for weight in base.module.parameters()), torch.device("cpu")))
        self.version = f"{base.version.removesuffix(mark)}~{VERSION}{mark}"
        self.scale = base.scale
        self.settings: Mapping[str, Span] = {
            **base.settings,
            KIND: Span(0, len(PERTURBATIONS) - 1, "integer"),
            STRENGTH: strength,
        }

    def covers(self, source_id: str) -> bool:
        """What the base covers."""
        return self._base.covers(source_id)

    @torch.no_grad()
    def __call__(self, lr: torch.Tensor, calls: Sequence[SRCall]) -> torch.Tensor:
        """SR images of ``lr`` (N×3×h×w float32 in [0, 1]) on the CPU; one by one: every call breaks the network differently."""
        if len(calls) != len(lr):
            raise SRModelError(f"SR model {self.name}: expected one call an image, got {len(calls)} for {len(lr)} images")
        return torch.cat([self._one(image[None], call) for image, call in zip(lr, calls, strict=True)])

    def _one(self, lr: torch.Tensor, call: SRCall) -> torch.Tensor:
        """The perturbed output; with half the fault until its image is there, in the end the base's own."""
        kind, strength = PERTURBATIONS[round(call.settings[KIND])], call.settings[STRENGTH]
        inner = replace(call, settings={name: call.settings[name] for name in self._base.settings})
        run, magnitude, allowed = self._tuned(lr, inner, kind, strength)
        for _ in range(_RETRIES + 1):
            sr = run(lr, magnitude)
            if not is_lost(sr, lr) and _from_bicubic(sr, lr) <= allowed:
                return sr
            magnitude /= 2
        return self._base(lr, [inner])

    def _tuned(self, lr: torch.Tensor, call: SRCall, kind: str, strength: float) -> tuple[_Run, float, float]:
        """A fault that matters, the magnitude at which it changes the output by about ``strength``, and how far the whole image
        may then be from bicubic: the window may have missed what the fault does elsewhere.
        """
        window = busiest_window(lr, _WINDOW)
        draws = (self._draw(kind, call, np.random.default_rng([call.seed, PERTURBATIONS.index(kind), i])) for i in range(_DRAWS))
        if kind == "wrong_scale":  # drawn as it is: a larger input costs much and changes little
            return next(draws), 1.0, math.inf
        intact, wanted = self._base(window, [call]), min(strength, _bearable(window, kind))
        tuned: list[tuple[_Run, _Trial]] = []
        for run in draws:
            tuned.append((run, _search(run, window, intact, wanted=wanted)))
            if tuned[-1][1].ratio > _UNMOVED:
                break
        run, found = max(tuned, key=lambda pair: min(pair[1].ratio, _UNMOVED))
        return run, found.magnitude, _from_bicubic(intact, window) + 2 * wanted

    def _draw(self, kind: str, call: SRCall, rng: np.random.Generator) -> _Run:
        keeps_low = bool(rng.uniform() < _KEPT_LOW_SHARE)
        if kind in INPUT_FAULTS:
            return _Run(self._base, call, keeps_low, break_input=draw_input_fault(kind, rng))
        return _Run(self._base, call, keeps_low, fault=draw_fault(self._base.module, kind, rng))


@dataclass(frozen=True)
class _Run:
    """A drawn fault, of the network or of its input, and the call it befalls."""

    base: NetworkSR
    call: SRCall
    keeps_low: bool
    fault: Fault | None = None
    break_input: InputFault | None = None

    def __call__(self, lr: torch.Tensor, magnitude: float) -> torch.Tensor:
        """SR image of ``lr`` (1×3×h×w) with the fault at ``magnitude``."""
        with self.fault.at(magnitude) if self.fault else nullcontext():
            sr = self.base(self.break_input(lr, magnitude) if self.break_input else lr, [self.call])
        return self.finished(sr, lr)

    def finished(self, sr: torch.Tensor, lr: torch.Tensor) -> torch.Tensor:
        """``sr`` at the size that belongs to ``lr``, with its low band where that is kept."""
        size = (lr.shape[-2] * self.base.scale, lr.shape[-1] * self.base.scale)
        if sr.shape[-2:] != size:
            sr = F.interpolate(sr, size, mode="bicubic", align_corners=False, antialias=True)
        return with_low_band_of(sr, lr) if self.keeps_low else sr


@dataclass(frozen=True)
class _Trial:
    magnitude: float
    ratio: float  # found change over wanted change


def _search(run: _Run, window: torch.Tensor, intact: torch.Tensor, *, wanted: float) -> _Trial:
    """The trial whose change of ``intact`` is nearest to ``wanted`` (RMS); change and magnitude are about proportional."""
    low, high = _MAGNITUDES
    intact = run.finished(intact, window)
    magnitude, best = 0.3, _Trial(low, 0.0)
    for _ in range(_TRIALS):
        change = float((run(window, magnitude) - intact).square().mean().sqrt())
        trial = _Trial(magnitude, change / wanted if math.isfinite(change) else math.inf)
        if _misses(trial) < _misses(best):
            best = trial
        magnitude = min(high, max(low, magnitude / min(max(trial.ratio, 0.05), 20)))
        if _misses(trial) < _CLOSE or magnitude == trial.magnitude:
            break
    return best


def _misses(trial: _Trial) -> float:
    """By what factor, at least 1, a trial misses what is wanted; infinite when nothing changed."""
    return max(trial.ratio, 1 / trial.ratio) if 0 < trial.ratio < math.inf else math.inf


def _bearable(lr: torch.Tensor, kind: str) -> float:
    """RMS change beyond which the image would drown: a dark or flat one bears little, and noise shows where nothing else is."""
    contrast = float((lr - low_band(lr, 4)).square().mean().sqrt())
    return 0.01 + 0.5 * contrast if kind == "extra_noise" else 0.015 + 1.5 * contrast


def _from_bicubic(sr: torch.Tensor, lr: torch.Tensor) -> float:
    """RMS difference of ``sr`` from a bicubic upsampling of ``lr``."""
    up = F.interpolate(lr, sr.shape[-2:], mode="bicubic", align_corners=False)
    return float((sr - up).square().mean().sqrt())


def busiest_window(lr: torch.Tensor, side: int) -> torch.Tensor:
    """The square of ``lr`` (1×3×h×w) with most detail among nine, of at most ``side`` px: faults show there."""
    height, width = min(side, lr.shape[-2]), min(side, lr.shape[-1])
    corners = [(top, left) for top in _starts(lr.shape[-2], height) for left in _starts(lr.shape[-1], width)]
    windows = [lr[..., top : top + height, left : left + width] for top, left in corners]
    return max(windows, key=lambda window: float((window - low_band(window, 4)).square().mean()))


def _starts(length: int, side: int) -> list[int]:
    return [0, (length - side) // 2, length - side]


def is_lost(sr: torch.Tensor, lr: torch.Tensor) -> bool:
    """Whether ``sr`` no longer shows ``lr``: not finite, or its low band is elsewhere."""
    if not torch.isfinite(sr).all():
        return True
    difference = F.adaptive_avg_pool2d(sr, (lr.shape[-2], lr.shape[-1])).clamp(0, 1) - lr
    return bool(low_band(difference, 4).abs().mean() > _LOST)
