"""Scores a client keeps: what is asked again is not asked, what is given is what was said, and memory is bounded."""

from __future__ import annotations

import asyncio
import contextlib

import httpx
import pytest
import torch

from data_synth.schema.pixels import encode_png
from finpercep.client import AsyncRewardClient, RewardClient
from finpercep.errors import RewardChanged, RewardError
from finpercep.exchange.cache import ENTRY_BYTES, ScoreCache, content_of
from finpercep.exchange.pictures import ImageScore
from finpercep.reward import RewardWeights
from finpercep.wire import ModelId
from rm_server.app import create_app
from rm_server.settings import Settings
from tests.fakes import AppTransport, FakePredictor, fake_ladder, photo, registry_of

URL = "http://server"
MEBI = 1024 * 1024
WEIGHTS = RewardWeights(1, 0.5, 0.25)


def image(seed: int, height: int = 48) -> torch.Tensor:
    return torch.tensor(photo(height, seed=seed)).permute(2, 0, 1) / 255


@contextlib.contextmanager
def cached(ladder=None, **options):
    """A client that keeps scores, one that does not, and the images the server has seen."""
    ladder = ladder or fake_ladder()
    transport = AppTransport(create_app(registry_of(ladder), Settings()))
    seen = ladder["RM_1"].batches
    with (
        RewardClient(URL, transport=transport, **{"cache_bytes": 64 * MEBI, **options}) as keeping,
        RewardClient(URL, transport=transport) as asking,
    ):
        yield keeping, asking, lambda: sum(batch[0] for batch in seen)


def same(one, other) -> None:
    for name in ("score", "reward", "max_degradation", "mean_degradation"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-6, equal_nan=True)
    for name in ("maps", "grads"):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert type(ours) is type(theirs)
        for mine, yours in zip(ours if ours is not None else (), theirs if theirs is not None else (), strict=True):
            assert (mine is None) == (yours is None)
            if mine is not None:
                torch.testing.assert_close(mine, yours, rtol=1e-5, atol=1e-6)
    assert one.errors == other.errors and one.model == other.model


def test_only_images_that_are_new_are_asked_about():
    with cached() as (keeping, asking, seen):
        first = torch.stack([image(0), image(1), image(0)])
        second = torch.stack([image(2), image(1), image(0), image(3)])
        keeping.score_tensor(first, "RM_1", WEIGHTS, grad=True, map=True)
        assert seen() == 3
        mixed = keeping.score_tensor(second, "RM_1", WEIGHTS, grad=True, map=True)
        assert seen() == 3 + 2
        again = keeping.score_tensor(second, "RM_1", WEIGHTS, grad=True, map=True)
        assert seen() == 5
        for got in (mixed, again):
            same(got, asking.score_tensor(second, "RM_1", WEIGHTS, grad=True, map=True))
            assert isinstance(got.maps, torch.Tensor) and got.grads.shape == second.shape


