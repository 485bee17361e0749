"""The engine over real rungs: whatever shares a batch, an image's numbers, map and gradient are those it has alone."""

from __future__ import annotations

import asyncio
import threading

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from finpercep.local_reward import LocalReward, as_pixels
from finpercep.predictor import Predictor, as_image, load_predictors
from finpercep.reward import RewardWeights
from finpercep.wire import PIXEL_DTYPES
from rm_server.batching import BatchLimits, Done
from rm_server.engine import Engine, ImageWork, run_batch
from rm_server.problems import Problem
from rm_server.registry import ServedRung
from tests.fakes import FakePredictor, photo

LIMITS = BatchLimits(batch_pixels=8 * 48 * 64, house_pixels=10**7)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rungs(small_ladder):
    return [ServedRung.of([predictor]) for predictor in load_predictors(small_ladder).values()]


def image_of(seed: int, dtype: torch.dtype, size: tuple[int, int]) -> torch.Tensor:
    pixels = as_image(photo(*size, seed=seed))
    return pixels if dtype == torch.uint8 else (pixels / 255).to(dtype)


works = st.tuples(
    st.integers(0, 9),
    st.sampled_from(PIXEL_DTYPES),
    st.sampled_from([(48, 64), (40, 56), (33, 47)]),
    st.sampled_from([RewardWeights(), RewardWeights(1, 2, 3, 0.5), RewardWeights(0, 0, 1)]),
    st.integers(0, 2),
    st.booleans(),
    st.booleans(),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(works, min_size=1, max_size=9))
def test_a_batchs_results_are_those_of_its_images_alone(rungs, drawn):
    asked = [
        ImageWork(rungs[rung], image_of(seed, dtype, size), weights, grad=grad, map=wants_map)
        for seed, dtype, size, weights, rung, grad, wants_map in drawn
    ]
    engine = Engine(1, LIMITS)
    try:
        with engine.enter(0) as visit:
            together = asyncio.run(engine.score(visit, asked))
    finally:
        engine.close()
    for work, outcome in zip(asked, together, strict=True):
        assert isinstance(outcome, Done)
        predictor = work.rung.replicas[0]
        pixels = as_pixels(work.image, CPU)[None].clone().requires_grad_()
        expected = LocalReward(predictor, work.weights)(pixels)
        numbers = [expected.score, expected.reward, expected.max_degradation, expected.mean_degradation]
        torch.testing.assert_close(outcome.result.numbers, torch.cat(numbers).detach(), rtol=0, atol=1e-5)
        assert (outcome.result.map is None) == (not work.map or not work.rung.has_map)
        if outcome.result.map is not None:
            torch.testing.assert_close(outcome.result.map, predictor.score(pixels).map[0].detach(), rtol=0, atol=1e-5)
        assert (outcome.result.grad is None) == (not work.grad)
        if work.grad:
            (gradient,) = torch.autograd.grad(expected.reward.sum(), pixels)
            scale = float(gradient.abs().max())
            torch.testing.assert_close(outcome.result.grad, gradient[0], rtol=1e-3, atol=1e-4 * scale)


def test_images_with_an_lr_picture_share_a_batch(rungs):
    finest = rungs[-1]
    works = [
        ImageWork(finest, image_of(seed, torch.uint8, (48, 64)), RewardWeights(), map=True, lr=as_image(photo(12, 16, seed=seed)))
        for seed in range(3)
    ]
    results = run_batch(0, works)
    for seed, result in enumerate(results):
        expected = finest.replicas[0].assess(photo(48, 64, seed=seed), lr=photo(12, 16, seed=seed))
        assert float(result.numbers[0]) == pytest.approx(expected.score, abs=1e-5)
        torch.testing.assert_close(result.map, expected.map, rtol=0, atol=1e-5)
    assert works[0].key == works[1].key != ImageWork(finest, works[0].image, RewardWeights()).key


def test_a_large_image_goes_through_in_tiles_and_one_with_gradient_whole(rungs):
    small = rungs[-1].replicas[0]
    tiling = Predictor(small.model, name="small", rung="RM_2", digest="d", tile=64, untiled=100 * 100)
    rung, image = ServedRung.of([tiling]), image_of(0, torch.float32, (150, 170))
    (tiled,) = run_batch(0, [ImageWork(rung, image, RewardWeights(), map=True)])
    (whole,) = run_batch(0, [ImageWork(rung, image, RewardWeights(), map=True, grad=True)])
    torch.testing.assert_close(tiled.numbers, whole.numbers, rtol=0, atol=1e-4)
    torch.testing.assert_close(tiled.map, whole.map, rtol=0, atol=1e-4)
    assert tiled.grad is None and whole.grad.shape == image.shape


