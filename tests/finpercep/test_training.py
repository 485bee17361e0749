"""Ladder training on a small real dataset: it learns what it should, resumes exactly, and keeps its contract."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from data_synth.schema import Row
from finpercep.errors import ConfigError, TrainingError
from finpercep.predictor import load_predictors
from finpercep.reward_model.build import build_reward_model
from finpercep.reward_model.config import RewardModelConfig
from finpercep.reward_model.ladder import LadderConfig
from finpercep.training.data import Selected, augment, draw_tint, epoch_index, training_batch, whole_batch
from finpercep.training.evaluate import evaluate_rung
from finpercep.training.objective import LossWeights, triplet_losses
from finpercep.training.processes import make_accelerator
from finpercep.training.run_config import claim_config
from finpercep.training.rung import RungTrainer
from finpercep.training.train import RungReport, StepReport, TrainConfig, train_ladder

SIDE = 64


def sample(index: int) -> Row:
    """A smooth picture; sr carries strong noise everywhere, syn the same inside a square, which the map marks."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    gt = np.stack([np.cos(3 * (x * rng.uniform(0.2, 1) + y * rng.uniform(0.2, 1)) + rng.uniform(0, 6)) for _ in range(3)], -1)
    gt8 = np.rint((gt * 0.3 + 0.5) * 255).astype(np.uint8)
    sr8 = np.clip(gt8 + rng.normal(0, 40, gt8.shape), 0, 255).astype(np.uint8)
    mask = np.zeros((SIDE, SIDE), dtype=np.float32)
    top, left = rng.integers(0, SIDE - 24, 2)
    mask[top : top + 24, left : left + 24] = 1
    syn8 = np.where(mask[..., None] > 0, sr8, gt8)
    return Row(
        gt=gt8, lr=gt8[::4, ::4], sr=sr8, syn=syn8, mask=mask, map=mask.copy(), recipe="{}", source_id=str(index), index=index,
        quality_gt=1.0, quality_sr=0.2, quality_syn=0.7,
    )  # fmt: skip


SAMPLES = [sample(index) for index in range(12)]
CONFIG = TrainConfig(
    ladder=LadderConfig(RewardModelConfig(head_hidden=16), (16, 4)),
    steps=(3, 3, 4),
    batch_size=4,
    crop=48,
    save_every=2,
    precision="fp32",
    validate_every=2,
    half=False,
)


def run(out, config=CONFIG, stop_at=None, **options):
    reports = []
    for report in train_ladder(SAMPLES[:8], SAMPLES[8:], config, out, **options):
        reports.append(report)
        if isinstance(report, StepReport) and (report.rung, report.step) == stop_at:
            break
    return reports


def weights_of(folder):
    return {rung: p.model.state_dict() for rung, p in load_predictors(folder).items()}


