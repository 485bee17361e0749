"""The loop: local and remote rewards give the same run, interruption changes nothing, only the policy moves."""

from __future__ import annotations

import dataclasses
import json
import tomllib

import numpy as np
import pytest
import torch

from finpercep.client import RewardClient
from finpercep.curriculum import watch
from finpercep.curriculum.blended_reward import LARGEST_GAIN, BlendedReward, LadderReward
from finpercep.curriculum.controller import AdaptiveConfig
from finpercep.curriculum.loop import FinetuneConfig, finetune
from finpercep.curriculum.monitor import judge
from finpercep.curriculum.run_directory import RunDirectory
from finpercep.curriculum.schedule import RungBlend
from finpercep.curriculum.watch import MonitorConfig, Watch
from finpercep.errors import ConfigError, RewardError, TrainingError
from finpercep.local_reward import LocalSource
from finpercep.predictor import load_predictors
from finpercep.reward import SCORE_ONLY, Rewards, RewardWeights
from finpercep.rl.grpo import GrpoConfig
from finpercep.rl.refl import ReflConfig
from finpercep.sr.loading import load_policy
from finpercep.training.metrics_log import read_metrics
from rm_server.app import create_app
from rm_server.settings import Settings
from tests.fakes import AppTransport, registry_of

CONFIG = FinetuneConfig(steps=6, batch_size=2, crop=32, save_every=2, lr=1e-3, algorithm=ReflConfig(gram_weight=1.0))


def draw_pair(rng: np.random.Generator):
    hr = torch.from_numpy(rng.random((3, 32, 32), dtype=np.float32))
    return hr, torch.nn.functional.avg_pool2d(hr[None], 4)[0]


def features(images):
    return [images]


@pytest.fixture(scope="module")
def predictors(small_ladder):
    return load_predictors(small_ladder)


def run(policy, source, folder, config=CONFIG, stop_after=None):
    metrics = []
    for step in finetune(policy, source, draw_pair, features, config, RunDirectory(folder)):
        metrics.append(step)
        if step.step == stop_after:
            break
    return metrics


def weights_of(policy):
    return torch.cat([tensor.flatten().float() for tensor in policy.state_dict().values()])


def test_the_run_directory_explains_itself(small_policy, predictors, tmp_path):
    metrics = run(small_policy, LocalSource(predictors), tmp_path)
    assert [m.step for m in metrics] == [1, 2, 3, 4, 5, 6]
    assert [m.rung for m in metrics] == ["RM_0", "RM_0", "RM_1", "RM_1", "RM_2", "RM_2"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [dataclasses.asdict(m) for m in metrics]
    config = tomllib.loads((tmp_path / "config.toml").read_text())
    assert (
        config["finetune"]["lr"] == 1e-3
        and config["finetune"]["refl"]["gram_weight"] == 1.0
        and config["rungs"] == ["RM_0", "RM_1", "RM_2"]
    )
    assert (tmp_path / "final" / "policy.json").exists() and (tmp_path / "checkpoints" / "latest.pt").exists()


def test_the_policy_moves_and_the_reward_model_does_not(small_policy, predictors, tmp_path):
    before = weights_of(small_policy)
    models = {rung: [t.clone() for t in p.model.state_dict().values()] for rung, p in predictors.items()}
    run(small_policy, LocalSource(predictors), tmp_path)
    assert not torch.equal(before, weights_of(small_policy))
    for rung, predictor in predictors.items():
        assert not predictor.model.training
        for then, now in zip(models[rung], predictor.model.state_dict().values(), strict=True):
            assert torch.equal(then, now)
        assert all(parameter.grad is None for parameter in predictor.model.parameters())


def test_the_loop_cannot_tell_a_remote_reward_from_a_local_one(small_policy, predictors, tmp_path):
    """Same seeds, one run in process and one through the server and its wire: the policy goes the same way.

    Adam turns a rounding error of a vanishing gradient into a whole step, so the runs are compared by how far they part.
    """
    start = weights_of(small_policy)
    remote_policy = small_policy.frozen_copy()
    remote_policy.unet.requires_grad_(True).train(small_policy.unet.training)
    local = run(small_policy, LocalSource(predictors), tmp_path / "local")
    app = create_app(registry_of(predictors), Settings())
    with RewardClient("http://test", transport=AppTransport(app)) as client:
        remote = run(remote_policy, client, tmp_path / "remote")
    for a, b in zip(local, remote, strict=True):
        assert a.reward == pytest.approx(b.reward, abs=1e-6)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-3)
    parted = (weights_of(small_policy) - weights_of(remote_policy)).norm()
    assert parted < 0.02 * (weights_of(small_policy) - start).norm()


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_an_interrupted_run_continues_bit_for_bit(small_policy, predictors, tmp_path, stop_after):
    copies = [small_policy.frozen_copy() for _ in range(2)]
    for copy in copies:
        copy.unet.requires_grad_(True).train(small_policy.unet.training)
    source = LocalSource(predictors)
    straight = run(small_policy, source, tmp_path / "straight")
    run(copies[0], source, tmp_path / "resumed", stop_after=stop_after)
    run(copies[1], source, tmp_path / "resumed")
    assert torch.equal(weights_of(small_policy), weights_of(copies[1]))
    ours, theirs = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("straight", "resumed"))
    timeless = [{k: v for k, v in record.items() if "seconds" not in k} for record in theirs]
    assert timeless == [{k: v for k, v in record.items() if "seconds" not in k} for record in ours]
    assert len(straight) == len(theirs)


