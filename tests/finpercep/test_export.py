"""ONNX: the same numbers as PyTorch under another runtime, for every batch and size, and a file that says what it is."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch

from data_synth.photos import sample_photos
from finpercep.checkpoint import read_checkpoint
from finpercep.errors import WeightsError
from finpercep.export import OPSET, TOLERANCE, export_onnx, onnx_parity
from finpercep.predictor import load_predictor, load_predictors, packaged_model_folder
from tests.finpercep.test_cli import finpercep

SHAPES = ((1, 32, 32), (5, 33, 33), (1, 47, 97), (2, 64, 50), (1, 131, 259), (32, 40, 36))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The packaged finest rung, exported once."""
    path = tmp_path_factory.mktemp("onnx") / "rm.onnx"
    model = load_predictor(packaged_model_folder()).model
    return model, path, export_onnx(model, path, rung="RM_2", shapes=((1, 64, 64),))


def test_onnxruntime_and_torch_agree_on_every_size(exported):
    model, path, _ = exported
    parity = onnx_parity(path.read_bytes(), model, SHAPES)
    assert parity.score <= TOLERANCE and parity.map <= TOLERANCE
    assert parity.worst == max(parity.score, parity.map)


@torch.no_grad()
def test_they_agree_on_photographs(exported):
    model, path, _ = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for photo in sample_photos()[:3]:
        images = torch.tensor(photo.read()).permute(2, 0, 1)[None, :, 20:241, 30:233].float() / 255
        score, degradation = session.run(["score", "map"], {"images": images.numpy()})
        wanted = model(images)
        assert abs(score - wanted.score.numpy()).max() <= TOLERANCE
        assert abs(degradation - wanted.map.numpy()).max() <= TOLERANCE


def test_the_file_says_what_it_is(exported):
    _, path, _ = exported
    graph = onnx.load(path)
    onnx.checker.check_model(graph, full_check=True)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", OPSET)]
    notes = {entry.key: entry.value for entry in graph.metadata_props}
    assert notes["finpercep.digest"] == read_checkpoint(packaged_model_folder() / "RM_2").digest
    assert notes["finpercep.rung"] == "RM_2" and notes["finpercep.version"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert [(output.name, output.shape) for output in session.get_outputs()] == [
        ("score", ["batch"]),
        ("map", ["batch", "height", "width"]),
    ]
    assert b".py" not in path.read_bytes()  # no paths of the machine that exported


def test_a_rung_without_a_map_has_no_map_output(small_ladder, tmp_path):
    model = load_predictors(small_ladder)["RM_0"].model
    parity = export_onnx(model, tmp_path / "rm.onnx", rung="RM_0", shapes=((2, 33, 40),))
    assert parity.map is None and parity.score <= TOLERANCE
    assert [output.name for output in onnx.load(tmp_path / "rm.onnx").graph.output] == ["score"]


def test_another_models_graph_is_told_apart(exported, small_ladder):
    """The comparison itself can fail."""
    _, path, _ = exported
    assert onnx_parity(path.read_bytes(), load_predictors(small_ladder)["RM_2"].model, ((1, 64, 64),)).worst > TOLERANCE


def test_nothing_is_written_that_does_not_agree(small_ladder, tmp_path):
    model = load_predictors(small_ladder)["RM_0"].model
    torch.nn.init.constant_(model.score_head.mlp[0].bias, float("nan"))
    with pytest.raises(WeightsError, match="must agree with PyTorch"):
        export_onnx(model, tmp_path / "rm.onnx", rung="RM_0", shapes=((1, 32, 32),))
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path, small_ladder):
    done = finpercep("export", "--model", small_ladder, "--rung", "RM_1", "--out", "rm.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "RM_1" in done.stderr and f"opset {OPSET}" in done.stderr
    assert (tmp_path / "rm.onnx").stat().st_size > 1e6
    refused = finpercep("export", "--model", small_ladder, "--rung", "RM_9", "--out", "x.onnx", cwd=tmp_path)
    assert refused.returncode == 1 and "got 'RM_9'" in refused.stderr