def test_a_ladder_is_trained_rung_by_rung(tmp_path):
    reports = run(tmp_path)
    rungs = [report.rung for report in reports if isinstance(report, RungReport)]
    assert rungs == ["RM_0", "RM_1", "RM_2"]
    steps = [(r.rung, sorted(r.losses)) for r in reports if isinstance(r, StepReport) and r.step == 1]
    assert steps == [
        ("RM_0", ["quality", "rank", "total"]),
        ("RM_1", ["align", "map", "quality", "rank", "total"]),
        ("RM_2", ["align", "map", "quality", "rank", "total"]),
    ]
    assert list(load_predictors(tmp_path)) == rungs
    assert not (tmp_path / "run_state.pt").exists()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run: its folder and its reports."""
    out = tmp_path_factory.mktemp("straight")
    return out, run(out)


def assert_same_weights(one, other):
    for (rung, mine), theirs in zip(weights_of(one).items(), weights_of(other).values(), strict=True):
        for name, tensor in mine.items():
            assert torch.equal(tensor, theirs[name]), (rung, name)


@pytest.mark.parametrize("stop_at", [("RM_0", 3), ("RM_1", 1), ("RM_2", 3)])
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path, straight, stop_at):
    run(tmp_path, stop_at=stop_at)
    reports = run(tmp_path)
    assert_same_weights(tmp_path, straight[0])
    assert reports[-1] == straight[1][-1]


def test_loader_threads_change_nothing(tmp_path, straight):
    run(tmp_path, threads=4)
    assert_same_weights(tmp_path, straight[0])


def test_a_finished_ladder_is_reported_again_but_not_trained_again(straight):
    out, first = straight
    assert run(out) == [report for report in first if isinstance(report, RungReport)]


def test_steps_tell_rate_gradient_and_validation(straight):
    steps = [report for report in straight[1] if isinstance(report, StepReport) and report.rung == "RM_2"]
    assert [report.step for report in steps if report.validation] == [2, 4]
    assert [report.lr for report in steps] == sorted((report.lr for report in steps), reverse=True)
    assert all(report.grad_norm > 0 for report in steps)


def test_the_best_by_validation_is_stored(tmp_path):
    """From a model that knows, with a learning rate that ruins it: what is stored must be the earliest look."""
    config = dataclasses.replace(CONFIG, ladder=LadderConfig(CONFIG.ladder.base, ()), steps=(30,), lr=3e-3)
    run(tmp_path / "good", config)
    start = {"RM_0": load_predictors(tmp_path / "good")["RM_0"].model}
    ruin = dataclasses.replace(config, steps=(12,), lr=0.3, ema=0.0, validate_every=1, patience=4)
    reports = run(tmp_path / "ruined", ruin, start=start)
    looks = [report.validation.figure for report in reports if isinstance(report, StepReport)]
    final = reports[-1]
    best = max(range(len(looks)), key=lambda place: (looks[place], place))
    assert final.step == best + 1
    assert final.quality.ranking.triplet == looks[best]
    assert final.steps == len(looks) < 12, "it must have been stopped early"


def test_without_validation_photos_the_last_average_is_stored(tmp_path):
    config = dataclasses.replace(CONFIG, ladder=LadderConfig(CONFIG.ladder.base, ()), steps=(3,))
    *steps, final = train_ladder(SAMPLES[:8], [], config, tmp_path)
    assert (final.step, final.steps, final.quality) == (3, 3, None)
    assert all(report.validation is None for report in steps)


def test_the_map_learns_to_see_the_defect(tmp_path):
    """Unseen pictures, known kind of defect: paired AUROC well above chance, and gt ranked above syn above sr."""
    config = dataclasses.replace(CONFIG, steps=(30, 30, 40), lr=3e-3)
    final = run(tmp_path, config)[-1]
    assert isinstance(final, RungReport)
    assert final.quality.map.paired_auroc > 0.9
    assert final.quality.ranking.triplet == 1.0


def test_training_starts_from_given_weights(tmp_path, small_ladder):
    torch.manual_seed(1)
    start = {"RM_1": build_reward_model(RewardModelConfig(map_stride=16, head_hidden=16))}
    config = dataclasses.replace(CONFIG, lr=0.0, weight_decay=0.0)
    run(tmp_path, config, start=start)
    trained = weights_of(tmp_path)["RM_1"]
    for name, tensor in start["RM_1"].named_parameters():
        assert torch.equal(tensor.detach(), trained[name]), name


def test_the_anchor_holds_the_score_of_clean_images():
    settings = RewardModelConfig(lr_input=False)
    model = build_reward_model(dataclasses.replace(settings, map_stride=16))
    anchor = build_reward_model(settings).eval()
    batch = whole_batch(SAMPLES, range(4))
    losses = triplet_losses(model, anchor, batch, LossWeights(align=2.0))
    model_scores = model(torch.cat([batch.gt, batch.syn, batch.sr])).score[:4]
    expected = 2.0 * (model_scores - anchor(batch.gt).score).abs().mean()
    assert losses["align"].item() == pytest.approx(expected.item(), abs=1e-4)
    losses["total"].backward()
    assert all(parameter.grad is None for parameter in anchor.parameters())


def test_sr_is_only_judged_where_its_map_is_known():
    """Outside the mask M_gt of sr is unknown: changing what the model says there must not change the loss."""
    model = build_reward_model(RewardModelConfig(map_stride=16, lr_input=False)).eval()
    batch = whole_batch(SAMPLES, range(2))
    nowhere = dataclasses.replace(batch, mask=torch.zeros_like(batch.mask), map=torch.zeros_like(batch.map))
    weights = LossWeights(map_bce=0.0)
    with torch.no_grad():
        loss = triplet_losses(model, None, nowhere, weights)["map"]
        maps = model(torch.cat([batch.gt, batch.syn])).map
    assert loss.item() == pytest.approx(maps.mean().item(), abs=1e-5)


def test_the_sr_of_a_clean_sample_is_not_taught_to_be_clean():
    """Its syn is gt, whatever the mask: M_gt = 0 says nothing about the broken sr beside it."""
    clean = dataclasses.replace(SAMPLES[0], syn=SAMPLES[0].gt, map=np.zeros_like(SAMPLES[0].map))
    assert clean.mask.max() == 1 and (clean.sr != clean.gt).any()
    batch = whole_batch([clean, SAMPLES[1]], range(2))
    assert batch.mask[0].max() == 0
    assert torch.equal(batch.mask[1], torch.from_numpy(SAMPLES[1].mask))


def test_augmentation_keeps_planes_aligned_and_resamples_nothing():
    """Every plane shows the same place; up to a tint, which is linear and the same for all, pixels are those of the photo."""
    row = SAMPLES[0]
    rng = np.random.default_rng(0)
    values, tinted = set(np.unique(row.gt.astype(np.float32) / 255)), 0
    for _ in range(20):
        planes = augment(row, rng, 40)
        assert planes["map"].shape == (40, 40) and planes["lr"].shape == (3, 10, 10)
        changed = np.abs(planes["syn"] - planes["gt"]).sum(axis=0) > 0
        assert (planes["map"][changed] == 1).all()
        is_plain = set(np.unique(planes["gt"])) <= values
        tinted += not is_plain
    assert 0 < tinted < 20


def test_the_lr_picture_is_cropped_with_the_others():
    """lr holds every fourth pixel of gt here: it must still do so after any augmentation."""
    rng = np.random.default_rng(1)
    row = dataclasses.replace(SAMPLES[0], lr=SAMPLES[0].gt[::4, ::4])
    for _ in range(20):
        planes = augment(row, rng, 40)
        corners = [planes["gt"][:, i::4, j::4] for i in (0, 3) for j in (0, 3)]
        assert min(np.abs(corner - planes["lr"]).max() for corner in corners) < 1e-6


def test_a_tint_clips_nothing_and_commutes_with_means():
    rng = np.random.default_rng(2)
    picture = rng.uniform(size=(3, 8, 8)).astype(np.float32)
    tints = [tint for tint in (draw_tint(rng) for _ in range(50)) if tint]
    assert 10 < len(tints) < 40
    for tint in tints:
        got = tint.apply(picture)
        assert got.min() >= 0 and got.max() <= 1
        halves = tint.apply(picture[:, ::2]) / 2 + tint.apply(picture[:, 1::2]) / 2
        assert np.allclose(tint.apply(picture[:, ::2] / 2 + picture[:, 1::2] / 2), halves, atol=1e-6)


def test_the_lr_picture_is_shown_for_about_half_of_the_samples():
    known = torch.cat([training_batch(SAMPLES, step, batch_size=12, crop=40, seed=0).lr_known for step in range(20)])
    assert 0.35 < known.float().mean() < 0.65
    assert whole_batch(SAMPLES, range(3)).lr_known.all()


def test_a_selection_of_samples():
    some = Selected(SAMPLES, [3, 1])
    assert [row.index for row in some] == [3, 1] and len(some) == 2
    assert [row.index for row in some[1:]] == [1]


def test_every_epoch_visits_every_sample_once():
    for epoch in range(3):
        visited = [epoch_index(12, position, seed=4) for position in range(12 * epoch, 12 * (epoch + 1))]
        assert sorted(visited) == list(range(12))
    assert training_batch(SAMPLES, 5, batch_size=4, crop=32, seed=0).gt.equal(
        training_batch(SAMPLES, 5, batch_size=4, crop=32, seed=0).gt
    )


def test_a_rung_goes_on_in_the_samples_where_the_last_one_ended():
    accelerator = make_accelerator(torch.device("cpu"), "fp32")
    model = build_reward_model(CONFIG.ladder.rungs()[0][1])
    for position, before in enumerate((0, 3, 6)):
        drawn = RungTrainer(model, None, SAMPLES, CONFIG, position, accelerator).draw(1)
        expected = training_batch(SAMPLES, before + 1, batch_size=4, crop=48, seed=0)
        assert torch.equal(drawn.syn, expected.syn)


def test_a_crop_that_misses_the_fault_is_a_clean_picture():
    rng = np.random.default_rng(0)
    batches = [training_batch(SAMPLES, int(rng.integers(1000)), batch_size=8, crop=32, seed=0) for _ in range(6)]
    clean = torch.cat([(batch.syn == batch.gt).flatten(1).all(dim=1) for batch in batches])
    quality = torch.cat([batch.quality_syn for batch in batches])
    assert 0 < clean.sum() < len(clean)
    assert (quality[clean] == 1).all() and torch.allclose(quality[~clean], torch.tensor(0.7))
    assert all((batch.quality_sr == 0.2).all() for batch in batches)


def test_shares_of_a_batch_add_up_to_it():
    whole = training_batch(SAMPLES, 5, batch_size=6, crop=32, seed=0)
    parts = [training_batch(SAMPLES, 5, batch_size=6, crop=32, seed=0, share=range(at, at + 2)) for at in (0, 2, 4)]
    for name in ("gt", "syn", "mask", "quality_sr"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_evaluation_leaves_the_models_mode_alone():
    model = build_reward_model(RewardModelConfig(map_stride=16)).train()
    evaluate_rung(model, SAMPLES[:3])
    assert model.training


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="training split is empty"):
        list(train_ladder([], [], CONFIG, tmp_path))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": (1, 2)}, "3 rungs"),
        ({"precision": "int8"}, "precision must be one of"),
        ({"ema": 1.0}, r"ema must lie in \[0, 1\)"),
        ({"validate_every": 0}, "validate_every must be at least 1"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"patience": -1}, "patience must not be negative"),
        ({"lr": -1.0}, "lr must be finite"),
        ({"lr": math.nan}, "lr must be finite"),
        ({"weight_decay": -1.0}, "weight_decay must be finite"),
        ({"ladder": LadderConfig(map_strides=(12, 4)), "steps": (1, 1, 1)}, "map_stride must be a power of two"),
    ],
)
def test_bad_settings_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**wrong)


def test_half_precision_needs_a_gpu():
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        make_accelerator(torch.device("cpu"), "fp16")


def test_brain_floats_train_too(tmp_path):
    config = dataclasses.replace(CONFIG, ladder=LadderConfig(CONFIG.ladder.base, ()), steps=(2,), precision="bf16")
    *steps, _ = run(tmp_path, config)
    exact, _ = run(tmp_path / "exact", dataclasses.replace(config, precision="fp32", steps=(1,)))
    assert steps[0].losses["total"] == pytest.approx(exact.losses["total"], rel=0.05)
    assert steps[0].losses != exact.losses


def test_a_non_finite_loss_names_rung_and_step(tmp_path):
    broken = [dataclasses.replace(row, quality_syn=float("nan")) for row in SAMPLES]
    with pytest.raises(TrainingError, match=r"RM_0, step 1: loss is nan"):
        list(train_ladder(broken, [], CONFIG, tmp_path))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("ladder.json", "holds a ladder that no run here began; use an empty folder, and --start DIR to train it on"),
        ("RM_1/config.json", "holds a ladder that no run here began"),
        ("zoo.json", "holds an SR zoo that no run here began; use an empty folder$"),
        ("policy.json", "holds an SR model that no run here began"),
    ],
)
def test_a_result_that_no_run_here_began_is_not_taken_for_ones_own(tmp_path, file, message):
    claim_config(tmp_path / "new" / "config.toml", {"steps": 3})
    (tmp_path / "new" / file).parent.mkdir(exist_ok=True)
    (tmp_path / "new" / file).touch()
    claim_config(tmp_path / "new" / "config.toml", {"steps": 3})
    (tmp_path / "new" / "config.toml").unlink()
    with pytest.raises(ConfigError, match=message):
        claim_config(tmp_path / "new" / "config.toml", {"steps": 3})
    assert not (tmp_path / "new" / "config.toml").exists()
