"""Images → numbers, maps and gradients, in batches, on one device or several. Knows no HTTP and no picture formats."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from finpercep.local_reward import as_pixels
from finpercep.reward import RewardWeights, fuse
from rm_server.batching import Batcher, BatchLimits, DeadlinePassed, Done, HouseFull, Job, Visit
from rm_server.problems import Problem, busy
from rm_server.registry import ServedRung

if TYPE_CHECKING:
    from finpercep.predictor import Predictor, ScoreBatch

REWARD = 1
"""Column of the reward in `ImageResult.numbers`."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ImageWork:
    """One image to score.

    Attributes:
        rung: by which.
        image: (3, H, W), any dtype of the wire, on the CPU.
        weights: of the reward.
        grad: whether ∂R/∂image is wanted.
        map: whether the map is wanted.
        lr: (3, h, w), the low-resolution picture it was made from, for a rung that takes one.
    """

    rung: ServedRung
    image: torch.Tensor
    weights: RewardWeights
    grad: bool = False
    map: bool = False
    lr: torch.Tensor | None = None

    @property
    def key(self) -> Hashable:
        """Works of equal keys may share a batch: nothing is ever padded."""
        return (self.rung.digest, self.image.shape, None if self.lr is None else self.lr.shape, self.grad)

    @property
    def pixels(self) -> int:
        """Its size."""
        return int(self.image.shape[-2] * self.image.shape[-1])


@dataclass(frozen=True, eq=False)
class ImageResult:
    """One image's results, on the CPU.

    Attributes:
        numbers: float32 (4,): score, reward, max and mean degradation.
        map: float32 (H, W), or None.
        grad: float32 (3, H, W), or None.
    """

    numbers: torch.Tensor
    map: torch.Tensor | None
    grad: torch.Tensor | None

    def is_finite(self) -> bool:
        """Whether every value is a number."""
        parts = (self.numbers, self.map, self.grad)
        return all(bool(part.isfinite().all()) for part in parts if part is not None)


Outcome = Done[ImageResult] | Problem
ImageVisit = Visit[ImageWork, ImageResult]


