"""`finpercep eval-rm`: one JSON object, tables, the page, and provenance read from real recipes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from data_synth.build import build_dataset
from data_synth.photos import photo_source
from data_synth.plan import BuildConfig
from data_synth.recipe import Recipe, RecipeConfig
from data_synth.schema import read_split
from data_synth.schema.pixels import encode_png
from finpercep.cli.eval_rm import eval_rm, read_provenance
from finpercep.errors import ConfigError
from finpercep.predictor import load_predictors
from finpercep.training.evaluate import evaluate_rung
from finpercep.training.iqa_metrics import MetricJudge
from tests.fakes import photo

app = typer.Typer()
app.command()(eval_rm)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    config = BuildConfig(count=36, shard_size=12, validation=0.34, test=0.3, recipe=RecipeConfig(crop=64))
    list(build_dataset([photo_source("samples")], folder, config))
    return folder


@pytest.fixture
def marked(tmp_path):
    for index in range(4):
        marks = np.zeros((40, 48), dtype=np.uint8)
        marks[:20, : 10 * (index + 1)] = 255
        for role, pixels in (("images", photo(40, 48, index)), ("masks", marks), ("originals", photo(40, 48, index + 9))):
            (tmp_path / "marked" / role).mkdir(parents=True, exist_ok=True)
            (tmp_path / "marked" / role / f"{index}.png").write_bytes(encode_png(pixels))
    return tmp_path / "marked"


@pytest.fixture
def opinions(tmp_path):
    for index in range(9):
        (tmp_path / f"{index}.png").write_bytes(encode_png(photo(40, 40, index)))
    (tmp_path / "mos.csv").write_text("image,mos\n" + "".join(f"{index}.png,{10 * index}\n" for index in range(9)))
    return tmp_path / "mos.csv"


def run(*arguments: object):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in ("--device", "cpu", *arguments)])


def test_one_json_object_and_nothing_else_on_standard_output(small_ladder, dataset, marked, opinions):
    result = run(
        "--model", small_ladder, "--data", dataset, "--mos", opinions, "--masks", marked, "--resamples", 20, "--json"
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    record = json.loads(line)
    assert list(record["rungs"]) == ["RM_0", "RM_0 + LR", "RM_1", "RM_1 + LR", "RM_2", "RM_2 + LR"]
    assert list(record["baselines"]) == ["laplacian", "consistency"]
    assert record["rungs"]["RM_0"]["map"] is None and next(iter(record["rungs"]["RM_2"]["map"])) == "paired_auroc"
    assert sum(group["samples"] for group in record["rungs"]["RM_1"]["by"]["origin"].values()) == record["samples"]
    assert set(record["mos"]["rungs"]) == {"RM_0", "RM_1", "RM_2"} and record["mos"]["images"] == 9
    assert {"value", "low", "high"} == set(record["mos"]["baselines"]["laplacian"]["srcc"])
    assert set(record["masks"]["rungs"]) == {"RM_1", "RM_2"} and record["masks"]["originals"] == 4
    assert record["masks"]["rungs"]["RM_2"]["digest"] == load_predictors(small_ladder)["RM_2"].digest


def test_streamed_figures_agree_with_what_training_reports(small_ladder, dataset):
    record = json.loads(run("--model", small_ladder, "--data", dataset, "--rung", "RM_2", "--json").stdout)
    assert list(record["rungs"]) == ["RM_2", "RM_2 + LR"]
    own = record["rungs"]["RM_2"]
    exact = evaluate_rung(load_predictors(small_ladder)["RM_2"].model, read_split(dataset, "test"))
    for name in ("paired_auroc", "auroc", "prevalence", "l1", "clean_mean"):
        assert own["map"][name] == pytest.approx(getattr(exact.map, name), abs=2e-3), name
    for name in ("gt_over_syn", "syn_over_sr", "triplet", "count"):
        assert own["ranking"][name] == pytest.approx(getattr(exact.ranking, name)), name


def test_the_page_is_self_contained_and_shows_cases(small_ladder, dataset, marked, opinions, tmp_path):
    page = tmp_path / "page.html"
    result = run(
        "--model", small_ladder, "--data", dataset, "--mos", opinions, "--masks", marked, "--resamples", 5, "--html", page
    )
    assert result.exit_code == 0, result.output
    assert "map, AUROC paired" in result.stdout and "SRCC" in result.stdout and "consistency" in result.stdout
    html = page.read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    for title in ("By defect area", "By origin", "Best cases", "Worst cases", "Masks: worst cases", "best agreement"):
        assert title in html, title
    assert html.count("data:image/png;base64,") == 2 + 2 + 3


def test_a_page_that_cannot_be_written_costs_no_figures(small_ladder, opinions, tmp_path):
    options = ("--model", small_ladder, "--rung", "RM_0", "--mos", opinions, "--resamples", 2, "--html", tmp_path)
    for form, expected in ((("--json",), '"mos"'), ((), "SRCC")):
        result = run(*options, *form)
        assert result.exit_code == 1 and expected in result.stdout


def test_a_page_of_a_rung_without_map_ranks_cases_by_score(small_ladder, dataset, tmp_path):
    result = run("--model", small_ladder, "--data", dataset, "--rung", "RM_0", "--html", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert "by fall of the score from gt to syn" in (tmp_path / "page.html").read_text()


def test_provenance_is_the_recipes(dataset):
    seen = set()
    for row in read_split(dataset, "train"):
        recipe, found = Recipe.from_json(row.recipe), read_provenance(row.recipe)
        assert found.origin == recipe.origin
        assert found.families == (frozenset() if recipe.kind == "clean" else recipe.families)
        seen.add(found.origin)
    assert len(seen) > 1
    assert read_provenance("{}").origin == "unknown"


def test_other_metrics_stand_beside_and_what_cannot_be_had_is_left_out(small_ladder, dataset, opinions, tmp_path):
    options = ("--model", small_ladder, "--rung", "RM_0", "--metric", "piqe", "--metric", "no-such-metric", "--json")
    record = json.loads(run("--data", dataset, "--mos", opinions, "--resamples", 5, *options).stdout)
    assert list(record["baselines"]) == ["piqe", "laplacian", "consistency"]
    assert record["baselines"]["piqe"]["ranking"]["count"] == record["rungs"]["RM_0"]["ranking"]["count"]
    assert record["mos"]["baselines"]["piqe"]["srcc"]["value"] is not None
    assert "not a no-reference metric" in record["left_out"]["no-such-metric"]


def test_a_metric_that_is_better_when_lower_is_turned_round():
    """Blocks of noise are worse than the picture: PIQE's number is higher for them, the judge's score lower."""
    clean = photo(96, 96)
    noisy = clean.copy()
    noisy[:48] = np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)
    judge = MetricJudge("piqe")
    assert judge.score(noisy) < judge.score(clean) <= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to measure on: give --data, --mos or --masks"),
        (("--mos", "none.csv", "--rung", "RM_9"), "unknown --rung 'RM_9'; the ladder has RM_0, RM_1, RM_2"),
        (("--mos", "none.csv"), "found no such file"),
        (("--masks", "none"), "expected a folder, found none"),
    ],
)
def test_bad_input_is_said_clearly(small_ladder, arguments, message):
    result = run("--model", small_ladder, *arguments)
    assert isinstance(result.exception, ConfigError) and message in str(result.exception)


def test_masks_need_a_rung_with_a_map(small_ladder, marked):
    result = run("--model", small_ladder, "--masks", marked, "--rung", "RM_0")
    assert isinstance(result.exception, ConfigError) and "RM_0 has none" in str(result.exception)
