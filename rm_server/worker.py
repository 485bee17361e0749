"""One thread that alone runs the model: the event loop stays free, and two requests never share the device."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Timed(Generic[T]):
    """A result, with the milliseconds it waited for the thread and those it took."""

    result: T
    queue_ms: float
    compute_ms: float


class Worker:
    """Runs jobs one after another, first come, first served."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")

    async def run(self, job: Callable[[], T]) -> Timed[T]:
        """Wait for the thread, then for the job; its exceptions come through."""
        asked = time.perf_counter()

        def timed() -> Timed[T]:
            started = time.perf_counter()
            result = job()
            return Timed(result, (started - asked) * 1000, (time.perf_counter() - started) * 1000)

        return await asyncio.get_running_loop().run_in_executor(self._thread, timed)

    def close(self) -> None:
        """Finish the job that runs, drop those that wait."""
        self._thread.shutdown(wait=True, cancel_futures=True)
