"""Shards made on this machine: in this process, or in a pool of processes. Knows nothing of clusters."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from data_synth.engines.protocol import EngineError, J, Maker, N, Worker


@dataclass(frozen=True)
class ProcessEngine:
    """``workers`` processes; with one, or with a single job, the work is done in this process."""

    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise EngineError(f"workers must be at least 1, got {self.workers}")

    def run(self, maker: Maker[J, N], jobs: Sequence[J], networks: Callable[[], N]) -> Iterator[tuple[J, dict[str, Any]]]:
        """See `Engine.run`."""
        if self.workers == 1 or len(jobs) <= 1:
            worker = Worker(maker, jobs, networks)
            for position, job in enumerate(jobs):
                yield job, worker.make(position)
            return
        spawn = multiprocessing.get_context("spawn")  # forking a process that has run torch can hang
        # The jobs travel once and together: they share their split's photos, which would else be sent with every single one.
        arguments = (maker, tuple(jobs), networks)
        pool = ProcessPoolExecutor(min(self.workers, len(jobs)), spawn, initializer=_start_worker, initargs=arguments)
        try:
            futures = {pool.submit(_make_in_worker, position): job for position, job in enumerate(jobs)}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise EngineError(
                "a worker process died, perhaps for lack of memory; run again with fewer workers to go on"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_worker: Worker[Any, Any] | None = None


def _start_worker(maker: Maker[Any, Any], jobs: Sequence[Any], networks: Callable[[], Any]) -> None:
    global _worker
    _worker = Worker(maker, jobs, networks)


def _make_in_worker(position: int) -> dict[str, Any]:
    assert _worker is not None
    return _worker.make(position)
