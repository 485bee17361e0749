"""What the routes do: rungs, engine, and the threads that decode and encode. One instance an application."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from starlette.requests import Request

from finpercep.errors import ConfigError
from finpercep.local_reward import side_fault
from finpercep.reward import RewardWeights
from finpercep.wire import ScoreReply, Timing, decode_request, encode_response
from rm_server import canary
from rm_server.batching import BatchLimits, Done
from rm_server.bodies import INLINE_BYTES
from rm_server.engine import Engine, ImageResult, ImageWork, Outcome
from rm_server.observability import Metrics
from rm_server.options import ScoreOptions
from rm_server.pictures import Upload, admitted_pixels, as_item, prepared
from rm_server.problems import Problem
from rm_server.registry import Registry, ServedRung, load_rung
from rm_server.settings import Settings
from rm_server.tensors import respond, works

T = TypeVar("T")

CPU_BATCH_PIXELS, GPU_BATCH_PIXELS = 128 * 1024, 32 * 1024 * 1024
"""Pixels of a batch: on CPUs, where it is fastest (`benchmarks/serving.py` has every size); on GPUs, not measured."""

CPU_LANES = 4
"""Most batches at once on a CPU by default: each takes memory of its own."""

CANARY_SECONDS = 5.0
"""A canary's result is believed for so long, so that probes cost little."""


