"""A rung as ONNX: images → score and map in one graph, for batches and sizes of any number.

Padding by reflection, normalisation and calibration are inside the graph, so that a runtime needs nothing of ours. Needs the
`export` extra (onnx, onnxscript, onnxruntime); they are imported when used.
"""

from __future__ import annotations

import builtins
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_synth.schema.pixels import write_atomically
from finpercep import __version__
from finpercep.checkpoint import CONTRACT_VERSION
from finpercep.errors import ConfigError, MissingExtraError, WeightsError
from finpercep.reward_model.model import MIN_SIDE, FinPercepRM

OPSET = 18
"""ONNX operator set of what is written."""

TOLERANCE = 1e-4
"""Largest difference from PyTorch that is accepted, for scores and maps alike."""

TRIED_SHAPES = ((1, 32, 32), (2, 33, 47), (1, 97, 64), (3, 64, 80), (1, 255, 130))
"""(batch, height, width) of the images every export is tried on."""

NOT_EXPORTABLE = ("upernet", "pspnet")
"""Decoders that pool f_N to a grid of fixed size, which the exporter writes for one image size only."""

_TRACED_SHAPE = (2, 83, 101)  # no two sizes alike and none a multiple of the stride, so that none is taken for a constant


@dataclass(frozen=True)
class Parity:
    """Largest absolute difference between the graph under onnxruntime and the model under PyTorch.

    Attributes:
        score: of the scores.
        map: of the maps; None for a rung without one.
    """

    score: float
    map: float | None

    @property
    def worst(self) -> float:
        """The larger of the two; nan if either is."""
        return float(torch.tensor([self.score, self.map or 0.0]).max())


class _Graph(nn.Module):
    """The model as a function of tensors alone."""

    def __init__(self, model: FinPercepRM) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.model(images)
        return (output.score,) if output.map is None else (output.score, output.map)


def export_onnx(model: FinPercepRM, path: Path, *, rung: str, shapes: tuple[tuple[int, int, int], ...] = TRIED_SHAPES) -> Parity:
    """Write ``model`` as an ONNX file, after trying it: nothing is written that does not agree with PyTorch.

    Input ``images``: float32 (batch, 3, height, width), RGB in [0, 1], sides of at least 32 px. Outputs ``score``: float32
    (batch,), higher is better, and ``map``: float32 (batch, height, width), 1 = degraded (absent for RM_0).

    Args:
        model: the rung; it is not changed.
        path: where to.
        rung: its name, for the metadata.
        shapes: (batch, height, width) to try it on.

    Returns:
        How well it agrees.

    Raises:
        MissingExtraError: the `export` extra is not installed.
        ConfigError: the rung's decoder cannot be a graph for images of any size.
        WeightsError: the graph departs from PyTorch by more than 1e-4.
    """
    graph = onnx_bytes(model, rung)
    parity = onnx_parity(graph, model, shapes)
    if not parity.worst <= TOLERANCE:
        raise WeightsError(
            f"{rung}: the ONNX graph must agree with PyTorch to {TOLERANCE}, got {parity}; another encoder may export"
        )
    write_atomically(path, graph)
    return parity


def onnx_bytes(model: FinPercepRM, rung: str) -> bytes:
    """The file's contents, untried. Arguments and errors as `export_onnx`."""
    _require("onnx", "onnxscript")
    if model.config.map_stride is not None and model.config.decoder in NOT_EXPORTABLE:
        raise ConfigError(
            f"{rung}: a decoder to be exported must not pool to a fixed grid, got {model.config.decoder!r}; "
            "train the ladder with another decoder, or export its RM_0"
        )
    graph = _Graph(copy.deepcopy(model).cpu().float().requires_grad_(False)).eval()
    program = torch.onnx.export(
        graph,
        (torch.zeros(_TRACED_SHAPE[0], 3, *_TRACED_SHAPE[1:]),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        output_names=["score"] if model.config.map_stride is None else ["score", "map"],
        dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
        custom_translation_table={builtins.round: _round},
        verbose=False,
    )
    assert program is not None
    _strip_traces(program.model)
    program.model.metadata_props.update(_metadata(model, rung))
    proto = program.model_proto
    for output in proto.graph.output:  # the exporter writes the formula of the padding where a reader wants a name
        for axis, name in zip(output.type.tensor_type.shape.dim, ("batch", "height", "width"), strict=False):
            axis.dim_param = name
    return bytes(proto.SerializeToString())


def onnx_parity(graph: bytes, model: FinPercepRM, shapes: tuple[tuple[int, int, int], ...]) -> Parity:
    """Run graph and model on noise of each (batch, height, width), and compare. Raises `MissingExtraError`."""
    _require("onnxruntime")
    import onnxruntime

    reference = copy.deepcopy(model).cpu().float().eval()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    scores, maps = [torch.zeros(1)], [torch.zeros(1)]
    for count, height, width in shapes:
        images = torch.rand(count, 3, height, width, generator=generator)
        got = [torch.from_numpy(array) for array in session.run(None, {"images": images.numpy()})]
        with torch.no_grad():
            wanted = reference(images)
        scores.append((got[0] - wanted.score).abs())
        if wanted.map is not None:
            maps.append((got[1] - wanted.map).abs().flatten())
    largest = [float(torch.cat(differences).max()) for differences in (scores, maps)]  # nan if any is nan
    return Parity(largest[0], None if model.config.map_stride is None else largest[1])


def _metadata(model: FinPercepRM, rung: str) -> dict[str, str]:
    stride = model.config.map_stride
    return {
        "finpercep.version": __version__,
        "finpercep.contract": str(CONTRACT_VERSION),
        "finpercep.rung": rung,
        "finpercep.digest": model.digest_now(),
        "finpercep.input": f"images: float32 batch×3×height×width, RGB in [0, 1], sides of at least {MIN_SIDE} px",
        "finpercep.output": "score in [0, 1], higher is better" + ("" if stride is None else "; map in [0, 1], 1 = degraded"),
    }


def _round(number: Any, digits: None = None) -> Any:  # noqa: ARG001
    """Python's round as ONNX; both round halves to even. The exporter has no translation of its own."""
    from onnxscript import opset18

    return opset18.Cast(opset18.Round(number), to=7)  # 7: INT64


def _strip_traces(model: Any) -> None:
    """Remove the exporter's notes on each node: they hold paths of the machine it ran on."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _require(*packages: str) -> None:
    from importlib.util import find_spec

    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(package, "export")
