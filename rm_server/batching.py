"""Many small requests → few full batches, and room for only so many. Knows neither models nor HTTP.

A visitor first asks for room (`Batcher.enter`), by pixels, before anything of it is decoded; when the house is full it is turned
away at once, with a guess of when to come back. Inside it submits jobs. Jobs that may share a batch have the same ``key``; one
thread for each runner takes the oldest job and, up to a limit of pixels, those after it with its key, and runs them together.

A batch waits for company only while visitors are inside that have submitted nothing yet, and never longer than a set time: a
lone request is run at once. Threads that are idle share what waits, so that none is given all of it; the first of them begins, so
that requests which come one after the other all run on the first thread.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, Self, TypeVar

from finpercep.errors import FinpercepError

Work = TypeVar("Work")
Result = TypeVar("Result")

LONGEST_RETRY = 60
"""Seconds; the longest that a visitor is told to stay away."""


class HouseFull(FinpercepError):
    """No room for another visitor.

    Attributes:
        retry_after: whole seconds after which there may be.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlinePassed(FinpercepError):
    """A job's time was up before its turn came; it was not run."""


@dataclass(frozen=True)
class BatchLimits:
    """How much at once.

    Attributes:
        batch_pixels: of a batch; a single larger job still runs, alone.
        house_pixels: of all visitors together; a single larger visitor still gets in, when the house is empty.
        wait_seconds: longest time the oldest job of a batch waits for company.
    """

    batch_pixels: int
    house_pixels: int
    wait_seconds: float = 0.005


@dataclass(frozen=True, eq=False)
class Job(Generic[Work]):
    """One image's work.

    Attributes:
        work: what the runner is given.
        key: jobs of equal keys may run as one batch.
        pixels: its size.
        deadline: on the batcher's clock, after which it is not begun any more; None: it waits for as long as it takes.
    """

    work: Work
    key: Hashable
    pixels: int
    deadline: float | None = None


@dataclass(frozen=True, eq=False)
class Done(Generic[Result]):
    """A job's result.

    Attributes:
        result: the runner's.
        queue_seconds: from submission until its batch began.
        compute_seconds: of the batch.
        batch: jobs in it.
    """

    result: Result
    queue_seconds: float
    compute_seconds: float
    batch: int


@dataclass(eq=False)
class _Waiting(Generic[Work, Result]):
    job: Job[Work]
    number: int  # in order of arrival
    since: float
    future: Future[Done[Result]] = field(default_factory=Future)


Runner = Callable[[Sequence[Work]], Sequence[Result | Exception]]
"""Runs a batch: a result or an error for each. When it raises, its batch is halved and tried again, down to single jobs."""