def test_bf16_stays_close(rungs):
    work = ImageWork(rungs[-1], image_of(0, torch.uint8, (48, 64)), RewardWeights(), map=True)
    (exact,), (rough,) = run_batch(0, [work]), run_batch(0, [work], bf16=True)
    assert rough.numbers.dtype == rough.map.dtype == torch.float32
    assert 0 < (exact.numbers - rough.numbers).abs().max() < 0.05


def test_a_rung_has_a_replica_for_each_device():
    replicas = [FakePredictor(), FakePredictor()]
    rung = ServedRung.of(replicas)
    run_batch(1, [ImageWork(rung, image_of(0, torch.uint8, (48, 64)), RewardWeights())])
    assert [len(replica.batches) for replica in replicas] == [0, 1]


@pytest.fixture
def four_cores():
    """As if the machine had four, for engines that are made meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_batches_at_once_share_the_cores_and_a_lone_one_has_all(four_cores):
    together, threads = threading.Barrier(2, timeout=20), []

    def look(batch):
        threads.append(torch.get_num_threads())
        if len(threads) <= 2:
            together.wait()  # passes only when two batches run at once
        return batch

    predictor = FakePredictor()
    rung = ServedRung.of([predictor])
    predictor.spoil = look
    engine = Engine(1, LIMITS, lanes=2)
    try:
        for seeds in (range(4), range(4, 5)):
            with engine.enter(0) as visit:
                works = [ImageWork(rung, image_of(seed, torch.uint8, (48, 64)), RewardWeights()) for seed in seeds]
                outcomes = asyncio.run(engine.score(visit, works))
            for work, outcome in zip(works, outcomes, strict=True):
                alone = float(predictor.model(as_pixels(work.image, CPU)[None]).score)
                assert float(outcome.result.numbers[0]) == pytest.approx(alone, abs=1e-6)
    finally:
        engine.close()
    assert threads[2:] == [4] and min(threads[:2]) == 2  # the first may have begun before the second came
    assert [shape[0] for shape in predictor.batches] == [2, 2, 1]


def outcomes_of(predictor: FakePredictor, seeds: range, **options: float) -> list[object]:
    rung, engine = ServedRung.of([predictor]), Engine(1, LIMITS, **options)
    try:
        with engine.enter(0) as visit:
            works = [ImageWork(rung, image_of(seed, torch.uint8, (48, 64)), RewardWeights()) for seed in seeds]
            return asyncio.run(engine.score(visit, works))
    finally:
        engine.close()


def test_out_of_memory_halves_the_batch_and_every_image_is_scored():
    predictor = FakePredictor(spoil=lambda batch: batch)

    def spoil(batch):
        if len(batch.score) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return batch

    predictor.spoil = spoil
    outcomes = outcomes_of(predictor, range(8))
    assert all(isinstance(outcome, Done) for outcome in outcomes)
    assert [shape[0] for shape in predictor.batches] == [8, 4, 2, 2, 4, 2, 2]


def test_what_breaks_the_model_is_that_images_problem_alone(caplog):
    poison = float(FakePredictor().model(as_pixels(image_of(3, torch.uint8, (48, 64)), CPU)[None]).score)

    def spoil(batch):
        if (batch.score - poison).abs().min() < 1e-6:
            raise RuntimeError("a kernel failed")
        return batch

    outcomes = outcomes_of(FakePredictor(spoil=spoil), range(8))
    assert [index for index, outcome in enumerate(outcomes) if isinstance(outcome, Problem)] == [3]
    assert str(outcomes[3]) == "RM_1 failed on this image; the server's log says why"
    assert "a kernel failed" in caplog.text


def test_an_image_whose_turn_does_not_come_is_told_to_come_back():
    outcomes = outcomes_of(FakePredictor(), range(3), request_seconds=-1.0)
    assert all(outcome.status == 503 and outcome.headers == {"Retry-After": "5"} for outcome in outcomes)
