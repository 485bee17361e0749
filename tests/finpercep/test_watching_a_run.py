"""A real run, tiny, and what it leaves to look at: pictures, cases, TensorBoard's file, the report; interrupted or not."""

from __future__ import annotations

import dataclasses
import html
import shlex
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from data_synth.schema.pixels import encode_png
from finpercep.cli import app
from finpercep.cli.finetune_run import curves_of
from finpercep.curriculum.logbook import TENSORBOARD_NAME, Logbook, remarks
from finpercep.curriculum.loop import FinetuneConfig, finetune
from finpercep.curriculum.run_directory import RunDirectory
from finpercep.curriculum.snapshots import CASES_NAME, IMAGES_NAME, SHOWN, interval, read_cases
from finpercep.curriculum.watch import MonitorConfig, Watch
from finpercep.errors import ConfigError, RewardError
from finpercep.local_reward import LocalSource
from finpercep.predictor import load_predictors
from finpercep.report.page import write_report
from finpercep.report.runs import report_of_run
from finpercep.rl.refl import ReflConfig
from finpercep.sr.loading import load_policy
from finpercep.sr.policy import sample_images
from finpercep.training.metrics_log import read_metrics
from finpercep.training.provenance import Session, read_sessions
from tests.fakes import photo

CONFIG = FinetuneConfig(
    steps=6, batch_size=2, crop=32, save_every=2, lr=1e-3, snapshot_every=3, algorithm=ReflConfig(gram_weight=1.0)
)
WATCHED = dataclasses.replace(CONFIG, monitor=MonitorConfig(every=2, images=3, on_alarm="warn"), snapshot_every=None)


def draw_pair(rng: np.random.Generator):
    hr = torch.from_numpy(rng.random((3, 32, 32), dtype=np.float32))
    return hr, torch.nn.functional.avg_pool2d(hr[None], 4)[0]


@pytest.fixture(scope="module")
def predictors(small_ladder):
    return load_predictors(small_ladder)


@pytest.fixture(scope="module")
def source(predictors):
    return LocalSource(predictors)


@pytest.fixture(scope="module")
def held_out():
    hr, lr = zip(*(draw_pair(np.random.default_rng((1, index))) for index in range(3)), strict=True)
    return torch.stack(hr).clamp(0.2, 0.8), torch.stack(lr)


def run(policy, source, folder, config=CONFIG, *, held_out=None, stop_after=None):
    with Logbook(folder) as logbook:
        directory = RunDirectory(folder, logbook=logbook, session=Session.now(["finetune", "--out", str(folder)], "cpu"))
        steps = finetune(policy, source, draw_pair, lambda images: [images], config, directory, held_out=held_out)
        for step in steps:
            if step.step == stop_after:
                steps.close()


def sheets(folder):
    return sorted(path.name for path in (folder / IMAGES_NAME).glob("*.jpg"))


