"""`finpercep export`: a rung as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finpercep.cli.console import say


def export(
    out: Annotated[Path, typer.Option(help="File to write.")],
    model: Annotated[Path | None, typer.Option(help="Folder of a ladder; the packaged one when absent.")] = None,
    rung: Annotated[str | None, typer.Option(help="Which rung; the last when absent.")] = None,
) -> None:
    """Write a rung as ONNX (images → score and map, any batch and size), tried against PyTorch before it is written.

    Example: finpercep export --model runs/ladder --rung RM_2 --out rm.onnx
    """
    from finpercep.export import OPSET, export_onnx
    from finpercep.predictor import load_predictor, packaged_model_folder

    chosen = load_predictor(model or packaged_model_folder(), rung)
    parity = export_onnx(chosen.model, out, rung=chosen.rung)
    agrees = f"score {parity.score:.1e}" + ("" if parity.map is None else f", map {parity.map:.1e}")
    say(f"{out}: {chosen.rung} (digest {chosen.digest}), ONNX opset {OPSET}; largest difference from PyTorch: {agrees}")
