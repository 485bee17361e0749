"""The metric's interfaces: same numbers as the predictor, gradients for a loss, means over images and processes."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from finpercep.errors import ConfigError, RewardError, RewardRejected
from finpercep.export import OPSET
from finpercep.metric import FinPercepAccumulator, FinPercepMetric
from finpercep.predictor import load_predictors
from tests.fakes import photo

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def metric(small_ladder):
    return FinPercepMetric("RM_2", model=small_ladder)


def batch(count, seed=0):
    return torch.rand(count, 3, 48, 64, generator=torch.Generator().manual_seed(seed))


def test_scores_are_the_predictors_whatever_form_the_picture_has(metric, small_ladder, tmp_path):
    pixels = photo(70, 90)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    expected = load_predictors(small_ladder)["RM_2"].assess(pixels)
    tensor = torch.tensor(pixels).permute(2, 0, 1)[None]
    for form in (tmp_path / "photo.png", str(tmp_path / "photo.png"), Image.fromarray(pixels), tensor, tensor / 255):
        score = metric(form)
        assert score.shape == (1,) and not score.requires_grad
        assert score.item() == pytest.approx(expected.score, abs=1e-6)
        assert metric.rewards(form).mean_degradation.item() == pytest.approx(expected.mean_degradation, abs=1e-6)
    assert metric(batch(5)).shape == (5,)
    assert not metric.lower_better and metric.score_range == (0.0, 1.0)


def test_the_loss_is_one_minus_the_score_and_its_gradient_the_scores(metric, small_ladder):
    loss = FinPercepMetric("RM_2", model=small_ladder, as_loss=True)
    images = batch(2).requires_grad_()
    values = loss(images)
    assert loss.lower_better
    assert torch.allclose(values, 1 - metric(images), atol=1e-6)
    (gradient,) = torch.autograd.grad(values.sum(), images)
    (of_score,) = torch.autograd.grad(loss.model(images).score.sum(), images)
    assert torch.allclose(gradient, -of_score, atol=1e-7) and gradient.abs().max() > 0
    assert not any(weight.requires_grad for weight in loss.parameters())
    with torch.no_grad():
        assert not loss(images).requires_grad


def test_it_stays_in_eval_mode_inside_a_module_that_trains(metric):
    before = metric(batch(2))
    torch.nn.ModuleList([metric]).train()
    assert torch.equal(metric(batch(2)), before)
    assert not metric.model.training


def test_bad_input_is_refused_and_not_counted(metric, small_ladder):
    accumulator = FinPercepAccumulator(metric)
    for bad in (torch.rand(3, 48, 48), torch.full((1, 3, 48, 48), 1.5), torch.rand(1, 3, 31, 48)):
        with pytest.raises(RewardRejected):
            accumulator.update(bad)
    with pytest.raises(RewardError, match="at least one image"):
        accumulator.compute()
    with pytest.raises(ConfigError, match="got 'RM_7'"):
        FinPercepMetric("RM_7", model=small_ladder)


def test_the_accumulator_does_not_see_how_images_were_batched(metric):
    images = batch(7)
    rewards = metric.rewards(images)
    accumulator = FinPercepAccumulator(metric)
    for part in images.split([3, 1, 2, 1]):
        accumulator.update(part)
    got = accumulator.compute()
    for name in ("score", "mean_degradation", "max_degradation"):
        assert got[name].item() == pytest.approx(getattr(rewards, name).mean().item(), abs=1e-6)
    assert accumulator.compute() == got
    accumulator.reset()
    accumulator.update(images[:1])
    assert accumulator.compute()["score"].item() == pytest.approx(rewards.score[0].item(), abs=1e-6)


def test_a_rung_without_a_map_reports_no_degradation(small_ladder):
    accumulator = FinPercepAccumulator(FinPercepMetric("RM_0", model=small_ladder))
    accumulator.update(batch(2))
    assert list(accumulator.compute()) == ["score"]


def accumulate_in_group(rank, ladder, meeting, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    accumulator = FinPercepAccumulator(FinPercepMetric("RM_2", model=ladder))
    if rank == 0:
        accumulator.update(batch(3))  # the other process has no images, and still takes part
    first, second = accumulator.compute(), accumulator.compute()
    torch.distributed.destroy_process_group()
    queue.put({name: (value.item(), second[name].item()) for name, value in first.items()})


def test_processes_of_a_group_agree_on_the_mean(metric, small_ladder, tmp_path):
    expected = metric(batch(3)).mean().item()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=accumulate_in_group, args=(r, small_ladder, tmp_path / "meet", queue)) for r in range(2)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    for result in results:
        assert result["score"] == pytest.approx((expected, expected), abs=1e-6)


@pytest.mark.parametrize(("page", "least"), [("reward_model.md", 5), ("training.md", 1)])
def test_the_documented_examples_run(page, least, small_ladder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_ladder, "runs/ladder")
    Image.fromarray(photo(96, 120)).save("photo.png")
    Image.fromarray(photo(24, 30)).save("photo.lr.png")
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)
    assert len(blocks) >= least
    for block in blocks:
        exec(compile(block, page, "exec"), {"images": batch(2)})


def test_the_documented_operator_set_is_the_exports():
    assert f"opset {OPSET}" in (DOCS / "reward_model.md").read_text()


def test_weights_loaded_into_it_are_used(metric):
    """As when the state of a module that holds it is restored."""
    images = batch(2)
    before = metric(images)
    metric.load_state_dict({name: tensor * 0.9 for name, tensor in metric.state_dict().items()})
    with torch.no_grad():
        expected = metric.model(images).score
    assert torch.allclose(metric(images), expected, atol=1e-5) and not torch.allclose(before, expected, atol=1e-5)


def test_a_copy_forgets_for_itself_and_knows_its_digest(metric):
    images = torch.rand(2, 3, 64, 64)
    mine, before = metric(images), metric.digest
    copied = copy.deepcopy(pickle.loads(pickle.dumps(metric)))
    state = {
        name: tensor + 0.01 * torch.ones_like(tensor) if tensor.is_floating_point() else tensor
        for name, tensor in copied.state_dict().items()
    }
    copied.load_state_dict(state)
    assert not torch.equal(copied(images), mine) and copied.digest != before
    assert torch.equal(metric(images), mine) and metric.digest == before
    copied.load_state_dict(metric.state_dict())
    assert torch.equal(copied(images), mine) and copied.digest == before
