"""What a service does before it says it is ready: warm its rungs up, have them compiled; and the settings that ask for it."""

from __future__ import annotations

import asyncio
import shutil

import pytest
import torch
from pydantic import ValidationError

from finpercep.errors import ConfigError
from finpercep.predictor import as_image, load_predictor
from finpercep.reward import RewardWeights
from rm_server.app import create_app
from rm_server.engine import ImageWork
from rm_server.problems import Problem
from rm_server.service import CPU_LANES, Service
from rm_server.settings import Settings
from tests.fakes import FakePredictor, fake_ladder, photo, registry_of

SIZES = {(1, 3, 64, 64), (3, 3, 64, 64), (1, 3, 40, 96), (3, 3, 40, 96)}


@pytest.fixture
def service_of():
    """Makes services; they are closed afterwards."""
    services = []

    def made(predictors, **settings):
        services.append(Service(registry_of(predictors), Settings(**{"lanes": 1, **settings})))
        return services[-1]

    yield made
    for service in services:
        service.close()


def warming(service) -> tuple[str | None, str | None]:
    """Why it is not ready, before its warm-up and afterwards."""

    async def both():
        before = await service.readiness_fault()
        await service.warm_up()
        return before, await service.readiness_fault()

    return asyncio.run(both())


def test_every_rung_scores_every_size_alone_and_in_full_batches_before_it_is_ready(service_of):
    ladder = fake_ladder()
    service = service_of(ladder, warm_up="64, 96x40", batch_pixels=3 * 64 * 64 + 100, max_images=3)
    assert warming(service) == ("it is warming up", None)
    for rung, predictor in ladder.items():
        assert set(predictor.batches) >= SIZES, rung
        assert set(predictor.batches) - SIZES <= {(1, 3, 64, 64)}  # the canary
    assert [batch for batch in ladder["RM_0"].batches if batch[-1] == 96].count((3, 3, 40, 96)) == 2  # with gradient, and without


def test_without_sizes_nothing_is_warmed_up(service_of):
    ladder = fake_ladder()
    assert warming(service_of(ladder)) == (None, None)
    assert ladder["RM_0"].batches == [] and len(ladder["RM_2"].batches) == 1  # the canary of the default


def test_a_rung_that_fails_its_warm_up_is_never_ready(service_of):
    def spoil(batch):
        return type(batch)(batch.score / 0, batch.map)

    service = service_of({"RM_0": FakePredictor("RM_0", has_map=False, spoil=spoil), "RM_1": FakePredictor()}, warm_up="64")
    before, after = warming(service)
    assert before == "it is warming up" and after.startswith("its warm-up failed: RM_0 ")


def test_the_application_warms_up_when_it_starts(service_of):
    ladder = fake_ladder()
    service = Service(registry_of(ladder), Settings(warm_up="64", lanes=1))
    app = create_app(service.registry, service.settings, service)

    async def started() -> None:
        async with app.router.lifespan_context(app):
            for _ in range(1000):
                if await service.readiness_fault() is None:
                    return
                await asyncio.sleep(0.01)
        raise AssertionError("it never got ready")

    asyncio.run(started())
    assert (1, 3, 64, 64) in ladder["RM_0"].batches


def test_a_rung_is_warmed_up_before_it_takes_anothers_place(service_of, small_ladder, tmp_path, monkeypatch):
    shutil.copytree(small_ladder, tmp_path / "new")
    service = service_of(fake_ladder(), warm_up="48", batch_pixels=2 * 48 * 48, model_root=tmp_path)
    seen = []
    score = service.engine.score

    async def watched(visit, works):
        seen.extend((work.rung.digest, tuple(work.image.shape[1:]), len(works), work.grad) for work in works[:1])
        assert service.registry.default.digest == "digest-of-RM_2"  # it is not in place yet
        return await score(visit, works)

    service.engine.score = watched
    asyncio.run(service.put_rung("RM_2", "new", None))
    digest = load_predictor(small_ladder, "RM_2").digest
    assert seen == [(digest, (48, 48), count, grad) for grad in (False, True) for count in (1, 2)] + [
        (digest, (64, 64), 1, False)
    ]
    assert service.registry.default.digest == digest


def test_lanes_are_those_that_were_asked_for_or_those_the_cores_allow(service_of):
    def lanes(**settings) -> int:
        return len(service_of({"RM_0": FakePredictor("RM_0", has_map=False)}, **settings).engine.batcher._threads)

    assert lanes(lanes=3) == 3
    assert lanes(lanes=None) == min(CPU_LANES, torch.get_num_threads())
    assert lanes(lanes=None, threads=3) == 3


def score_of(service, pixels, *, grad: bool) -> torch.Tensor:
    """Numbers, or the gradient."""
    work = ImageWork(service.registry.default, as_image(pixels), RewardWeights(), grad=grad)

    async def scored():
        with service.engine.enter(0) as visit:
            (outcome,) = await service.engine.score(visit, [work])
        if isinstance(outcome, Problem):
            raise outcome
        return outcome.result.grad if grad else outcome.result.numbers

    return asyncio.run(scored())


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile looks at it itself
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_compiled_rung_gives_what_the_trained_one_does(service_of, small_ladder):
    """Also where its sizes change; and the canary, whose truth is the trained model's, lives."""
    plain, compiled = (
        service_of({"RM_0": load_predictor(small_ladder, "RM_0")}, lanes=None, compile=compile) for compile in (False, True)
    )
    network = compiled.registry.default.replicas[0].network
    assert network._compiled_call_impl is not None and len(compiled.engine.batcher._threads) == 1
    for size, grad in (((64, 64), False), ((48, 80), False), ((48, 80), True)):
        expected, got = (score_of(service, photo(*size), grad=grad) for service in (plain, compiled))
        scale = float(expected.abs().max())
        assert scale > 0
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * scale)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # it was compiled indeed
    assert asyncio.run(compiled.readiness_fault()) is None


@pytest.mark.parametrize(
    ("text", "sizes"), [("", ()), ("256", ((256, 256),)), ("640x480, 64", ((480, 640), (64, 64))), ("32,", ((32, 32),))]
)
def test_warm_up_sizes(text, sizes):
    assert Settings(warm_up=text).warm_up_sizes == sizes


@pytest.mark.parametrize("text", ["big", "x", "64x", "x64", "64x-3", "1e3", "64 64"])
def test_warm_up_sizes_that_cannot_be_read(text):
    with pytest.raises(ValidationError, match="sizes must be like 256,640x480"):
        Settings(warm_up=text)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"warm_up": "64,16"}, "at least 32 px on each side, got 16x16"),
        ({"warm_up": "64", "max_pixels": 4000}, "at most 4000 pixels"),
    ],
)
def test_warm_up_sizes_that_cannot_be_scored(settings, words):
    with pytest.raises(ConfigError, match=f"warm_up: image must (be|have) {words}"):
        Service(registry_of(fake_ladder()), Settings(**settings))


def test_a_model_root_that_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "missing"):
        with pytest.raises(ConfigError, match=f"model_root must be a folder, got {root}"):
            Service(registry_of(fake_ladder()), Settings(model_root=root))
