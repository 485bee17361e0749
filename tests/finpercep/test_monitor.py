"""The hacking monitor: its interval is Student's, its alarm needs both halves, and it does not cry wolf."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from scipy import stats

from finpercep.curriculum.monitor import HeldOut, judge, panel_change
from finpercep.curriculum.tripwires import TRIPWIRES, brightness_drift, colour_drift, fine_loss, grid
from finpercep.curriculum.watch import MonitorConfig, Watch
from finpercep.errors import ConfigError
from finpercep.sr.loading import load_policy

BETTER = {"fsim": True, "gmsd": False}


def held_out(fsim, gmsd, reward):
    return HeldOut(
        {"fsim": torch.as_tensor(fsim, dtype=torch.float64), "gmsd": torch.as_tensor(gmsd, dtype=torch.float64)},
        torch.as_tensor(reward, dtype=torch.float64),
    )


START = held_out([0.6, 0.7, 0.8, 0.9], [0.1, 0.2, 0.3, 0.4], [0.5] * 4)


def moved(fsim=0.0, gmsd=0.0, reward=0.0, spread=0.0):
    jitter = spread * torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    return HeldOut({"fsim": START.panel["fsim"] + fsim + jitter, "gmsd": START.panel["gmsd"] + gmsd}, START.reward + reward)


def test_changes_are_in_units_of_the_spread_and_turned_the_same_way():
    spread = START.panel["fsim"].std(correction=0)
    assert torch.allclose(panel_change(START, moved(fsim=float(spread)), BETTER), torch.full((4,), 0.5, dtype=torch.float64))
    assert panel_change(START, moved(gmsd=0.1), BETTER).max() < 0


def test_a_tripwire_counts_beyond_its_tolerance_alone():
    def wired(value):
        return HeldOut({**START.panel, "grid": torch.full((4,), value, dtype=torch.float64)}, START.reward + value)

    tolerances = {"grid": 0.02}
    for value, change in ((0.01, 0.0), (0.03, 0.0), (0.07, -2.0), (-1.0, 0.0)):  # from 0.01 on
        assert panel_change(wired(0.01), wired(value), BETTER, tolerances).tolist() == pytest.approx([change] * 4)
    assert judge(wired(0.01), wired(0.07), BETTER, tolerances=tolerances).hacked
    assert not judge(wired(0.01), wired(0.03), BETTER, tolerances=tolerances).hacked


def test_the_interval_is_students():
    now = moved(fsim=0.01, spread=0.02)
    verdict = judge(START, now, BETTER)
    change = panel_change(START, now, BETTER).numpy()
    low, high = stats.t.interval(0.95, 3, loc=change.mean(), scale=stats.sem(change))
    assert (verdict.change, verdict.low, verdict.high) == pytest.approx((change.mean(), low, high))


@pytest.mark.parametrize(
    ("now", "hacked"),
    [
        (moved(), False),
        (moved(fsim=-0.1, reward=0.1), True),
        (moved(gmsd=0.1, reward=0.1), True),
        (moved(fsim=-0.1, reward=-0.1), False),
        (moved(fsim=0.1, reward=0.1), False),
        (moved(fsim=-0.01, reward=0.1, spread=0.1), False),
    ],
    ids=["nothing moved", "hacked", "hacked, by the metric of which less is better", "both fell", "both rose", "within chance"],
)
def test_alarms(now, hacked):
    verdict = judge(START, now, BETTER)
    assert verdict.hacked is hacked
    assert f"{verdict.change:+.3f}" in verdict.reason


def test_false_alarms_are_as_rare_as_promised():
    """Pure chance: the interval lies below 0 in 2.5 % of runs, and a monitor that cried twice as often would fail here."""
    generator = torch.Generator().manual_seed(0)
    alarms = 0
    for _ in range(1000):
        chance = 0.01 * torch.randn(24, generator=generator, dtype=torch.float64)
        start = HeldOut({"fsim": torch.linspace(0, 1, 24, dtype=torch.float64)}, torch.zeros(24, dtype=torch.float64))
        now = HeldOut({"fsim": start.panel["fsim"] + chance}, start.reward + 1)
        alarms += judge(start, now, {"fsim": True}).hacked
    assert 10 < alarms < 45


@pytest.mark.parametrize("photos", [2, 4, 6])
def test_crops_of_few_photos_raise_no_more_false_alarms(photos):
    """16 crops whose changes go half with their photo; each for itself, of four photos, they would alarm in 12 % of the looks."""
    generator = torch.Generator().manual_seed(photos)
    photo = torch.arange(16) % photos
    start = HeldOut({"fsim": torch.linspace(0, 1, 16, dtype=torch.float64)}, torch.zeros(16, dtype=torch.float64), photo)
    alarms = 0
    for _ in range(1000):
        chance = torch.randn(photos, generator=generator, dtype=torch.float64)[photo]
        chance = 0.01 * (chance + torch.randn(16, generator=generator, dtype=torch.float64))
        alarms += judge(start, HeldOut({"fsim": start.panel["fsim"] + chance}, start.reward + 1, photo), {"fsim": True}).hacked
    assert 10 < alarms < 45


def test_the_interval_is_over_photos():
    photo = torch.tensor([7, 3, 7, 7])
    now = dataclasses.replace(moved(fsim=0.01, spread=0.02, reward=torch.tensor([1.0, 0.0, 2.0, 3.0])), photo=photo)
    change = panel_change(START, now, BETTER)
    means = [float(change[1]), float(change[[0, 2, 3]].mean())]
    verdict = judge(START, now, BETTER)
    low, high = stats.t.interval(0.95, 1, loc=sum(means) / 2, scale=stats.sem(means))
    assert (verdict.change, verdict.low, verdict.high) == pytest.approx((sum(means) / 2, low, high))
    assert verdict.reward_change == pytest.approx(1.0)


def test_one_photo_is_no_evidence():
    one, crops = held_out([0.5], [0.1], [0.1]), dataclasses.replace(START, photo=torch.zeros(4, dtype=torch.int64))
    for start in (one, crops):
        with pytest.raises(ConfigError, match="two photos or more"):
            judge(start, start, BETTER)
    with pytest.raises(ConfigError, match="two or more, and got 1; add photos"):
        Watch(pictures(), pictures(), load_policy("tiny"), MonitorConfig(every=1), torch.zeros(2))


def pictures(seed=0):
    smooth = torch.nn.functional.interpolate(
        torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)), 64, mode="bicubic"
    )
    return (0.3 + 0.4 * smooth).clamp(0, 1)


@pytest.mark.parametrize("name", list(TRIPWIRES))
def test_tripwires_are_silent_on_the_ground_truth(name):
    assert TRIPWIRES[name](pictures(), pictures()).tolist() == pytest.approx([0, 0], abs=1e-9)


def test_tripwires_in_closed_form():
    gt = pictures()
    assert brightness_drift(gt + 0.05, gt).tolist() == pytest.approx([0.05, 0.05], abs=1e-6)
    assert colour_drift(gt + 0.05, gt).max() < 1e-6  # grey drifts no colour
    red = gt + torch.tensor([0.1, 0, 0])[:, None, None]
    assert colour_drift(red, gt).tolist() == pytest.approx([0.1 * (0.701**2 + 0.299**2) ** 0.5] * 2, abs=1e-6)
    assert fine_loss(0.5 * gt, gt).tolist() == pytest.approx([0.5, 0.5], abs=1e-6)
    assert fine_loss(2 * gt, gt).tolist() == [0, 0]


def test_the_grid_tripwire_tells_a_grid_from_noise():
    gt = pictures()
    stripes = 0.02 * ((torch.arange(64) % 4) < 2).float() - 0.01
    noise = 0.01 * torch.randn(gt.shape, generator=torch.Generator().manual_seed(1))
    assert grid(gt + stripes + 0.1 * noise, gt).min() > 0.8
    assert grid(gt + noise, gt).max() < 0.1
