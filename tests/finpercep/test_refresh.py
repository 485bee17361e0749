"""Refreshing the reward: trained on the policy's own outputs, judged on a frozen split, published, and remembered by the run."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from data_synth.photos import gather
from data_synth.recipe import Recipe
from data_synth.schema import SchemaError, read_split
from finpercep.checkpoint import read_ladder, write_checkpoint, write_ladder
from finpercep.cli.publishing import LocalPublisher, ServerAccess, ladder_behind, unrefreshed
from finpercep.cli.refresh import LadderRefresher, RefreshConfig, not_worse, open_refresher
from finpercep.cli.sr_models import PolicySRModel, policy_digest
from finpercep.client import RewardClient
from finpercep.curriculum.loop import FinetuneConfig, finetune
from finpercep.curriculum.run_directory import RunDirectory
from finpercep.errors import ConfigError
from finpercep.local_reward import LocalSource
from finpercep.metric_reward import MetricSource
from finpercep.predictor import load_predictor, load_predictors, packaged_model_folder
from finpercep.reward import RewardWeights
from finpercep.rl.refl import ReflConfig
from finpercep.rl.world import ALONE
from finpercep.sr.loading import load_policy
from finpercep.sr.policy import sample_images
from finpercep.training.data import Joined, repeated
from finpercep.weighted_reward import Part, WeightedSource
from rm_server.app import create_app
from rm_server.settings import Settings
from tests.fakes import AppTransport, registry_of
from tests.torchrun import run_together

CPU = torch.device("cpu")
SMALL = RefreshConfig(samples=24, steps=2, batch_size=4, crop=64, margin=1.0)
RUN = FinetuneConfig(
    steps=4, rungs=("RM_0", "RM_1"), batch_size=1, crop=64, save_every=1, snapshot_every=0, algorithm=ReflConfig(gram_weight=0.0)
)


def draw_pair(rng: np.random.Generator):
    hr = torch.from_numpy(rng.random((3, 64, 64), dtype=np.float32))
    return hr, torch.nn.functional.avg_pool2d(hr[None], 4)[0]


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A data set that stands for what the reward model knows, so that the tests need not run the SR zoo."""
    from data_synth.build import build_dataset
    from data_synth.plan import BuildConfig
    from data_synth.recipe import RecipeConfig

    out = tmp_path_factory.mktemp("known")
    config = BuildConfig(24, shard_size=12, validation=0.2, test=0.2, recipe=RecipeConfig(crop=64))
    list(build_dataset(gather(["samples"]), out, config))
    return out


def refresher_in(folder, source, known, config=SMALL, **more):
    config = RefreshConfig(**{**vars(config), "data": str(known)})
    publisher = LocalPublisher(source, CPU)
    about = {"device": CPU, "world": ALONE, **more}
    return LadderRefresher(folder, packaged_model_folder(), gather(["samples"]), config, publisher, **about)


def packaged():
    return LocalSource(load_predictors(packaged_model_folder()))


def test_a_run_refreshes_a_rung_once_and_continues_with_it(tmp_path, known, capsys):
    def start(stop_after=None, source=None):
        source = source or packaged()
        refresher = refresher_in(tmp_path / "refresh", source, known)
        steps, policy = [], load_policy("tiny")
        run = RunDirectory(tmp_path / "run")
        for step in finetune(policy, source, draw_pair, lambda x: [x], RUN, run, refresher=refresher):
            steps.append(step)
            if step.step == stop_after:
                break
        return source, steps

    before = packaged().digests()
    source, steps = start(stop_after=3)  # RM_1 is blended in from some step on, and is refreshed before
    (folder,) = (tmp_path / "refresh").glob("RM_1@*")
    record = json.loads((folder / "refresh.json").read_text())
    assert record["accepted"] and record["digest"] != before["RM_1"] == record["digest_before"]
    assert source.digests() == {**before, "RM_1": record["digest"]}
    assert load_predictor(folder / "ladder", "RM_0").digest == before["RM_0"]  # the anchor is the one it was
    assert [step.refreshed for step in steps if step.refreshed] == [record["said"]] and "RM_1 refreshed" in record["said"]
    stamp = (folder / "refresh.json").stat().st_mtime_ns

    again, steps = start()
    assert [step.step for step in steps] == [4] and again.digests() == source.digests()
    assert (folder / "refresh.json").stat().st_mtime_ns == stamp and len(list((tmp_path / "refresh").iterdir())) == 1

    whole = tmp_path / "whole"
    refresher = refresher_in(tmp_path / "refresh-2", source := packaged(), known)
    policy = load_policy("tiny")
    list(finetune(policy, source, draw_pair, lambda x: [x], RUN, RunDirectory(whole), refresher=refresher))
    assert policy_digest(whole / "final") == policy_digest(tmp_path / "run" / "final")  # bit for bit, training included

    with pytest.raises(ConfigError, match="RM_1 was refreshed in this run; continue it with --refresh"):
        list(finetune(policy, packaged(), draw_pair, lambda x: [x], RUN, RunDirectory(whole)))


