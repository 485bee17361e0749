"""SR models with the real protocol and a known formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from data_synth.shards import Networks
from data_synth.sr_models.protocol import Span, SRCall


class NearestSR:
    """Repeats pixels, plus noise that depends on a call's seed and ``strength`` alone. Records the batches it was given."""

    settings: Mapping[str, Span] = {"strength": Span(0.5, 1.5)}

    def __init__(self, name: str = "nearest", version: str = "1", *, family: str = "regression", scale: int = 4) -> None:
        self.name, self.version, self.family, self.scale = name, version, family, scale
        self.batches: list[list[SRCall]] = []

    def covers(self, source_id: str) -> bool:
        return True

    def __call__(self, lr: torch.Tensor, calls: Sequence[SRCall]) -> torch.Tensor:
        self.batches.append(list(calls))
        up = lr.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)
        noise = [torch.randn(up.shape[1:], generator=torch.Generator().manual_seed(call.seed)) for call in calls]
        strength = torch.tensor([call.settings["strength"] for call in calls])[:, None, None, None]
        return up + 0.02 * strength * torch.stack(noise)


class BrokenSR(NearestSR):
    """Breaks the protocol in a chosen way."""

    def __init__(self, fault: str) -> None:
        super().__init__("broken")
        self.fault = fault

    def __call__(self, lr: torch.Tensor, calls: Sequence[SRCall]) -> torch.Tensor:
        good = super().__call__(lr, calls)
        if self.fault == "nan":
            good[0, 0, 0, 0] = torch.nan
            return good
        return good[..., ::2, ::2]


def nearest_network() -> Networks:
    return Networks({"nearest": NearestSR()})
