"""Batches come in the order of their steps, ahead of time but not too far, and errors come with them."""

from __future__ import annotations

import threading
import time

import pytest

from finpercep.training.prefetch import prefetched


@pytest.mark.parametrize("threads", [1, 3])
def test_the_order_is_that_of_the_steps(threads):
    def draw(step):
        time.sleep(0.01 if step % 2 else 0.0)
        return step

    assert list(prefetched(draw, range(3, 20), threads)) == list(range(3, 20))
    assert list(prefetched(draw, range(5, 5), threads)) == []


def test_several_threads_draw_at_once():
    together = threading.Barrier(3, timeout=10)

    def draw(step):
        together.wait()
        return step

    assert list(prefetched(draw, range(6), 3)) == list(range(6))


def test_it_stays_a_few_batches_ahead():
    drawn = []
    batches = prefetched(lambda step: drawn.append(step) or step, range(100), 2)
    next(batches)
    time.sleep(0.05)
    batches.close()
    assert len(drawn) <= 4


def test_an_error_in_a_thread_is_the_callers():
    def draw(step):
        if step == 2:
            raise OSError("no such picture")
        return step

    batches = prefetched(draw, range(10), 2)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(OSError, match="no such picture"):
        next(batches)