@pytest.mark.parametrize("blind", [False, True])
def test_what_it_is_trained_on_is_the_policys_own(tmp_path, known, blind):
    policy = load_policy("tiny")
    refresher = refresher_in(tmp_path, packaged(), known, blind=blind)
    folder = refresher._begin("RM_1", policy)
    rows = list(read_split(folder / "data", "train"))
    recipes = [Recipe.from_json(row.recipe) for row in rows]
    made = [recipe.model for recipe in recipes if recipe.kind == "swap"]
    assert {model.name for model in made} == {"policy"} and all(not recipe.artefacts for recipe in recipes)
    assert {len(recipe.degradation.stages) for recipe in recipes} == {2 if blind else 1}  # Real-ESRGAN's has two
    row, model = next((row, recipe.model) for row, recipe in zip(rows, recipes, strict=True) if recipe.kind == "swap")
    lr = torch.from_numpy(row.lr).permute(2, 0, 1)[None].float() / 255
    expected = sample_images(policy, lr, [model.seed])[0]
    shown = torch.from_numpy(row.sr).permute(2, 0, 1).float() / 255
    assert (expected - shown).abs().mean() < 0.02  # but for the LR image's rounding to 8 bits
    assert PolicySRModel.load(folder / "policy", "policy").version == policy_digest(folder / "policy")


def test_a_rung_that_lost_more_than_the_margin_is_not_published(tmp_path, known):
    source = packaged()
    refresher = refresher_in(tmp_path, source, known)
    record = {"accepted": False, "folder": "RM_1@0", "digest": "sha256:0"}
    before = source.digests()
    refresher.adopt("RM_1", record)
    assert source.digests() == before


def test_a_served_rung_is_swapped_and_the_run_knows_what_it_began_with(tmp_path, known):
    root, ladder = tmp_path / "root", tmp_path / "run" / "refresh" / "RM_1@0f" / "ladder"
    root.mkdir()
    shutil.copytree(packaged_model_folder(), ladder)
    other = load_predictor(ladder, "RM_1").model
    next(other.parameters()).data.add_(0.01)
    digest = write_checkpoint(ladder / "RM_1", other.config.to_json(), other.state_dict())
    entries = [dataclasses.replace(e, digest=digest) if e.rung == "RM_1" else e for e in read_ladder(ladder).rungs]
    write_ladder(ladder, "refreshed", entries)

    before = packaged().digests()
    record = {"accepted": True, "folder": "RM_1@0f", "digest": digest, "digest_before": before["RM_1"]}
    (ladder.parent / "refresh.json").write_text(json.dumps(record))
    app = create_app(registry_of(load_predictors(packaged_model_folder())), Settings(model_root=root, admin_token="x" * 16))
    (photos,) = gather(["samples"])
    with RewardClient("http://test", transport=AppTransport(app)) as client:
        about = {"seed": 0, "device": CPU, "world": ALONE}
        with pytest.raises(ConfigError, match="needs --model-root and --admin-token-file"):
            open_refresher(["http://test"], client, photos, SMALL, tmp_path / "run", **about)
        access = ServerAccess(root, "x" * 16)
        with pytest.raises(ConfigError, match="of a served reward"):
            open_refresher(["packaged"], packaged(), photos, SMALL, tmp_path / "run", **about, access=access)
        refresher = open_refresher(["http://test"], client, photos, SMALL, tmp_path / "run", **about, access=access)
        refresher.adopt("RM_1", record)
        assert {rung.name: rung.digest for rung in client.model().rungs} == {**before, "RM_1": digest}
        client.reward_fn("RM_1", RewardWeights())(torch.rand(1, 3, 64, 64))  # held to the new digest
        # continued: the server serves the refreshed rung, and the run is still the one that began with the old one
        assert unrefreshed(tmp_path / "run" / "refresh", {**before, "RM_1": digest}) == before
        open_refresher(["http://test"], client, photos, SMALL, tmp_path / "run", **about, access=access).adopt("RM_1", record)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(0.8, 0.8, True), (0.8, 0.79, True), (0.8, 0.7, False), (None, None, True), (0.8, None, False), (None, 0.1, True)],
)
def test_not_worse(before, after, expected):
    assert not_worse(before, after, 0.02) is expected