class Batcher(Generic[Work, Result]):
    """The queue and its threads.

    Args:
        runners: one for each batch that may run at once; each has a thread of its own, and all take from one queue.
        limits: see `BatchLimits`.
        clock: seconds, never going back.
    """

    def __init__(
        self, runners: Sequence[Runner[Work, Result]], limits: BatchLimits, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limits, self.clock = limits, clock
        self._changed = threading.Condition()
        self._buckets: OrderedDict[Hashable, deque[_Waiting[Work, Result]]] = OrderedDict()
        self._inside = self._visitors = self._expected = self._arrivals = self._pauses = 0
        self._idle = set(range(len(runners)))  # threads that run nothing
        self._closed = False
        self._rate: float | None = None  # pixels a second, a moving average over batches
        self._threads = [
            threading.Thread(target=self._work, args=(index, runner), name=f"inference-{index}", daemon=True)
            for index, runner in enumerate(runners)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        with self._changed:
            return sum(len(bucket) for bucket in self._buckets.values())

    @property
    def is_calm(self) -> bool:
        """Whether at most one batch runs, and no job waits."""
        with self._changed:
            return self._running <= 1 and not self._buckets

    @property
    def _running(self) -> int:
        return len(self._threads) - len(self._idle)

    @property
    def pixels_inside(self) -> int:
        """Pixels of all visitors."""
        return self._inside

    def enter(self, pixels: int) -> Visit[Work, Result]:
        """Room for ``pixels``, until the visit (a context manager) ends; there is always room for none (a canary).

        Raises:
            HouseFull: there is none.
        """
        with self._changed:
            if pixels and self._visitors and self._inside + pixels > self.limits.house_pixels:
                raise HouseFull(
                    f"{self._inside} pixels are being scored and {pixels} more would pass {self.limits.house_pixels}",
                    self._retry_after(),
                )
            self._inside += pixels
            self._visitors += 1
            self._expected += 1
        return Visit(self, pixels)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No batch runs meanwhile: those that run are finished first, the next ones wait."""
        with self._changed:
            self._pauses += 1
            while self._running:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._pauses -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Finish the batches that run, drop the jobs that wait."""
        with self._changed:
            self._closed = True
            for bucket in self._buckets.values():
                for waiting in bucket:
                    waiting.future.cancel()
            self._buckets.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _retry_after(self) -> int:
        seconds = self._inside / self._rate if self._rate else 1.0
        return min(LONGEST_RETRY, max(1, math.ceil(seconds)))

    def _submit(self, jobs: Sequence[Job[Work]], *, arrives: bool) -> list[Future[Done[Result]]]:
        now = self.clock()
        entries: list[_Waiting[Work, Result]] = []
        with self._changed:
            self._expected -= arrives
            for job in jobs:
                entry: _Waiting[Work, Result] = _Waiting(job, self._arrivals, now)
                entries.append(entry)
                self._arrivals += 1
                if self._closed:
                    entry.future.cancel()
                else:
                    self._buckets.setdefault(entry.job.key, deque()).append(entry)
            self._changed.notify_all()
        return [entry.future for entry in entries]

    def _leave(self, pixels: int) -> None:
        with self._changed:
            self._inside -= pixels
            self._visitors -= 1

    def _work(self, thread: int, runner: Runner[Work, Result]) -> None:
        while batch := self._next_batch(thread):
            began = self.clock()
            _run(runner, batch, began, self.clock)
            self._ended(thread, sum(entry.job.pixels for entry in batch), self.clock() - began)
            del batch  # a thread that waits must not keep the last batch's images

    def _ended(self, thread: int, pixels: int, seconds: float) -> None:
        with self._changed:
            self._idle.add(thread)
            self._changed.notify_all()
            rate = len(self._threads) * pixels / max(seconds, 1e-6)
            self._rate = rate if self._rate is None else 0.8 * self._rate + 0.2 * rate

    def _next_batch(self, thread: int) -> list[_Waiting[Work, Result]] | None:
        """The oldest job and its company, taken out of the queue; None when the house is closed."""
        with self._changed:
            while not self._closed:
                self._drop_stale()
                if self._pauses or not self._buckets or thread != min(self._idle):
                    self._changed.wait()
                    continue
                key = min(self._buckets, key=lambda key: self._buckets[key][0].number)
                bucket = self._buckets[key]
                count, is_full = self._fitting(bucket)
                patience = bucket[0].since + self.limits.wait_seconds - self.clock()
                if not is_full and self._expected and patience > 0:
                    self._changed.wait(patience)
                    continue
                batch = [bucket.popleft() for _ in range(min(count, math.ceil(len(bucket) / len(self._idle))))]
                if not bucket:
                    del self._buckets[key]
                batch = [entry for entry in batch if entry.future.set_running_or_notify_cancel()]
                if batch:
                    self._idle.remove(thread)
                    self._changed.notify_all()  # what is left is the next thread's
                    return batch
        return None

    def _fitting(self, bucket: deque[_Waiting[Work, Result]]) -> tuple[int, bool]:
        """How many of the bucket's first jobs make a batch, and whether no more would fit."""
        pixels = 0
        for count, entry in enumerate(bucket):
            pixels += entry.job.pixels
            if count and pixels > self.limits.batch_pixels:
                return count, True
        return len(bucket), pixels >= self.limits.batch_pixels

    def _drop_stale(self) -> None:
        """Forget jobs nobody waits for, and refuse those whose time is up."""
        now = self.clock()
        for key in list(self._buckets):
            kept: deque[_Waiting[Work, Result]] = deque()
            for entry in self._buckets[key]:
                if entry.future.cancelled():
                    continue
                if entry.job.deadline is not None and now > entry.job.deadline:
                    if entry.future.set_running_or_notify_cancel():
                        entry.future.set_exception(DeadlinePassed("its time was up before its turn came"))
                    continue
                kept.append(entry)
            if kept:
                self._buckets[key] = kept
            else:
                del self._buckets[key]


class Visit(Generic[Work, Result]):
    """Room that was given. Use it as a context manager; at its end, jobs that have not begun are dropped."""

    def __init__(self, batcher: Batcher[Work, Result], pixels: int) -> None:
        self._batcher, self._pixels = batcher, pixels
        self._is_expected = True
        self._futures: list[Future[Done[Result]]] = []

    def submit(self, jobs: Sequence[Job[Work]]) -> list[Future[Done[Result]]]:
        """Queue the visit's jobs, all of them; the future of each holds its `Done`, or what went wrong with it alone."""
        self._futures += self._batcher._submit(jobs, arrives=self._is_expected)
        self._is_expected = False
        return self._futures

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for future in self._futures:
            future.cancel()
        if self._is_expected:
            self._batcher._submit((), arrives=True)
        self._batcher._leave(self._pixels)


def _run(runner: Runner[Work, Result], batch: Sequence[_Waiting[Work, Result]], began: float, clock: Callable[[], float]) -> None:
    """Run a batch and hand out its results; a runner that fails on all of it is given its halves."""
    failure: Exception | None = None
    try:
        results = runner([entry.job.work for entry in batch])
        if len(results) != len(batch):
            raise RuntimeError(f"a batch of {len(batch)} jobs gave {len(results)} results")
    except Exception as error:
        failure = error.with_traceback(None)  # a traceback would keep the batch's tensors alive while its halves run
    if failure is None:
        seconds = clock() - began
        for entry, result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                entry.future.set_exception(result)
            else:
                entry.future.set_result(Done(result, began - entry.since, seconds, len(batch)))
    elif len(batch) == 1:
        batch[0].future.set_exception(failure)
    else:
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            _run(runner, half, began, clock)