def test_a_finished_run_does_nothing_more(small_policy, predictors, tmp_path):
    run(small_policy, LocalSource(predictors), tmp_path)
    assert run(small_policy, LocalSource(predictors), tmp_path) == []


def test_a_folder_of_another_run_is_refused(small_policy, predictors, tmp_path):
    run(small_policy, LocalSource(predictors), tmp_path, stop_after=1)
    with pytest.raises(TrainingError, match=r"finetune\.lr: 0\.001 there, 0\.002 here"):
        run(small_policy, LocalSource(predictors), tmp_path, dataclasses.replace(CONFIG, lr=2e-3))


def test_a_failing_reward_stops_the_run_and_loses_nothing(small_policy, predictors, tmp_path):
    class Failing(LocalSource):
        calls = 0

        def reward_fn(self, rung, weights):
            inner = super().reward_fn(rung, weights)

            def reward(images):
                Failing.calls += 1
                if Failing.calls == 9:
                    raise RewardError("the server is gone")
                return inner(images)

            return reward

    with pytest.raises(RewardError, match="gone"):
        run(small_policy, Failing(predictors), tmp_path)
    done = read_metrics(tmp_path / "metrics.jsonl")
    assert 0 < len(done) < 6
    assert len(run(small_policy, LocalSource(predictors), tmp_path)) + 2 * (len(done) // 2) == 6


def test_rewards_of_which_none_is_finite_stop_the_run(small_policy, predictors, tmp_path):
    with pytest.raises(RewardError, match="none of 2 images has a finite reward"):
        run(small_policy, of_each(predictors, lambda images: images.mean((1, 2, 3)) * float("nan")), tmp_path)


def test_a_gradient_that_is_not_finite_stops_the_run(small_policy, predictors, tmp_path):
    with pytest.raises(TrainingError, match="lower the learning rate"):
        run(small_policy, of_each(predictors, lambda images: (0 * images).sqrt().mean((1, 2, 3))), tmp_path)


def of_each(predictors, measured):
    """A ladder whose rungs all say what ``measured`` does of N×3×H×W images."""

    class Measured(LocalSource):
        def reward_fn(self, rung, weights):
            def reward(images):
                values = measured(images)
                return Rewards(values, values, values, values)

            return reward

    return Measured(predictors)


def test_blends_mix_values_and_gradients():
    def constant(value):
        def reward(images):
            r = value * images.mean((1, 2, 3))
            return Rewards(r, r, r, r)

        return reward

    images = torch.ones(1, 3, 4, 4, requires_grad=True)
    mixed = BlendedReward(constant(1.0), constant(3.0), 0.25)(images)
    assert mixed.reward.item() == pytest.approx(1.5)
    mixed.reward.sum().backward()
    assert images.grad.sum().item() == pytest.approx(1.5)


class Affine:
    """A source whose rung RM_k gives gain_k · mean + offset_k; RM_0 has no map."""

    def __init__(self, **rungs):
        self.asked, self._rungs = {}, rungs

    def rungs(self):
        return list(self._rungs)

    def has_map(self, rung):
        return rung != "RM_0"

    def reward_fn(self, rung, weights):
        self.asked[rung] = weights
        gain, offset = self._rungs[rung]

        def reward(images):
            r = gain * images.mean((1, 2, 3)) + offset
            return Rewards(r, r, r, r)

        return reward


def test_a_rung_without_a_map_is_rewarded_by_its_score_alone():
    weights = RewardWeights(score=0.2, max=0.3, mean=0.5)
    source = Affine(RM_0=(1, 0), RM_1=(1, 0))
    LadderReward(source, weights)
    assert source.asked == {"RM_0": SCORE_ONLY, "RM_1": weights}
    alone = Affine(RM_2=(1, 0))
    LadderReward(alone, weights)
    assert alone.asked == {"RM_2": weights}


def test_rungs_can_be_chosen():
    source = Affine(RM_0=(1, 0), RM_1=(2, 0), RM_2=(3, 0))
    assert LadderReward(source, RewardWeights(), ("RM_2", "RM_0")).rungs == ("RM_2", "RM_0")
    for bad in [("RM_7",), ()]:
        with pytest.raises(ConfigError, match="RM_0, RM_1, RM_2"):
            LadderReward(source, RewardWeights(), bad)


def test_a_rung_takes_over_on_the_scale_of_the_one_before():
    """Where rungs are affine in one another, matching makes them equal, on unseen images too, and all along the ladder."""
    ladder = LadderReward(Affine(RM_0=(1, 0), RM_1=(3, -1), RM_2=(0.2, 0.7)), RewardWeights())
    blend = RungBlend(0, 1, 0.5)
    assert ladder.unreached(RungBlend(0)) is None and ladder.unreached(blend) == 1
    images, others = torch.rand(2, 8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    ladder.reach(1, images)
    assert ladder.unreached(blend) is None and ladder.unreached(RungBlend(1, 2, 0.5)) == 2
    ladder.reach(2, images)
    first = ladder.at(RungBlend(0))(others).reward
    restored = LadderReward(Affine(RM_0=(1, 0), RM_1=(3, -1), RM_2=(0.2, 0.7)), RewardWeights())
    restored.load_state_dict(ladder.state_dict())
    for each in (ladder, restored):
        for later in (blend, RungBlend(1), RungBlend(2)):
            torch.testing.assert_close(each.at(later)(others).reward, first)
    assert torch.equal(ladder.at(RungBlend(2))(others).score, 0.2 * others.mean((1, 2, 3)) + 0.7)


def test_a_run_that_begins_with_a_later_rung_has_the_scale_of_the_first():
    source = Affine(RM_0=(2, 0.1), RM_1=(3, -1), RM_2=(0.5, 0.7))
    images, others = torch.rand(2, 8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    late = LadderReward(source, RewardWeights(), ("RM_2", "RM_1"))
    assert late.unreached(RungBlend(0)) == 0
    late.reach(0, images)
    late.reach(1, images)
    first = LadderReward(source, RewardWeights()).at(RungBlend(0))(others).reward
    for rung in (0, 1):
        torch.testing.assert_close(late.at(RungBlend(rung))(others).reward, first)


def test_a_rung_that_hardly_tells_images_apart_is_not_magnified_without_bound():
    images = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    ladder = LadderReward(Affine(RM_0=(1, 0), RM_1=(1e-6, 0.5)), RewardWeights())
    assert ladder.reach(1, images).gain == LARGEST_GAIN
    rewards = [ladder.at(RungBlend(rung))(images).reward for rung in (0, 1)]
    assert rewards[1].mean().item() == pytest.approx(rewards[0].mean().item(), abs=1e-6)


def test_a_run_matches_each_rung_once_and_remembers_it(small_policy, predictors, tmp_path):
    run(small_policy, LocalSource(predictors), tmp_path, stop_after=4)
    scales = RunDirectory(tmp_path).load_state()["ladder"]["scales"]
    assert scales[0] == {"gain": 1.0, "offset": 0.0} and scales[1] is not None and scales[2] is None


@pytest.mark.parametrize(
    "bad",
    [
        {"ema": 1.0},
        {"steps": 0},
        {"blend_share": 1.0},
        {"lr": -1e-5},
        {"max_grad_norm": 0.0},
        {"seed": -1},
        {"rung_steps": (1, 2), "curriculum": "adaptive"},
    ],
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        FinetuneConfig(**bad)


def test_rung_steps_must_fit_the_ladder():
    with pytest.raises(ConfigError, match="must name 3 rungs"):
        FinetuneConfig(steps=4, rung_steps=(2, 2)).schedule(3)
    assert FinetuneConfig(steps=9, rung_steps=(2, 3, 4)).schedule(3).lengths == (2, 3, 4)


WATCHED = dataclasses.replace(CONFIG, monitor=MonitorConfig(every=2, images=2, on_alarm="stop"), save_every=1)


@pytest.fixture(scope="module")
def held_out():
    pairs = [draw_pair(np.random.default_rng((1, index))) for index in range(2)]
    hr, lr = (torch.stack(side) for side in zip(*pairs, strict=True))
    return hr.clamp(0.2, 0.8), lr


def watched_run(policy, source, folder, held_out, config=WATCHED, stop_after=None):
    metrics = []
    for step in finetune(policy, source, draw_pair, features, config, RunDirectory(folder), held_out=held_out):
        metrics.append(step)
        if step.step == stop_after:
            break
    return metrics


def alarming(policy, after: int):
    """The monitor is real; the verdict of its look after step ``after`` is not."""

    def look(self, *arguments):
        verdict = original(self, *arguments)
        self.looks = getattr(self, "looks", 0) + 1
        return dataclasses.replace(verdict, hacked=2 * self.looks == after, change=0.1 * (1 if self.looks == 1 else -1))

    original = Watch.look
    return look


def test_the_monitor_looks_when_due_and_keeps_the_best_weights(small_policy, predictors, tmp_path, held_out):
    warn = dataclasses.replace(WATCHED, monitor=dataclasses.replace(WATCHED.monitor, on_alarm="warn"))
    metrics = watched_run(small_policy, LocalSource(predictors), tmp_path, held_out, warn)
    assert [m.step for m in metrics if m.verdict] == [2, 4, 6]
    changes = [m.verdict["change"] for m in metrics if m.verdict]
    kept = load_policy(str(tmp_path / "best")).state_dict()
    ours = small_policy.state_dict()
    same = all(torch.equal(kept[name], ours[name]) for name in ours)
    assert same is (changes[-1] == max(*changes, 0.0))


def test_the_monitor_is_told_which_crops_are_of_one_photo(small_policy, predictors, tmp_path, held_out, monkeypatch):
    judged = []
    monkeypatch.setattr(watch, "judge", lambda start, now, *rest: judged.append((start, now)) or judge(start, now, *rest))
    config, photo = dataclasses.replace(WATCHED, steps=3), torch.tensor([0, 0, 1, 1])
    watched_run(small_policy, LocalSource(predictors), tmp_path, (*(side.repeat(2, 1, 1, 1) for side in held_out), photo), config)
    assert [side.photo.tolist() for pair in judged for side in pair] == [[0, 0, 1, 1]] * 2


@pytest.mark.parametrize("on_alarm", ["stop", "fallback"])
def test_an_alarm_takes_the_best_weights_back(small_policy, predictors, tmp_path, held_out, monkeypatch, on_alarm):
    monkeypatch.setattr(Watch, "look", alarming(small_policy, after=4))
    monitor = dataclasses.replace(WATCHED.monitor, on_alarm=on_alarm)
    config = dataclasses.replace(WATCHED, monitor=monitor, curriculum="adaptive", rungs=("RM_1", "RM_2"))
    start = weights_of(small_policy).clone()
    metrics = watched_run(small_policy, LocalSource(predictors), tmp_path, held_out, config)
    kept = RunDirectory(tmp_path).load_best(2)
    best = torch.cat([kept[name].flatten() for name in small_policy.state_dict()])
    assert not torch.equal(best, start)
    if on_alarm == "stop":
        assert [m.step for m in metrics] == [1, 2, 3, 4]
        assert torch.equal(weights_of(small_policy), best)
        assert watched_run(small_policy, LocalSource(predictors), tmp_path, held_out, config) == []
    else:
        (decision,) = [m.decision for m in metrics if m.decision]
        assert (decision["move"], decision["rung"], decision["name"]) == ("back", 0, "RM_1") and "panel" in decision["reasons"][0]
        assert [m.lr for m in metrics] == [1e-3] * 4 + [5e-4] * 2


@pytest.mark.parametrize("stop_after", [1, 4, 5])
def test_a_watched_run_continues_bit_for_bit(small_policy, predictors, tmp_path, held_out, monkeypatch, stop_after):
    config = dataclasses.replace(
        WATCHED,
        monitor=dataclasses.replace(WATCHED.monitor, on_alarm="fallback"),
        curriculum="adaptive",
        adaptive=AdaptiveConfig(window=5, patience=1, blend_steps=1, burst=1, explosion=1e6, calm=1e5),
        ema=0.5,
        save_every=2,
    )
    copies = [small_policy.frozen_copy() for _ in range(2)]
    for copy in copies:
        copy.unet.requires_grad_(True).train(small_policy.unet.training)
    source = LocalSource(predictors)
    straight = watched_run(small_policy, source, tmp_path / "straight", held_out, config)
    watched_run(copies[0], source, tmp_path / "resumed", held_out, config, stop_after)
    watched_run(copies[1], source, tmp_path / "resumed", held_out, config)
    assert torch.equal(weights_of(small_policy), weights_of(copies[1]))
    ours, theirs = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("straight", "resumed"))
    timeless = [{k: v for k, v in record.items() if "seconds" not in k} for record in theirs]
    assert timeless == [{k: v for k, v in record.items() if "seconds" not in k} for record in ours]
    assert len(straight) == 6


def told_to_find(monkeypatch, *changes):
    """The monitor's next looks find these changes of the panel; None is an alarm."""
    looks = iter(changes)

    def look(self, *arguments):
        change = next(looks)
        return dataclasses.replace(original(self, *arguments), hacked=change is None, change=-1.0 if change is None else change)

    monkeypatch.undo()
    original = Watch.look
    monkeypatch.setattr(Watch, "look", look)


def test_weights_that_a_killed_session_liked_after_its_last_checkpoint_are_not_taken_back(
    small_policy, predictors, tmp_path, held_out, monkeypatch
):
    config = dataclasses.replace(WATCHED, monitor=dataclasses.replace(WATCHED.monitor, every=1), save_every=3)
    copies = [small_policy.frozen_copy() for _ in range(3)]
    for copy in copies:
        copy.unet.requires_grad_(True).train(small_policy.unet.training)
    source, straight, resumed = LocalSource(predictors), tmp_path / "straight", tmp_path / "resumed"
    told_to_find(monkeypatch, 0.1, 0.05, 0.05, None)
    watched_run(small_policy, source, straight, held_out, config)
    told_to_find(monkeypatch, 0.1, 0.05, 0.05, 0.3)
    watched_run(copies[0], source, resumed, held_out, config, stop_after=4)
    told_to_find(monkeypatch, None)
    watched_run(copies[1], source, resumed, held_out, config)
    assert torch.equal(weights_of(copies[1]), weights_of(small_policy))
    assert [path.name for path in (resumed / "checkpoints").glob("best-*")] == ["best-000001.safetensors"]

    # killed before the first checkpoint: the best are those of the start again
    told_to_find(monkeypatch, 0.3)
    watched_run(copies[2], source, tmp_path / "early", held_out, config, stop_after=1)
    told_to_find(monkeypatch, None)
    watched_run(copies[2], source, tmp_path / "early", held_out, config)
    start = RunDirectory(tmp_path / "early").load_best(0)
    assert all(torch.equal(start[name], tensor) for name, tensor in copies[2].state_dict().items())


def test_a_run_that_was_killed_while_it_delivered_delivers_again(small_policy, predictors, tmp_path, held_out, monkeypatch):
    save = type(small_policy).save_pretrained
    monkeypatch.setattr(type(small_policy), "save_pretrained", lambda self, folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        watched_run(small_policy, LocalSource(predictors), tmp_path, held_out)
    monkeypatch.setattr(type(small_policy), "save_pretrained", save)
    (tmp_path / "best").mkdir()  # as far as it came
    assert watched_run(small_policy, LocalSource(predictors), tmp_path, held_out) == []
    assert (tmp_path / "best" / "policy.json").exists() and (tmp_path / "final" / "policy.json").exists()


def test_a_run_that_cannot_start_claims_no_folder(small_policy, predictors, tmp_path):
    for bad in ({"rungs": ("RM_9",)}, {"rung_steps": (1, 5)}, {"algorithm": GrpoConfig(eta=0.0)}):
        with pytest.raises(ConfigError):
            run(small_policy, LocalSource(predictors), tmp_path, dataclasses.replace(CONFIG, **bad))
    assert list(tmp_path.iterdir()) == []


def test_a_monitor_needs_something_to_look_at(small_policy, predictors, tmp_path):
    with pytest.raises(ConfigError, match="held-out photos"):
        run(small_policy, LocalSource(predictors), tmp_path, WATCHED)