@pytest.mark.parametrize(
    "change",
    [
        {"weights": RewardWeights(1, 0.5, 0.26)},
        {"grad": True},
        {"map": True},
        {"rung": "RM_2"},
        {"images": [image(0).half()]},
        {"images": image(0)[None]},
        {"images": [torch.nextafter(image(0), torch.tensor(0.0))]},
        {"images": [image(0).transpose(1, 2)]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_model_option_content_or_form_has_its_own_result(change):
    asked = {"images": [image(0)], "rung": "RM_1", "weights": WEIGHTS}
    with cached() as (keeping, asking, _seen):
        for options in ({}, {"map": True, "grad": True}):
            keeping.score_tensor(**asked, **options)
            wanted = {**asked, **options, **change}
            for _ in range(2):
                same(keeping.score_tensor(**wanted), asking.score_tensor(**wanted))


def test_differentiable_rewards_come_from_what_was_kept():
    with cached() as (keeping, asking, seen):
        results = []
        for client in (keeping, keeping, asking):
            pixels = torch.stack([image(0), image(1)]).requires_grad_()
            rewards = client.reward_fn("RM_1", WEIGHTS)(pixels).reward
            (rewards * torch.tensor([1.0, -2.0])).sum().backward()
            results.append((rewards.detach(), pixels.grad))
        assert seen() == 2 + 2  # the first of the keeping client, and the asking one's
        for got in results[:2]:
            for ours, theirs in zip(got, results[2], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


def test_pictures_are_kept_by_their_bytes(tmp_path):
    for seed in range(3):
        (tmp_path / f"{seed}.png").write_bytes(encode_png(photo(seed=seed)))
    (tmp_path / "copy.png").write_bytes((tmp_path / "1.png").read_bytes())
    (tmp_path / "bad.png").write_bytes(b"nonsense")
    paths = [tmp_path / name for name in ("0.png", "1.png", "bad.png", "2.png")]
    with cached() as (keeping, asking, seen):
        keeping.score_files(paths[:2], rung="RM_1", map=True)
        assert seen() == 2
        got = keeping.score_files([*paths, tmp_path / "copy.png"], rung="RM_1", map=True, failures="nan")
        assert seen() == 3
        expected = asking.score_files([*paths, tmp_path / "copy.png"], rung="RM_1", map=True, failures="nan")
        for one, other in zip(got, expected, strict=True):
            assert (one.error, one.model) == (other.error, other.model)
            assert one.error or (one.score, one.reward, one.regions) == (other.score, other.reward, other.regions)
            assert one.error or torch.equal(one.map, other.map)
        kept = keeping.score_files(paths, rung="RM_1", map=True, failures="drop")
        assert [one.score for one in kept] == [one.score for one in expected if not one.error][:3]
        with pytest.raises(RewardError, match="not a picture"):
            keeping.score_files(paths, rung="RM_1", map=True)


def test_what_a_caller_changes_is_not_what_the_next_is_given():
    with cached() as (keeping, _, _):
        first = keeping.score_images([photo()], rung="RM_1", map=True)[0]
        truth = first.map.clone()
        first.map.zero_()
        second = keeping.score_images([photo()], rung="RM_1", map=True)[0]
        torch.testing.assert_close(second.map, truth, rtol=0, atol=0)
        second.map.zero_()
        torch.testing.assert_close(keeping.score_images([photo()], rung="RM_1", map=True)[0].map, truth, rtol=0, atol=0)


def test_an_image_without_a_score_is_asked_about_again():
    poison = float(FakePredictor().model(image(1)[None]).score)

    def spoil(batch):
        score = torch.where((batch.score - poison).abs() < 1e-6, torch.nan, batch.score)
        return type(batch)(score, batch.map)

    ladder = {"RM_1": FakePredictor(spoil=spoil)}
    with cached(ladder) as (keeping, _, seen):
        got = keeping.score_tensor([image(0), image(1), image(2)], "RM_1", map=True)
        assert list(got.errors) == [1] and got.score.isnan().tolist() == [False, True, False] and got.maps[1] is None
        assert seen() == 3
        got = keeping.score_tensor([image(0), image(1), image(3)], "RM_1", map=True)
        assert list(got.errors) == [1] and got.score.isnan().tolist() == [False, True, False] and got.maps[1] is None
        assert seen() == 3 + 2
        got = keeping.score_tensor([image(0), image(1)], "RM_1", map=True)  # alone in its request, which fails with it
        assert list(got.errors) == [1] and got.score.isnan().tolist() == [False, True] and got.maps[1] is None
        with pytest.raises(RewardError, match="not finite"):
            keeping.score_tensor([image(1)], "RM_1", map=True)


def test_a_changed_model_is_noticed_by_the_next_new_image_and_never_mixed():
    ladder = fake_ladder()
    with cached(ladder) as (keeping, _, seen):
        before = keeping.score_tensor([image(0)], "RM_1")
        ladder["RM_1"].digest = "another"
        same(keeping.score_tensor([image(0)], "RM_1"), before)
        assert seen() == 1
        with pytest.raises(RewardChanged):
            keeping.score_tensor([image(0), image(1)], "RM_1")


def test_the_default_rung_is_kept_under_its_own_name():
    ladder = {"RM_1": FakePredictor()}
    with cached(ladder) as (keeping, asking, seen):
        same(keeping.score_tensor([image(0)]), asking.score_tensor([image(0)]))
        before = seen()
        same(keeping.score_tensor([image(0)]), keeping.score_tensor([image(0)], "RM_1"))
        same(keeping.score_tensor([image(0)], "digest-of-RM_1"), keeping.score_tensor([image(0)]))
        assert seen() == before


def test_the_asynchronous_client_keeps_scores_too():
    ladder = fake_ladder()
    app = create_app(registry_of(ladder), Settings())

    async def ask():
        async with AsyncRewardClient(URL, transport=httpx.ASGITransport(app), cache_bytes=MEBI) as client:
            one = await client.score_tensor([image(0), image(1)], "RM_1")
            other = await client.score_tensor([image(1), image(0)], "RM_1")
            return (
                one,
                other,
                await client.score_images([photo()] * 2, rung="RM_1"),
                await client.score_images([photo()], rung="RM_1"),
            )

    one, other, first, second = asyncio.run(ask())
    torch.testing.assert_close(one.reward, other.reward.flip(0), rtol=0, atol=0)
    assert first[0].score == first[1].score == second[0].score
    assert sum(batch[0] for batch in ladder["RM_1"].batches) == 2 + 2


def test_by_default_nothing_is_kept():
    with cached(cache_bytes=0) as (client, _, seen):
        for _ in range(2):
            client.score_tensor([image(0)], "RM_1")
        assert seen() == 2


def score(side: int) -> ImageScore:
    return ImageScore(0.5, 0.5, torch.zeros(side, side), 0.0, 0.0, (), ModelId(name="n", rung="r", digest="d"))


def test_memory_is_bounded_and_the_longest_unused_gives_way():
    size = ENTRY_BYTES + 4 * 100 * 100
    cache = ScoreCache(3 * size)
    for key in "abc":
        cache.put(key, score(100))
    assert cache.get("a") is not None  # used again, so b is next to go
    cache.put("d", score(100))
    assert [cache.get(key) is not None for key in "abcd"] == [True, False, True, True]
    cache.put("d", score(10))  # in its own place, and smaller
    cache.put("e", score(50))
    assert len(cache) == 4
    cache.put("whale", score(1000))
    assert cache.get("whale") is None and len(cache) == 0


def test_contents_differ_by_type_shape_value_and_lr_picture():
    pixels = torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4)
    different = [
        (pixels, None),
        (pixels.reshape(3, 2, 8), None),
        (pixels.float(), None),
        (pixels.flip(0), None),
        (pixels, pixels),
        (pixels, pixels[:, :2]),
        (b"ab", None),
        (b"a", b"b"),
        (b"", b"ab"),
    ]
    assert len({content_of(*one) for one in different}) == len(different)
    assert content_of(pixels.transpose(1, 2), None) == content_of(pixels.transpose(1, 2).contiguous(), None)