class Service:
    """Scores pictures and tensors, and changes rungs.

    Args:
        registry: the rungs.
        settings: limits and the model root.

    Raises:
        ConfigError: a size of ``settings.warm_up`` cannot be scored, or ``settings.model_root`` is no folder.
    """

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self.registry, self.settings = registry, settings
        if settings.model_root is not None and not settings.model_root.is_dir():
            raise ConfigError(f"model_root must be a folder, got {settings.model_root}")
        for height, width in settings.warm_up_sizes:
            self._check_warm_up(height, width)
        self.devices = [replica.device for replica in registry.default.replicas]
        of_device = CPU_BATCH_PIXELS if self.devices[0].type == "cpu" else GPU_BATCH_PIXELS
        limits = BatchLimits(settings.batch_pixels or of_device, settings.house_pixels, settings.wait_ms / 1000)
        bf16 = settings.precision == "bf16"
        self.engine = Engine(
            len(self.devices),
            limits,
            lanes=self._lanes(),
            threads=settings.threads,
            bf16=bf16,
            request_seconds=settings.request_seconds,
        )
        self.metrics = Metrics(self.engine.batcher)
        self._tolerance = canary.BF16_TOLERANCE if bf16 else canary.TOLERANCE
        self._pool = ThreadPoolExecutor(settings.decoders, "codec", initializer=torch.set_num_threads, initargs=(1,))
        self._canaries: dict[str, tuple[float, str | None]] = {}
        self._probes: dict[str, asyncio.Task[str | None]] = {}
        self._cold: str | None = "it is warming up" if settings.warm_up_sizes else None
        self._warming: asyncio.Task[None] | None = None
        if settings.compile:
            for rung in registry.rungs:
                rung.compile()

    def _lanes(self) -> int:
        """Compiled models are made for one number of threads, so they have one lane."""
        if self.settings.lanes is not None:
            return self.settings.lanes
        if self.settings.compile or self.devices[0].type != "cpu":
            return 1
        return min(CPU_LANES, self.settings.threads or torch.get_num_threads())

    def _check_warm_up(self, height: int, width: int) -> None:
        fault = side_fault(height, width, self.registry.default.min_side)
        if height * width > self.settings.max_pixels:
            fault = f"image must have at most {self.settings.max_pixels} pixels, got {width}x{height}"
        if fault:
            raise ConfigError(f"warm_up: {fault}")

    async def warm_up(self) -> None:
        """Score blank images of ``settings.warm_up`` on every rung; until then, or if it fails, the server is not ready.

        It is done once: called again, this waits for its end.
        """
        if self._warming is None:
            self._warming = asyncio.create_task(self._warm_all())
        await asyncio.shield(self._warming)

    async def _warm_all(self) -> None:
        try:
            for rung in self.registry.rungs:
                await self._warm(rung)
        except Problem as problem:
            self._cold = f"its warm-up failed: {problem}"
        else:
            self._cold = None

    async def _warm(self, rung: ServedRung) -> None:
        """Alone and in full batches, with gradients and without. Raises `Problem`."""
        for height, width in self.settings.warm_up_sizes:
            blank = torch.full((3, height, width), 128, dtype=torch.uint8)
            most = self.engine.batcher.limits.batch_pixels // (height * width)
            for grad in (False, True):
                for count in sorted({1, max(1, min(most, self.settings.max_images))}):
                    with self.engine.enter(0) as visit:
                        works = [ImageWork(rung, blank, RewardWeights(), grad=grad)] * count
                        for outcome in await self.engine.score(visit, works):
                            if isinstance(outcome, Problem):
                                raise outcome

    def close(self) -> None:
        """Finish what runs; drop what waits."""
        if self._warming is not None:
            self._warming.cancel()
        self.engine.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def score_pictures(self, request: Request, uploads: Sequence[Upload], options: ScoreOptions) -> ScoreReply:
        """Decode, score, encode; a picture that fails leaves its neighbours alone, a lone one is the request's failure."""
        rung = self.registry.get(options.rung)
        pixels = await self._on_pool(lambda: admitted_pixels(uploads, options, self.settings.max_pixels))
        self._check_together(pixels)
        with self.engine.enter(pixels) as visit:
            begun = time.perf_counter()
            asked: list[ImageWork | Problem] = list(
                await asyncio.gather(
                    *(self._on_pool(prepared, upload, rung, options, self.settings.max_pixels) for upload in uploads)
                )
            )
            decoded = time.perf_counter() - begun
            outcomes = await until_gone(request, self.engine.score(visit, asked))
            self._note(request, rung, outcomes)
            results = [_result(outcome) for outcome in outcomes]
            begun = time.perf_counter()
            items = await asyncio.gather(
                *(self._on_pool(as_item, work, result, options) for work, result in zip(asked, results, strict=True))
            )
            timing = _timing(outcomes, decoded + time.perf_counter() - begun)
            return ScoreReply(items=tuple(items), model=rung.model_id, timing=timing)

    async def score_tensors(self, request: Request, body: bytes) -> bytes:
        """The same for a safetensors message."""
        begun = time.perf_counter()
        decode = partial(decode_request, body, max_images=self.settings.max_images)
        asked = decode() if len(body) <= INLINE_BYTES else await self._on_pool(decode)
        rung = self.registry.get(asked.rung)
        jobs = works(asked, rung, self.settings.max_pixels, self.settings.max_grad_pixels)
        decoded = time.perf_counter() - begun
        pixels = sum(work.pixels for work in jobs if isinstance(work, ImageWork))
        self._check_together(pixels)
        with self.engine.enter(pixels) as visit:
            outcomes = await until_gone(request, self.engine.score(visit, jobs))
            self._note(request, rung, outcomes)
            results = [_result(outcome) for outcome in outcomes]
            timing = _timing(outcomes, decoded)
            if asked.grad or asked.map:
                return await self._on_pool(lambda: encode_response(respond(rung, asked, results, timing)))
            return encode_response(respond(rung, asked, results, timing))

    def _check_together(self, pixels: int) -> None:
        """An empty house lets in one request that is larger than it, for the sake of one large picture; not more than that."""
        if pixels > (most := max(self.settings.house_pixels, self.settings.max_pixels)):
            sentence = f"the pictures of a request must have at most {most} pixels together, got {pixels}; send fewer at a time"
            raise Problem("too-large", sentence, field="body", expected=f"at most {most} pixels", received=pixels)

    async def put_rung(self, name: str, source: str, digest: str | None) -> None:
        """Serve rung ``name`` of the ladder ``source`` from now on, once its canary has lived.

        Raises:
            Problem: it cannot be loaded, or its canary has another result than it should.
        """
        self.registry.replace(name, await self._proven(name, source, digest))
        self.metrics.swaps.labels(name).inc()

    async def _proven(self, name: str, source: str, digest: str | None) -> ServedRung:
        """That rung, loaded; its canary has lived. Raises as `put_rung`."""
        if self.settings.model_root is None:
            raise Problem("conflict", "this server has no model root to load rungs from; start it with --model-root DIR")
        rung = await asyncio.to_thread(self._load, self.settings.model_root, source, name, digest)
        await self._warm(rung)
        if fault := await self._canary_fault(rung):
            raise Problem("conflict", f"{source}/{name} was not put in place: {fault}")
        return rung

    def _load(self, root: Path, source: str, name: str, digest: str | None) -> ServedRung:
        """Load a rung while nothing is scored: `torch.fx`, which makes it quick, patches how any thread calls modules."""
        with self.engine.batcher.paused():
            rung = load_rung(root, source, name, self.devices, digest)
        if self.settings.compile:
            rung.compile()
        return rung

    async def readiness_fault(self) -> str | None:
        """Why the default rung is not ready, or None; what its canary said a moment ago still counts."""
        if self._cold:
            return self._cold
        rung = self.registry.default
        then, fault = self._canaries.get(rung.digest, (-CANARY_SECONDS, None))
        if time.monotonic() - then >= CANARY_SECONDS:
            fault = await asyncio.shield(self._probe(rung))
            self._canaries = {rung.digest: (time.monotonic(), fault)}
        return fault

    def _probe(self, rung: ServedRung) -> asyncio.Task[str | None]:
        """The rung's canary; all who ask meanwhile wait for the same one."""
        if rung.digest not in self._probes:
            self._probes[rung.digest] = task = asyncio.create_task(self._canary_fault(rung))
            task.add_done_callback(lambda _: self._probes.pop(rung.digest))
        return self._probes[rung.digest]

    async def _canary_fault(self, rung: ServedRung) -> str | None:
        with self.engine.enter(0) as visit:
            (outcome,) = await self.engine.score(visit, [ImageWork(rung, canary.canary_image(), RewardWeights())])
        if isinstance(outcome, Problem):
            return str(outcome)
        return canary.fault(rung.expected, outcome.result.numbers, self._tolerance)

    def _note(self, request: Request, rung: ServedRung, outcomes: Sequence[Outcome]) -> None:
        """Record a request's images; one of a single image fails with it, and any that should be sent again as a whole."""
        self.metrics.note(rung, outcomes)
        failed = sum(isinstance(outcome, Problem) for outcome in outcomes)
        request.state.log = {"rung": rung.rung, "digest": rung.digest, "images": len(outcomes), "failed": failed}
        for outcome in outcomes:
            if isinstance(outcome, Problem) and (len(outcomes) == 1 or outcome.kind in ("busy", "not-ready")):
                raise outcome

    async def _on_pool(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)


class ClientGone(Exception):
    """Whoever asked has hung up; nobody is left to answer."""


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` gives, unless the client hangs up before; then ``work`` is cancelled. The body must have been read.

    Raises:
        ClientGone: the client hung up.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        watching.cancel()


def _result(outcome: Outcome) -> ImageResult | Problem:
    return outcome.result if isinstance(outcome, Done) else outcome


def _timing(outcomes: Sequence[Outcome], codec_seconds: float) -> Timing:
    """The longest wait and the longest batch of a request's images."""
    done = [outcome for outcome in outcomes if isinstance(outcome, Done)]
    return Timing(
        queue_ms=1000 * max((one.queue_seconds for one in done), default=0.0),
        batch_ms=1000 * codec_seconds,
        compute_ms=1000 * max((one.compute_seconds for one in done), default=0.0),
    )
