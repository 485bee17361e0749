"""The queue alone, over runners that only count: what shares a batch, who waits, who is turned away."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, wait
from contextlib import contextmanager

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from rm_server.batching import Batcher, BatchLimits, DeadlinePassed, HouseFull, Job

LIMITS = BatchLimits(batch_pixels=100, house_pixels=1000)


class Recorder:
    """Squares numbers, remembers its batches; stands still while ``gate`` is closed, and fails on what ``breaks`` says."""

    def __init__(self, breaks=lambda batch: False):
        self.batches: list[list[int]] = []
        self.breaks = breaks
        self.gate = threading.Event()
        self.gate.set()
        self.began = threading.Event()

    def __call__(self, works):
        self.began.set()
        self.gate.wait(10)
        self.batches.append(list(works))
        if self.breaks(works):
            raise RuntimeError(f"failed on {works}")
        return [work**2 for work in works]


@contextmanager
def batcher_of(*runners, limits=LIMITS, **options):
    batcher = Batcher(runners, limits, **options)
    try:
        yield batcher
    finally:
        for runner in runners:
            runner.gate.set()
        batcher.close()


@contextmanager
def standing_still(batcher, recorder):
    """The runner is busy with job −1 meanwhile, so that whatever is submitted waits together."""
    recorder.gate.clear()
    with batcher.enter(0) as visit:
        (first,) = visit.submit([Job(-1, "blocker", 1)])
        recorder.began.wait(10)
        yield
        recorder.gate.set()
        first.result(10)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 130)), min_size=1, max_size=30))
def test_every_job_gets_its_own_result_in_batches_of_one_key_within_the_limit(jobs):
    """And in order of arrival: no job of a key overtakes another of it, and the oldest key goes first."""
    recorder = Recorder()
    with batcher_of(recorder) as batcher, standing_still(batcher, recorder), batcher.enter(1) as visit:
        futures = visit.submit([Job(index, key, pixels) for index, (key, pixels) in enumerate(jobs)])
        recorder.gate.set()
        assert [future.result(10).result for future in futures] == [index**2 for index in range(len(jobs))]
    batches = recorder.batches[1:]
    assert sorted(index for batch in batches for index in batch) == list(range(len(jobs)))
    for batch in batches:
        assert len({jobs[index][0] for index in batch}) == 1
        assert len(batch) == 1 or sum(jobs[index][1] for index in batch) <= 100
    for key in "abc":
        of_key = [index for batch in batches for index in batch if jobs[index][0] == key]
        assert of_key == sorted(of_key)
    assert [batch[0] for batch in batches] == sorted(batch[0] for batch in batches)


def test_a_batch_is_filled_before_another_begins():
    recorder = Recorder()
    with batcher_of(recorder) as batcher, standing_still(batcher, recorder), batcher.enter(1) as visit:
        futures = visit.submit([Job(index, "k", 30) for index in range(7)])
        recorder.gate.set()
        wait(futures, 10)
        assert [future.result().batch for future in futures] == [3, 3, 3, 3, 3, 3, 1]
    assert recorder.batches[1:] == [[0, 1, 2], [3, 4, 5], [6]]


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 11), max_size=4))
def test_a_poisoned_job_fails_alone(poisoned):
    recorder = Recorder(breaks=lambda batch: bool(poisoned & set(batch)))
    with batcher_of(recorder) as batcher, standing_still(batcher, recorder), batcher.enter(1) as visit:
        futures = visit.submit([Job(index, "k", 1) for index in range(12)])
        recorder.gate.set()
        wait(futures, 10)
        for index, future in enumerate(futures):
            if index in poisoned:
                with pytest.raises(RuntimeError, match=rf"failed on \[{index}\]"):
                    future.result()
            else:
                assert future.result().result == index**2


def test_a_batch_too_large_for_the_device_is_halved():
    recorder = Recorder(breaks=lambda batch: len(batch) > 3)
    with batcher_of(recorder) as batcher, standing_still(batcher, recorder), batcher.enter(1) as visit:
        futures = visit.submit([Job(index, "k", 1) for index in range(8)])
        recorder.gate.set()
        assert [future.result(10).result for future in futures] == [index**2 for index in range(8)]
    assert [len(batch) for batch in recorder.batches[1:]] == [8, 4, 2, 2, 4, 2, 2]


def test_an_error_for_one_job_among_results():
    def runner(works):
        return [ValueError("odd") if work % 2 else work for work in works]

    runner.gate = threading.Event()
    with batcher_of(runner) as batcher, batcher.enter(1) as visit:
        even, odd = visit.submit([Job(2, "k", 1), Job(3, "k", 1)])
        assert even.result(10).result == 2
        with pytest.raises(ValueError, match="odd"):
            odd.result(10)


def test_a_runner_that_loses_a_result_is_found_out():
    losing = type("Losing", (Recorder,), {"__call__": lambda self, works: []})()
    with batcher_of(losing) as batcher, batcher.enter(1) as visit:
        (future,) = visit.submit([Job(1, "k", 1)])
        with pytest.raises(RuntimeError, match="1 jobs gave 0 results"):
            future.result(10)


def test_a_full_house_turns_away_at_once_and_says_when_to_come_back():
    recorder = Recorder()
    with batcher_of(recorder) as batcher, batcher.enter(700):
        with pytest.raises(HouseFull, match="700 pixels are being scored and 400 more") as refusal:
            batcher.enter(400)
        assert 1 <= refusal.value.retry_after <= 60
        with batcher.enter(300):
            assert batcher.pixels_inside == 1000
        assert batcher.pixels_inside == 700
    assert batcher.pixels_inside == 0


def test_one_visitor_larger_than_the_house_gets_in_when_it_is_empty():
    with batcher_of(Recorder()) as batcher:
        with batcher.enter(5000) as visit:
            assert visit.submit([Job(3, "k", 5000)])[0].result(10).result == 9
        with batcher.enter(1), pytest.raises(HouseFull):
            batcher.enter(5000)


def test_a_lone_job_does_not_wait_and_a_second_visitor_is_waited_for():
    patient = BatchLimits(batch_pixels=100, house_pixels=1000, wait_seconds=0.5)
    recorder = Recorder()
    with batcher_of(recorder, limits=patient) as batcher:
        with batcher.enter(1) as visit:
            begun = time.monotonic()
            visit.submit([Job(1, "k", 1)])[0].result(10)
            assert time.monotonic() - begun < 0.4
        with batcher.enter(1) as one, batcher.enter(1) as other:
            first = one.submit([Job(2, "k", 1)])
            second = other.submit([Job(3, "k", 1)])
            assert {future.result(10).batch for future in (*first, *second)} == {2}
        with batcher.enter(1) as one, batcher.enter(1):  # the other never submits
            assert one.submit([Job(4, "k", 1)])[0].result(10).queue_seconds >= 0.45


def test_jobs_whose_time_is_up_are_not_run():
    recorder = Recorder()
    with batcher_of(recorder) as batcher, standing_still(batcher, recorder), batcher.enter(1) as visit:
        late, patient = visit.submit([Job(1, "k", 1, deadline=batcher.clock() + 0.01), Job(2, "k", 1)])
        time.sleep(0.05)
        recorder.gate.set()
        with pytest.raises(DeadlinePassed):
            late.result(10)
        assert patient.result(10).result == 4
    assert recorder.batches == [[-1], [2]]


def test_jobs_nobody_waits_for_are_dropped():
    recorder = Recorder()
    with batcher_of(recorder) as batcher, standing_still(batcher, recorder):
        with batcher.enter(1) as visit:
            (gone,) = visit.submit([Job(1, "k", 1)])
            assert batcher.waiting == 1
        with pytest.raises(CancelledError):
            gone.result(0)
    assert recorder.batches == [[-1]]


def test_closing_finishes_what_runs_and_drops_what_waits():
    recorder = Recorder()
    batcher = Batcher([recorder], LIMITS)
    recorder.gate.clear()
    with batcher.enter(1) as visit:
        (running,) = visit.submit([Job(1, "k", 1)])
        recorder.began.wait(10)
        (*_, waiting) = visit.submit([Job(2, "k", 1)])
        threading.Timer(0.05, recorder.gate.set).start()
        batcher.close()
        assert running.result(0).result == 1
        assert waiting.cancelled()
        (*_, after) = visit.submit([Job(3, "k", 1)])
        assert after.cancelled()


def test_nothing_runs_while_it_is_paused_and_everything_afterwards():
    recorder = Recorder()
    with batcher_of(recorder) as batcher, batcher.enter(1) as visit:
        recorder.gate.clear()
        (running,) = visit.submit([Job(1, "k", 1)])
        recorder.began.wait(10)
        threading.Timer(0.1, recorder.gate.set).start()
        with batcher.paused():
            assert running.done()  # it was waited for
            (*_, waiting) = visit.submit([Job(2, "k", 1)])
            time.sleep(0.1)
            assert recorder.batches == [[1]] and not waiting.done()
        assert waiting.result(10).result == 4


def test_two_devices_work_on_one_queue():
    both = threading.Barrier(2, timeout=10)

    def runner(works):
        both.wait()  # passes only when two batches run at once
        return works

    runner.gate = threading.Event()
    with batcher_of(runner, runner, limits=BatchLimits(1, 1000)) as batcher, batcher.enter(1) as visit:
        futures = visit.submit([Job(index, "k", 1) for index in range(8)])
        assert [future.result(10).result for future in futures] == list(range(8))


def test_idle_threads_share_what_waits():
    both, sizes = threading.Barrier(2, timeout=10), []

    def runner(works):
        sizes.append(len(works))
        both.wait()  # passes only when the other thread runs a batch as well
        return works

    runner.gate = threading.Event()
    with batcher_of(runner, runner) as batcher, batcher.enter(1) as visit:
        assert batcher.is_calm
        futures = visit.submit([Job(index, "k", 1) for index in range(6)])  # they would all fit into one batch
        assert [future.result(10).batch for future in futures] == [3] * 6
    assert sizes == [3, 3]


def test_jobs_that_come_one_after_the_other_run_on_the_first_thread():
    first, second = Recorder(), Recorder()
    with batcher_of(first, second) as batcher, batcher.enter(0) as visit:
        for index in range(20):
            assert visit.submit([Job(index, "a", 1)])[-1].result(10).result == index**2
            with batcher.paused():  # its result is there a moment before its thread is idle again
                pass
    assert first.batches == [[index] for index in range(20)] and second.batches == []


def test_it_is_calm_while_one_batch_runs_and_nothing_waits():
    recorder = Recorder()
    with batcher_of(recorder) as batcher, batcher.enter(1) as visit:
        assert batcher.is_calm
        recorder.gate.clear()
        visit.submit([Job(1, "k", 1)])
        recorder.began.wait(10)
        assert batcher.is_calm
        visit.submit([Job(2, "k", 1)])
        assert not batcher.is_calm


def test_many_visitors_at_once_all_get_their_results():
    recorder = Recorder()
    results: dict[int, int] = {}

    def visitor(batcher, number):
        while True:
            try:
                visit = batcher.enter(100)
            except HouseFull:
                time.sleep(0.001)
                continue
            with visit:
                (future,) = visit.submit([Job(number, number % 3, 10)])
                results[number] = future.result(10).result
            return

    with batcher_of(recorder, recorder, limits=BatchLimits(50, 500, wait_seconds=0.001)) as batcher:
        threads = [threading.Thread(target=visitor, args=(batcher, number)) for number in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert batcher.pixels_inside == 0 and batcher.waiting == 0
    assert results == {number: number**2 for number in range(200)}