def test_the_ladder_behind_a_reward_is_found_by_its_digests(tmp_path):
    digests = packaged().digests()
    copy = tmp_path / "copy"
    shutil.copytree(packaged_model_folder(), copy)
    assert ladder_behind(digests, [tmp_path / "none", copy]) == copy
    with pytest.raises(ConfigError, match=r"none of .* is it"):
        ladder_behind({**digests, "RM_2": "sha256:0"}, [copy])


def test_a_reward_without_a_ladder_cannot_be_refreshed(tmp_path):
    source = MetricSource("brightness", lambda images: images.mean((1, 2, 3)))
    (photos,) = gather(["samples"])
    with pytest.raises(ConfigError, match="--refresh needs a ladder"):
        open_refresher(["python:a:b"], source, photos, SMALL, tmp_path, seed=0, device=CPU, world=ALONE)


def test_a_ladder_beside_another_reward_can_be_refreshed(tmp_path, known):
    source = packaged()
    both = WeightedSource([Part("ladder", 1.0, source), Part("b", 0.5, MetricSource("b", lambda images: images.mean((1, 2, 3))))])
    (photos,) = gather(["samples"])
    config = dataclasses.replace(SMALL, data=str(known))
    open_refresher(["packaged", "0.5*python:a:b"], both, photos, config, tmp_path, seed=0, device=CPU, world=ALONE)


@pytest.mark.parametrize(("count", "crop"), [(2, 64), (None, 4096)])
def test_photos_too_few_or_too_small_are_refused_at_once(tmp_path, count, crop):
    (photos,) = gather(["samples"])
    photos = dataclasses.replace(photos, photos=photos.photos[:count])
    config = dataclasses.replace(SMALL, crop=crop)
    with pytest.raises(ConfigError, match=f"at least crop, {crop} px, and three or more"):
        open_refresher(["packaged"], packaged(), photos, config, tmp_path, seed=0, device=CPU, world=ALONE)


def test_a_run_on_one_rung_has_nothing_to_refresh(tmp_path, known):
    source = packaged()
    config, run = dataclasses.replace(RUN, rungs=("RM_1",)), RunDirectory(tmp_path / "run")
    refresher = refresher_in(tmp_path, source, known)
    steps = finetune(load_policy("tiny"), source, draw_pair, lambda x: [x], config, run, refresher=refresher)
    with pytest.raises(ConfigError, match="only RM_1 is in use"):
        next(steps)
    assert not (tmp_path / "run").exists()


def test_known_data_that_cannot_be_used_is_refused_at_once(tmp_path, known):
    (photos,) = gather(["samples"])
    for data, error, message in (
        (tmp_path / "none", SchemaError, "finpercep synth"),
        (known, ConfigError, "samples, 64 px, got 128"),
    ):
        config = dataclasses.replace(SMALL, data=str(data), crop=128)
        with pytest.raises(error, match=message):
            open_refresher(["packaged"], packaged(), photos, config, tmp_path, seed=0, device=CPU, world=ALONE)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_refresh_a_rung_together(tmp_path, known):
    run_together("tests.finpercep.refresh_process", str(tmp_path), str(known))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and len(first["steps"]) == 2
    (record,) = [json.loads(path.read_text()) for path in (tmp_path / "refresh").glob("RM_1@*/refresh.json")]
    assert first["digests"]["RM_1"] == record["digest"] != record["digest_before"]


def test_bad_settings_are_refused():
    for bad in ({"samples": 3}, {"steps": 0}, {"crop": 40}, {"lr": 0.0}, {"margin": 2.0}):
        with pytest.raises(ConfigError, match="refresh:"):
            RefreshConfig(**bad)


def test_joined_and_repeated_samples():
    ab, c = list("ab"), list("c")
    joined = Joined([ab, c, repeated(ab, 3)])
    assert list(joined) == ["a", "b", "c", "a", "b", "a"] and joined[1:4] == ["b", "c", "a"]
    assert list(repeated("abcdef", 3)) == ["a", "c", "e"] and len(repeated("abcdef", 6)) == 6
    with pytest.raises(IndexError):
        joined[6]
