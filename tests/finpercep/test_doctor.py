"""`finpercep doctor`: the canary's numbers are the model's, what is missing is named with its cure, nothing is downloaded."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_synth.features.loading import DINOV3_SIZES
from data_synth.quality import _WEIGHT_FILES
from finpercep.checkpoint import read_ladder
from finpercep.cli import app
from finpercep.cli.doctor import examine
from finpercep.cli.installation import EXTRAS, core_packages, devices, extras, usable_cores
from finpercep.cli.server_process import ServerProcess
from finpercep.cli.weights_found import CANARY, optional_weights, other_packaged, try_ladder
from finpercep.predictor import load_predictors, packaged_model_folder
from rm_server.canary import expected_numbers


def finpercep(*arguments):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["doctor", *map(str, arguments)])


def test_the_canarys_numbers_are_those_of_the_packaged_model_itself():
    """Fails when the ladder is packaged anew and the numbers are not."""
    predictors = load_predictors(packaged_model_folder())
    assert CANARY.keys() == {predictor.digest for predictor in predictors.values()}
    for predictor in predictors.values():
        assert expected_numbers(predictor) == pytest.approx(CANARY[predictor.digest], abs=1e-5)


def test_all_is_well_here_and_json_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    done = finpercep("--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["problems"] == [] and found["server"] is None
    assert [rung["digest"] for rung in found["ladder"]] == [rung.digest for rung in read_ladder(packaged_model_folder()).rungs]
    assert all(rung["score"] == pytest.approx(rung["expected"], abs=1e-3) for rung in found["ladder"])
    assert {extra["name"]: extra["missing"] for extra in found["extras"]}["server"] == []
    assert found["devices"][0]["name"] == "cpu" and found["devices"][0]["memory_gib"] > 0
    assert not next(weights for weights in found["weights"] if weights["name"] == "VGG19")["found"]


def test_the_tables_name_everything(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    done = finpercep()
    assert done.exit_code == 0 and "as it should be" in done.stdout and "The core works" in done.stdout
    stated = [extra.name for extra in extras()]
    for word in (*stated, "torch", "cpu", "RM_2 on cpu", "sr-zoo", "hf download timm/resnet50_clip.openai"):
        assert word in done.stdout


def test_a_server_is_asked_and_one_that_does_not_answer_is_one_line_and_exit_code_1(small_ladder):
    with ServerProcess(small_ladder) as server:
        served = examine(server.url).server
    assert served.fault is None and served.model == "small"
    assert served.rungs == {rung.rung: rung.digest for rung in read_ladder(small_ladder).rungs}
    done = finpercep("--reward", server.url)  # it has been stopped
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and server.url in done.stderr


def test_a_ladder_that_is_not_the_packaged_one_or_is_damaged_is_a_problem(small_ladder, tmp_path):
    first = examine(ladder_folder=small_ladder).problems[0]
    assert first.startswith("RM_0 (sha256:") and "not the rung this version was packaged with" in first
    shutil.copytree(packaged_model_folder(), tmp_path / "ladder")
    weights = tmp_path / "ladder" / "RM_1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (problem,) = examine(ladder_folder=tmp_path / "ladder").problems
    assert str(weights) in problem and "weights cannot be read" in problem


def test_a_rung_that_gives_another_score_is_a_problem(monkeypatch):
    digest = read_ladder(packaged_model_folder()).rungs[-1].digest
    score = CANARY[digest][0]
    monkeypatch.setitem(CANARY, digest, (0.5, 0.31))
    faults = [result.fault for result in try_ladder("cpu")]
    assert faults[:2] == [None, None] and f"RM_2 on cpu gives the canary score {score:.5f}" in faults[2]


METADATA = """Metadata-Version: 2.4
Name: finpercep
Version: 9.0
Provides-Extra: server
Provides-Extra: sr
Provides-Extra: train
Requires-Dist: numpy>=99
Requires-Dist: pillow>=1
Requires-Dist: colorama; sys_platform == "no such platform"
Requires-Dist: no-such-library>=1; extra == "server"
Requires-Dist: pydantic>=1; extra == "server"
Requires-Dist: nor-this-one; extra == "sr"
Requires-Dist: finpercep[sr]; extra == "train"
"""


@pytest.fixture
def old_environment(monkeypatch, tmp_path):
    """An environment where some libraries are missing and one is too old."""
    (tmp_path / "finpercep-9.0.dist-info").mkdir()
    (tmp_path / "finpercep-9.0.dist-info" / "METADATA").write_text(METADATA)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_what_is_missing_or_too_old_is_found_by_what_the_project_states(old_environment):
    numpy, pillow = core_packages()
    assert (numpy.name, numpy.required, numpy.fits) == ("numpy", ">=99", False) and pillow.fits
    server, sr, train = extras()
    assert [package.name for package in server.missing] == ["no-such-library"]
    assert server.get == "pip install 'finpercep[server]'"
    assert [package.name for package in train.missing] == [package.name for package in sr.missing] == ["nor-this-one"]
    problem = examine().problems[0]
    assert problem.startswith("numpy >=99 is needed, got ") and problem.endswith("pip install 'numpy>=99'")


def test_every_extra_of_the_project_is_explained():
    stated = importlib.metadata.metadata("finpercep").get_all("Provides-Extra")
    assert set(stated) == EXTRAS.keys()


def test_weights_in_the_caches_are_found(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not any(weights.found for weights in optional_weights())
    for file in ("checkpoints/vgg19-dcbb9e9d.pth", "checkpoints/vgg16-397923af.pth", "clip/RN50.pt"):
        (tmp_path / "torch" / "hub" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "torch" / "hub" / file).touch()
    commit = tmp_path / "hub" / "models--timm--resnet50_clip.openai"
    (commit / "snapshots" / "c0ffee").mkdir(parents=True)
    (commit / "snapshots" / "c0ffee" / "model.safetensors").touch()
    (commit / "refs").mkdir()
    (commit / "refs" / "main").write_text("c0ffee")
    found = {weights.name for weights in optional_weights() if weights.found}
    assert found == {"VGG19", "CLIP-IQA (OpenAI's RN50)", "CLIP RN50"}  # of DISTS only half is there


def test_the_names_of_the_files_are_those_of_the_libraries():
    from timm.models import get_pretrained_cfg
    from torchvision.models import VGG19_Weights

    source = Path(importlib.import_module("finpercep.cli.weights_found").__file__).read_text()
    assert Path(VGG19_Weights.IMAGENET1K_V1.url).name in source
    assert all(file in source for files in _WEIGHT_FILES.values() for file in files)
    for model in ("resnet50_clip", f"vit_{DINOV3_SIZES[0]}_patch16_dinov3"):
        assert get_pretrained_cfg(model).hf_hub_id in source
    folder = Path(importlib.util.find_spec("pyiqa").origin).parent / "archs"
    for arch, file in (
        ("musiq_arch", "musiq_koniq_ckpt-e95806b9.pth"),
        ("maniqa_arch", "ckpt_koniq10k.pt"),
        ("clip_model", "RN50.pt"),
    ):
        assert file in (folder / f"{arch}.py").read_text() and file in source


def test_the_packaged_sr_weights_are_whole():
    assert [(one.name, one.fault) for one in other_packaged()] == [("tiny-sr", None), ("sr-zoo", None)]


def test_a_containers_quota_counts(tmp_path):
    limits = tmp_path / "cpu.max"
    cores = usable_cores(tmp_path / "none")
    for text, expected in (("100000 100000", 1), ("max 100000", cores), ("9999900000 100000", cores), ("junk", cores)):
        limits.write_text(text)
        assert usable_cores(limits) == expected
    (cpu, *_), _ = devices()
    assert cpu.usable and 0 < cpu.free_gib <= cpu.memory_gib


def test_the_command_line_starts_without_slow_libraries():
    slow = ("torch", "timm", "diffusers", "transformers", "pyiqa", "cv2")
    code = f"import sys, finpercep.cli; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
