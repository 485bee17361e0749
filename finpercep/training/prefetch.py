"""Batches drawn ahead by threads while the model trains. Their order is that of the steps, whatever thread is done first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def prefetched(draw: Callable[[int], T], steps: range, threads: int) -> Generator[T, None, None]:
    """``draw(step)`` of every step, in order.

    Args:
        draw: called in the threads; must not depend on the order of calls.
        steps: the steps.
        threads: how many draw at once; as many batches wait ready, and one is handed out.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="batches")
    waiting: deque[Future[T]] = deque()
    try:
        upcoming = iter(steps)
        waiting.extend(pool.submit(draw, step) for step in islice(upcoming, threads + 1))
        while waiting:
            batch = waiting.popleft().result()
            waiting.extend(pool.submit(draw, step) for step in islice(upcoming, 1))
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
