"""Views: the same place of an image and its LR picture, and a gradient that no pattern on the pixel grid survives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finpercep.reward import Rewards, beside
from finpercep.rl.algorithm import Batch, Trainee
from finpercep.rl.draft import DraftConfig
from finpercep.rl.refl import ReflConfig
from finpercep.rl.rfsr import RfsrConfig
from finpercep.rl.views import LEAST, View, draw_view, seen

PATTERN = (-1.0) ** torch.arange(256)


def rewards_of(values):
    return Rewards(values, *(torch.zeros_like(values) for _ in range(3)))


class Seen:
    """A `LRRewardFn` that keeps what it is asked about."""

    def __init__(self, lr=None, calls=None):
        self.lr, self.calls = lr, [] if calls is None else calls

    def beside(self, lr):
        return Seen(lr, self.calls)

    def __call__(self, images):
        self.calls.append((images.detach(), self.lr))
        return rewards_of(images.mean((1, 2, 3)))


class Blind(Seen):
    """It does not take LR pictures, and says so as a rung without them does."""

    def beside(self, lr):
        return self


@given(
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1, 2, 4]),
    height=st.integers(8, 40),
    width=st.integers(8, 40),
)
def test_a_view_is_the_same_place_of_the_image_and_of_its_lr_picture(seed, scale, height, width):
    size = (scale * height, scale * width)
    view = draw_view(np.random.default_rng(seed), size, grid=scale)
    lr = torch.arange(height * width, dtype=torch.float32).reshape(1, height, width)
    image = lr.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
    assert torch.equal(view.of(image), view.of(lr, scale).repeat_interleave(scale, -2).repeat_interleave(scale, -1))
    for side, kept in zip(size, (view.height, view.width), strict=True):
        assert min(side, max(LEAST, 7 * side // 8)) <= kept <= side
    assert 0 <= view.top <= size[0] - view.height and 0 <= view.left <= size[1] - view.width


def test_every_place_of_an_image_is_seen_and_every_turn():
    views = [draw_view(np.random.default_rng(seed), (64, 64)) for seed in range(400)]
    assert {view.top for view in views} == {view.left for view in views} == set(range(9))
    assert {(view.turns, view.flip) for view in views} == {(turns, flip) for turns in range(4) for flip in (False, True)}
    pixels = torch.arange(64.0 * 64).reshape(1, 1, 64, 64)
    assert len({float(view.of(pixels)[0, 0, 0, 0]) for view in views}) > 60


def mean_gradient(pay, views):
    image = torch.zeros(1, 3, 64, 64, requires_grad=True)
    for view in views:
        seen(lambda images: rewards_of(pay(images)), torch.zeros(1, 3, 16, 16), 4, view)(image).reward.sum().backward()
    return image.grad / len(views)


def test_a_pattern_on_the_grid_earns_nothing_and_what_shows_everywhere_as_much():
    """Σ ±x by the parity of the pixel: a move by one pixel turns its sign. The mean of x: the same from wherever one looks."""

    def grid(images):
        signs = PATTERN[: images.shape[-2], None] * PATTERN[: images.shape[-1]]
        return (images * signs).mean((1, 2, 3))

    views = list(range(400))
    assert mean_gradient(grid, [None]).abs().sum() == pytest.approx(1.0, abs=1e-5)
    assert mean_gradient(grid, views).abs().sum() < 0.15
    assert mean_gradient(lambda images: images.mean((1, 2, 3)), views).sum() == pytest.approx(1.0, abs=1e-4)


def place_of(images, hr):
    """The view of ``hr`` that ``images`` are, or nothing."""
    found = (
        View(top, left, 56, 56, turns, flip)
        for top, left, turns, flip in itertools.product(range(9), range(9), range(4), (False, True))
    )
    return next((view for view in found if torch.equal(view.of(hr), images)), None)


@pytest.mark.parametrize("kind", [Seen, Blind])
@pytest.mark.parametrize("config", [ReflConfig(), RfsrConfig(early=0.0, late=1.0, ceiling="clean"), DraftConfig()])
def test_all_that_an_update_compares_is_seen_in_one_view_and_the_next_in_another(small_policy, config, kind):
    hr = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    lr = torch.nn.functional.avg_pool2d(hr, 4)
    algorithm = config.build(Trainee(small_policy, small_policy.frozen_copy(), lambda images: [images]))
    places = []
    for seed in range(3):
        reward = kind()
        algorithm.update(Batch(hr, lr), reward, np.random.default_rng(seed), Steps())
        assert {tuple(images.shape) for images, _ in reward.calls} == {(2, 3, 56, 56)}
        photos = [place for images, _ in reward.calls if (place := place_of(images, hr))]
        if isinstance(config, DraftConfig):  # which asks about no photo
            continue
        places += photos
        assert len(photos) == 1
        if kind is Seen:
            assert all(torch.equal(shown, photos[0].of(lr, 4)) for _, shown in reward.calls)
    assert len(set(places)) == len(places)


def test_without_views_the_reward_sees_the_image_as_it_is(small_policy):
    hr = torch.rand(2, 3, 64, 64)
    reward = Blind()
    algorithm = ReflConfig(views=False).build(Trainee(small_policy, small_policy.frozen_copy(), lambda images: [images]))
    algorithm.update(Batch(hr, torch.nn.functional.avg_pool2d(hr, 4)), reward, np.random.default_rng(0), Steps())
    assert torch.equal(reward.calls[0][0], hr)
    assert beside(reward, hr) is reward


class Steps:
    """An `Optimise` that goes backward and changes nothing."""

    def backward(self, loss):
        loss.backward()

    def step(self):
        pass
