"""Stand-ins with the real interfaces: a small predictor with a known formula, and a transport that is a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx
import torch
from torch.nn.functional import avg_pool2d

from data_synth.schema.pixels import RGB8
from finpercep.predictor import Assessment, ScoreBatch
from finpercep.regions import find_regions
from finpercep.reward import RewardWeights, fuse
from rm_server.registry import Registry


class FakePredictor:
    """Deterministic and differentiable: the map is local contrast, the score falls with it and depends on colour.

    ``spoil`` may change a batch's result, to play a model that fails; ``batches`` records the shapes that were scored.
    """

    name = "fake"
    min_side = 32
    untiled = 1024 * 1024
    takes_lr = False

    def __init__(
        self, rung: str = "RM_1", *, has_map: bool = True, spoil: Callable[[ScoreBatch], ScoreBatch] | None = None
    ) -> None:
        self.rung, self.digest, self.has_map, self.spoil = rung, f"digest-of-{rung}", has_map, spoil
        self.device = torch.device("cpu")
        self.batches: list[tuple[int, ...]] = []

    def score(self, images: torch.Tensor) -> ScoreBatch:
        assert images.dtype == torch.float32
        self.batches.append(tuple(images.shape))
        batch = self.model(images)
        return self.spoil(batch) if self.spoil else batch

    def model(self, images: torch.Tensor) -> ScoreBatch:
        """What it was made to be; `score` may be spoilt."""
        luma = images.mean(dim=1, keepdim=True)
        contrast = (luma - avg_pool2d(luma, 3, stride=1, padding=1, count_include_pad=False)) ** 2
        degradation = 1 - torch.exp(-40 * contrast[:, 0])
        colour = (torch.cos(3 * images) * torch.tensor([1.0, -0.5, 0.25])[:, None, None]).mean(dim=(1, 2, 3))
        score = torch.sigmoid(1 + colour - 3 * degradation.mean(dim=(1, 2)) * self.has_map)
        return ScoreBatch(score, degradation if self.has_map else None)

    def assess(self, pixels: RGB8, weights: RewardWeights | None = None) -> Assessment:
        with torch.no_grad():
            batch = self.score(torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255)
            rewards = fuse(batch.score, batch.map, weights or RewardWeights())
        if batch.map is None:
            return Assessment(float(batch.score), float(rewards.reward), None, None, None, ())
        worst, mean = float(rewards.max_degradation), float(rewards.mean_degradation)
        regions = find_regions(batch.map[0])
        return Assessment(float(batch.score), float(rewards.reward), batch.map[0], worst, mean, regions)


def fake_ladder() -> dict[str, FakePredictor]:
    """RM_0 without a map, RM_1 and RM_2 with one."""
    return {rung: FakePredictor(rung, has_map=rung != "RM_0") for rung in ("RM_0", "RM_1", "RM_2")}


def registry_of(predictors: Mapping[str, Any]) -> Registry:
    """The rungs of a server with one device."""
    return Registry({rung: [predictor] for rung, predictor in predictors.items()})


class AppTransport(httpx.BaseTransport):
    """A synchronous client's way into an ASGI application in this process: no sockets, no threads of its own."""

    def __init__(self, app: Any) -> None:
        self._inner = httpx.ASGITransport(app, raise_app_exceptions=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        chunks = list(request.stream)  # type: ignore[arg-type]  # a synchronous client's stream

        async def body() -> AsyncIterator[bytes]:
            for chunk in chunks:
                yield chunk

        async def answer() -> httpx.Response:
            again = httpx.Request(request.method, request.url, headers=request.headers, content=body())
            response = await self._inner.handle_async_request(again)
            return httpx.Response(response.status_code, headers=response.headers, content=await response.aread())

        return asyncio.run(answer())


def photo(height: int = 48, width: int = 64, seed: int = 0) -> RGB8:
    """A smooth random picture, uint8 H×W×3."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    noisy = smooth + 0.1 * torch.rand(1, 3, height, width, generator=generator)
    pixels: RGB8 = (noisy.clamp(0, 1)[0].permute(1, 2, 0) * 255).round().byte().numpy()
    return pixels