class Engine:
    """The batcher over one thread, or several, for each device.

    On CPUs several batches at a time, each on a share of the cores, are faster than one on all of them: threads that work on one
    batch wait for each other, and for whoever else needs a core. A batch that is alone still gets all cores, on the first lane:
    were there a second team of threads, OpenMP would count more of them than cores, and let them sleep wherever they wait for
    each other (a lone 256² image then takes half as long again).

    Args:
        devices: how many; a `ServedRung` has a replica for each.
        limits: of batches and of the house.
        lanes: batches that run at once on one device.
        threads: cores for all lanes of a device together; torch's number of threads when absent.
        bf16: whether convolutions run in bfloat16.
        request_seconds: longest time an image may wait for its turn.
    """

    def __init__(
        self,
        devices: int,
        limits: BatchLimits,
        *,
        lanes: int = 1,
        threads: int | None = None,
        bf16: bool = False,
        request_seconds: float = 120.0,
    ) -> None:
        self._cores, self._lanes, self._bf16 = threads or torch.get_num_threads(), lanes, bf16
        runners = [functools.partial(self._run, device, lane) for device in range(devices) for lane in range(lanes)]
        self.batcher: Batcher[ImageWork, ImageResult] = Batcher(runners, limits)
        self.request_seconds = request_seconds

    def _run(self, device: int, lane: int, works: Sequence[ImageWork]) -> list[ImageResult | Exception]:
        alone = lane == 0 and self.batcher.is_calm
        share = self._cores if alone else max(1, self._cores // self._lanes)
        if share != torch.get_num_threads():
            torch.set_num_threads(share)  # of this thread, and of threads that begin later
        return run_batch(device, works, bf16=self._bf16)

    def enter(self, pixels: int) -> ImageVisit:
        """Room for ``pixels``.

        Raises:
            Problem: the house is full.
        """
        try:
            return self.batcher.enter(pixels)
        except HouseFull as error:
            raise busy(str(error), error.retry_after) from error

    async def score(self, visit: ImageVisit, works: Sequence[ImageWork | Problem]) -> list[Outcome]:
        """An outcome for each; what came as a problem goes as that problem."""
        deadline = self.batcher.clock() + self.request_seconds
        jobs = [Job(work, work.key, work.pixels, deadline) for work in works if isinstance(work, ImageWork)]
        futures = iter(visit.submit(jobs))
        waited = [work if isinstance(work, Problem) else asyncio.wrap_future(next(futures)) for work in works]
        await asyncio.gather(*(one for one in waited if isinstance(one, asyncio.Future)), return_exceptions=True)
        return [one if isinstance(one, Problem) else _outcome(one, work) for one, work in zip(waited, works, strict=True)]

    def close(self) -> None:
        """Finish the batches that run, drop what waits."""
        self.batcher.close()


def _outcome(future: asyncio.Future[Done[ImageResult]], work: ImageWork | Problem) -> Outcome:
    assert isinstance(work, ImageWork)
    if future.cancelled():
        return Problem("not-ready", "the server is going down", headers={"Retry-After": "5"})
    match future.exception():
        case None:
            return future.result()
        case Problem() as problem:
            return problem
        case DeadlinePassed():
            return busy("the image's turn did not come in time", 5)
        case error:
            log.error("%s failed on an image of %s", work.rung.rung, tuple(work.image.shape), exc_info=error)
            return Problem("failed", f"{work.rung.rung} failed on this image; the server's log says why")


def run_batch(device: int, works: Sequence[ImageWork], *, bf16: bool = False) -> list[ImageResult | Exception]:
    """One forward over images of one size, and one backward if gradients are wanted.

    Images are independent, so the gradient of the sum of rewards by an image is that of its own reward. A large image without
    gradient goes through in tiles.
    """
    first = works[0]
    predictor = first.rung.replicas[device]
    on = predictor.device
    if first.pixels > predictor.untiled and not first.grad:
        return [error for work in works for error in _finite(work.rung, _tiled(predictor, work))]
    images = _stacked([work.image for work in works], on).detach().requires_grad_(first.grad)
    lr = None if first.lr is None else _stacked([work.lr for work in works if work.lr is not None], on)
    with torch.set_grad_enabled(first.grad), torch.autocast(on.type, torch.bfloat16, enabled=bf16):
        batch = predictor.score(images) if lr is None else predictor.score(images, lr)
    with torch.set_grad_enabled(first.grad):
        numbers = _numbers(batch, [work.weights for work in works])
        grads = torch.autograd.grad(numbers[:, REWARD].sum(), images)[0].cpu() if first.grad else None
    maps = None
    if batch.map is not None and any(work.map for work in works):
        maps = batch.map.detach().float().cpu()
    numbers = numbers.detach().cpu()
    results = [
        ImageResult(
            numbers[index],
            None if maps is None or not work.map else maps[index],
            None if grads is None else grads[index],
        )
        for index, work in enumerate(works)
    ]
    return _finite(first.rung, results)


def _stacked(images: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """N×3×H×W float32 on ``device``; what it is made of may have different dtypes."""
    if len({image.dtype for image in images}) > 1:
        images = [as_pixels(image, torch.device("cpu")) for image in images]
    batch = torch.stack(list(images))
    if device.type == "cuda":
        batch = batch.pin_memory().to(device, non_blocking=True)
    return as_pixels(batch, device)


def _numbers(batch: ScoreBatch, weights: Sequence[RewardWeights]) -> torch.Tensor:
    """float32 (N, 4), as `ImageResult.numbers`; gradients flow from the rewards alone.

    Images of equal weights are fused together.
    """
    score, degradation = batch.score.float(), None if batch.map is None else batch.map.float()
    rows: list[torch.Tensor] = []
    start = 0
    for shared, group in itertools.groupby(weights):
        end = start + len(list(group))
        rewards = fuse(score[start:end], None if degradation is None else degradation[start:end], shared)
        monitored = (rewards.max_degradation.detach(), rewards.mean_degradation.detach())
        rows.append(torch.stack([rewards.score.detach(), rewards.reward, *monitored], dim=1))
        start = end
    return torch.cat(rows)


def _tiled(predictor: Predictor, work: ImageWork) -> list[ImageResult]:
    with torch.no_grad():
        batch = predictor.score_one(work.image) if work.lr is None else predictor.score_one(work.image, work.lr)
        numbers = _numbers(batch, [work.weights]).cpu()
    return [ImageResult(numbers[0], batch.map[0].cpu() if work.map and batch.map is not None else None, None)]


def _finite(rung: ServedRung, results: Sequence[ImageResult]) -> list[ImageResult | Exception]:
    """A result that is no number is an error, never a number."""
    problem = Problem("failed", f"{rung.rung} (digest {rung.digest}) gave a result that is not finite")
    return [result if result.is_finite() else problem for result in results]