def curves(folder):
    book = EventAccumulator(str(folder / TENSORBOARD_NAME), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return book.Reload()


def points(book, tag):
    return [(event.step, event.value) for event in book.Scalars(tag)]


def test_pictures_are_taken_when_due_and_show_the_policy_as_it_is(small_policy, source, tmp_path):
    start = small_policy.frozen_copy()
    run(small_policy, source, tmp_path)
    assert sheets(tmp_path) == ["step-000003.jpg", "step-000006.jpg"]
    cases = read_cases(tmp_path)
    assert (cases.step, cases.rung, cases.held_out, len(cases.lr)) == (6, "RM_2", False, SHOWN)
    lr = torch.stack([draw_pair(np.random.default_rng((0, index, 2)))[1] for index in range(SHOWN)])
    for side, policy in ((cases.before, start), (cases.now, load_policy(str(tmp_path / "final")))):
        with torch.no_grad():
            images = sample_images(policy, lr, range(SHOWN))
        assert np.array_equal(side.images, (images * 255).round().byte().permute(0, 2, 3, 1).numpy())
        assert side.maps.shape == (SHOWN, 32, 32) and side.maps.min() >= 0 and side.maps.max() <= 1
    assert not np.array_equal(cases.before.images, cases.now.images)
    with Image.open(tmp_path / IMAGES_NAME / "step-000006.jpg") as sheet:
        assert sheet.format == "JPEG" and sheet.width > 4 * 192 and sheet.height > SHOWN * 2 * 192


def test_tensorboard_has_every_step_and_every_picture(small_policy, source, tmp_path, held_out):
    run(small_policy, source, tmp_path, WATCHED, held_out=held_out)
    book, records = curves(tmp_path), read_metrics(tmp_path / "metrics.jsonl")
    assert len(records) == 6
    for tag, key in {"reward/mean": "reward", "optimiser/grad_norm": "grad_norm", "reward/std": "reward_std"}.items():
        assert points(book, tag) == [(record["step"], pytest.approx(record[key], rel=1e-6)) for record in records]
    rungs = [value for _, value in points(book, "curriculum/rung")]
    assert rungs == sorted(rungs) and rungs[0] == 0 and rungs[-1] == 2
    looked = [(record["step"], pytest.approx(record["verdict"]["change"], rel=1e-6)) for record in records if record["verdict"]]
    assert points(book, "held_out/change") == looked and [step for step, _ in looked] == [2, 4, 6]
    assert "panel/psnr" in book.Tags()["scalars"] and "loss/reward" in book.Tags()["scalars"]
    kept = {event.step: event.encoded_image_string for event in book.Images("pictures/crops")}
    assert kept == {step: (tmp_path / IMAGES_NAME / f"step-{step:06d}.jpg").read_bytes() for step in (2, 4, 6)}


def test_tensorboard_calls_rungs_by_their_names():
    decision = {"move": "up", "rung": 1, "lr_scale": 1.0, "reasons": ["level", "calm"], "name": "RM_2"}
    assert remarks({"decision": decision}) == {"curriculum/decision": "up to RM_2: level; calm"}


@pytest.mark.parametrize("stop_after", [3, 5])
def test_a_resumed_run_has_every_step_and_every_picture_once(small_policy, source, tmp_path, held_out, stop_after):
    copies = [small_policy.frozen_copy() for _ in range(2)]
    for copy in copies:
        copy.unet.requires_grad_(True).train(small_policy.unet.training)
    config = dataclasses.replace(WATCHED, snapshot_every=1)
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run(small_policy, source, straight, config, held_out=held_out)
    run(copies[0], source, resumed, config, held_out=held_out, stop_after=stop_after)
    assert sheets(resumed)[-1] == f"step-{stop_after:06d}.jpg" and read_cases(resumed).step == stop_after
    run(copies[1], source, resumed, config, held_out=held_out)
    assert sheets(resumed) == sheets(straight) and len(sheets(straight)) == 6
    for name in [*sheets(straight), CASES_NAME]:
        assert (resumed / IMAGES_NAME / name).read_bytes() == (straight / IMAGES_NAME / name).read_bytes()
    ours, theirs = curves(straight), curves(resumed)
    assert ours.Tags()["scalars"] == theirs.Tags()["scalars"]
    for tag in ours.Tags()["scalars"]:
        if not tag.startswith("time/"):
            assert points(theirs, tag) == points(ours, tag)
    assert [event.step for event in theirs.Images("pictures/crops")] == [1, 2, 3, 4, 5, 6]


def test_what_comes_after_the_checkpoint_is_forgotten_before_the_run_goes_on(small_policy, source, predictors, tmp_path):
    """Stopped before the first new step, the folder is as it was at the checkpoint."""
    config = dataclasses.replace(CONFIG, snapshot_every=1)
    run(small_policy, source, tmp_path, config, stop_after=3)

    class Gone(LocalSource):
        def reward_fn(self, rung, weights):
            def reward(images):
                raise RewardError("the server is gone")

            return reward

    with pytest.raises(RewardError, match="gone"):
        run(small_policy, Gone(predictors), tmp_path, config)
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    assert sheets(tmp_path) == ["step-000001.jpg", "step-000002.jpg"]
    assert read_cases(tmp_path) is None
    assert "Before and after" not in [section.title for section in report_of_run(tmp_path).sections]


def test_an_alarm_leaves_a_picture_of_what_was_undone(small_policy, source, tmp_path, held_out, monkeypatch):
    look = Watch.look
    monkeypatch.setattr(Watch, "look", lambda *arguments: dataclasses.replace(look(*arguments), hacked=True, change=-1.0))
    config = dataclasses.replace(WATCHED, monitor=dataclasses.replace(WATCHED.monitor, on_alarm="stop"))
    run(small_policy, source, tmp_path, config, held_out=held_out)
    assert sheets(tmp_path) == ["step-000002-alarm.jpg", "step-000002.jpg"]
    assert set(curves(tmp_path).Tags()["images"]) == {"pictures/alarm", "pictures/crops"}
    cases = read_cases(tmp_path)
    assert np.array_equal(cases.before.images, cases.now.images)  # the best weights, those of the start, were taken back


def test_pictures_can_be_left_out(small_policy, source, tmp_path):
    run(small_policy, source, tmp_path, dataclasses.replace(CONFIG, snapshot_every=0))
    assert not (tmp_path / IMAGES_NAME).exists() and read_cases(tmp_path) is None
    assert points(curves(tmp_path), "reward/mean")


@pytest.mark.parametrize(
    ("asked", "steps", "monitor", "every"),
    [(None, 300, 0, 30), (None, 300, 25, 25), (None, 4, 0, 1), (7, 300, 25, 7), (0, 300, 25, 0)],
)
def test_the_interval_between_pictures(asked, steps, monitor, every):
    assert interval(asked, steps, monitor) == every
    with pytest.raises(ConfigError, match="snapshot_every"):
        FinetuneConfig(snapshot_every=-1)


def test_the_report_of_a_real_run(small_policy, source, tmp_path, held_out):
    run(small_policy, source, tmp_path, WATCHED, held_out=held_out)
    report = report_of_run(tmp_path)
    assert [section.title for section in report.sections] == [
        "Fine-tuning along the ladder",
        "Held-out panel",
        "Before and after",
        "How to do it again",
    ]
    ladder, panel, cases, origin = report.sections
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert list(ladder.charts[0].lines[0].y) == [record["reward"] for record in records]
    assert [one.name for one in ladder.charts[0].stretches] == ["RM_0", "RM_1", "RM_2"]
    assert [line.y for line in panel.charts[0].lines] == [[r["verdict"]["change"] for r in records if r["verdict"]]]
    assert len(cases.comparisons) == 3 and cases.has_heat
    assert origin.commands == [f"finpercep finetune --out {tmp_path}"]
    write_report(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/webp;base64,") == 3 * 6  # four pictures and two maps a crop


def test_the_commands(small_policy, small_ladder, tmp_path, monkeypatch):
    """`finpercep finetune` keeps what was typed, pictures and curves; `finpercep report` draws them."""
    for seed in range(2):
        path = tmp_path / "photos" / f"{seed}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_png(photo(64, 64, seed)))
    small_policy.save_pretrained(tmp_path / "policy")
    given = {"--reward": small_ladder, "--policy": tmp_path / "policy", "--data": tmp_path / "photos", "--out": tmp_path / "run"}
    sizes = ["--steps", "3", "--crop", "64", "--batch-size", "1", "--snapshot-every", "1", "--device", "cpu"]
    typed = ["finetune", *(str(word) for pair in given.items() for word in pair), *sizes]
    monkeypatch.setattr(sys, "argv", ["finpercep", *typed])
    done = CliRunner().invoke(app, typed)
    assert done.exit_code == 0, done.output
    lines = done.stderr.splitlines()
    told = [line.partition(":")[0] for line in lines if line.startswith("step ")]
    assert told == ["step 1/3, RM_0", "step 2/3, RM_1", "step 3/3, RM_2"]
    assert sheets(tmp_path / "run") == [f"step-00000{step}.jpg" for step in (1, 2, 3)]
    assert [step for step, _ in points(curves(tmp_path / "run"), "reward/mean")] == [1, 2, 3]
    (session,) = read_sessions(tmp_path / "run")
    assert shlex.split(session.command) == ["finpercep", *typed]
    done = CliRunner().invoke(app, ["report", str(tmp_path / "run")])
    assert done.exit_code == 0 and done.stdout.strip() == str(tmp_path / "run" / "report.html")
    assert session.command in html.unescape((tmp_path / "run" / "report.html").read_text())


def test_a_run_without_tensorboard_goes_on(monkeypatch, tmp_path, capsys):
    monkeypatch.delattr(torch.utils, "tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with curves_of(tmp_path) as logbook:
        assert logbook is None
    assert "tensorboard" in capsys.readouterr().err
