"""The runs' tables and pictures, written into `docs/evidence.md` and beside it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from benchmarks.evidence.arms import ARMS, POLICIES, Scale
from benchmarks.evidence.summary import COLUMNS, MEASURES, RIVALS, Run, measure_rows, rival_rows, rows, summarise
from benchmarks.report import write_result
from benchmarks.tables import FAINT, INK

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "evidence.md"
FIGURES = DOCS / "figures"

CURVES = ("global", "full", "unmatched", "fixed", "adaptive", "refresh")
PICTURED = ("control", "global", "full", "fixed", "adaptive", "refresh", "oracle")
"""Arms with a curve, and arms with a picture."""

CROPS = (0, 3, 6)
"""The crops that are shown, of those whose images were kept."""

LEAST_SEEDS = 3
"""Of an arm on the page."""

ENLARGED, LABEL, AMPLIFIED = 2, 18, 8
"""How much a shown crop is enlarged, the height of its label in px, and how much a difference is amplified."""


def write_page(out: Path, scale: Scale, found: Mapping[str, Sequence[Run]], start: Run) -> list[Path]:
    """Write `results/evidence.json`, the tables of `docs/evidence.md`, and its pictures; returns what was written.

    Another policy than the first has a record, tables and pictures of its own: `results/evidence_POLICY.json`.

    Arms with fewer than three seeds say nothing and are left out; where no other is left, nothing is written.

    Args:
        out: folder of the runs.
        scale: of the experiment.
        found: arm → its runs, with ``moved``.
        start: the policy at the start, measured.
    """
    runs = {name: own for name, own in found.items() if len(own) >= LEAST_SEEDS}
    table = summarise(runs, start)
    if not any(each.get("versus") for each in table.values()):
        return []
    ladders = sorted({run.get("ladder", "packaged") for own in runs.values() for run in own})
    scale_of_all = {**dataclasses.asdict(scale), "ladder": ", ".join(ladders)}
    suffix = "" if scale.policy == next(iter(POLICIES)) else f"_{scale.policy}"
    written = [write_result(f"evidence{suffix}", {"scale": scale_of_all, "crops": len(start["rewards"]["RM_0"]), "arms": table})]
    record = json.loads(written[0].read_text())
    about = (
        f"{record['machine']['cpu']}, {record['machine']['cores']} cores, {record['date']}; "
        + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in scale_of_all.items())
        + f"; {record['crops']} held-out crops."
    )
    tables = {
        "scale": [about],
        "results": _markdown(COLUMNS, rows(table)),
        "measures": _markdown(("difference", *(name.replace("_", " ") for name in MEASURES)), measure_rows(table)),
    }
    if not suffix:
        tables["rivals"] = _markdown(("panel, SD", *(f"beside {rival}" for rival in RIVALS)), rival_rows(table))
        tables["arms"] = _markdown(("arm", "rewarded by"), [[name, ARMS[name].says] for name in table])
    PAGE.write_text(_filled(PAGE.read_text(), {f"{name}{suffix}": lines for name, lines in tables.items()}))
    FIGURES.mkdir(exist_ok=True)
    panel, curves, images = (FIGURES / f"evidence{suffix}_{name}" for name in ("panel.png", "curves.png", "images.jpg"))
    draw_panel(table, panel)
    draw_curves(runs, curves)
    draw_images(out, images)
    return [*written, PAGE, panel, curves, images]


def draw_panel(table: Mapping[str, Any], path: Path) -> None:
    """Each arm's panel beside the arm it is compared with, with its interval."""
    shown = {f"{name} – {each['against']}": each["versus"]["panel"] for name, each in table.items() if each.get("versus")}
    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.32 * len(shown)), layout="constrained")
    places = np.arange(len(shown))[::-1]
    means, reach = (np.array(side) for side in zip(*shown.values(), strict=True))
    axes.axvline(0, color=FAINT, zorder=0)
    axes.errorbar(means, places, xerr=np.where(np.isfinite(reach), reach, 0), fmt="o", color=INK, capsize=3)
    axes.set_yticks(places, list(shown))
    axes.set_xlabel("panel on held-out photos, difference in SD (right is better)")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_curves(runs: Mapping[str, Sequence[Run]], path: Path) -> None:
    """The reward in force, step by step: every seed, their mean, and where rungs changed."""
    shown = [name for name in CURVES if any("steps" in run for run in runs.get(name, ()))]
    figure, grid = plt.subplots(2, (len(shown) + 1) // 2, figsize=(10, 5), sharex=True, layout="constrained", squeeze=False)
    for axes, name in zip(grid.flat, shown, strict=False):
        curves = [[step["reward"] for step in run["steps"]] for run in runs[name] if "steps" in run]
        for run in runs[name]:
            for step in run.get("steps", ()):
                if step["decision"]:
                    axes.axvline(step["step"], color=FAINT, linewidth=0.6)
        for curve in curves:
            axes.plot(range(1, len(curve) + 1), curve, color=FAINT, linewidth=0.8)
        axes.plot(range(1, len(curves[0]) + 1), np.mean(curves, axis=0), color=INK)
        axes.set(title=name, ylabel="reward in force")
    for axes in grid[-1]:
        axes.set_xlabel("step")
    for axes in grid.flat[len(shown) :]:
        axes.axis("off")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_images(out: Path, path: Path) -> None:
    """Held-out crops of seed 0: bicubic, the policy at the start, every pictured arm at its end, photo, what `full` did."""
    start = load_file(out / "start.safetensors")
    columns = {"bicubic": start["bicubic"], "start": start["images"]}
    for name in PICTURED:
        if (kept := out / name / "seed-0" / "images.safetensors").exists():
            columns[name] = load_file(kept)["images"]
    columns["photo"] = start["hr"]
    if {"full", "control"} <= columns.keys():
        columns[f"full - control, {AMPLIFIED}x"] = (columns["full"] - columns["control"]) * AMPLIFIED + 0.5
    crops = [crop for crop in CROPS if crop < len(start["hr"])]
    side = start["hr"].shape[-1] * ENLARGED
    sheet = Image.new("RGB", (len(columns) * side, len(crops) * side + LABEL), "white")
    pen = ImageDraw.Draw(sheet)
    for column, (name, images) in enumerate(columns.items()):
        pen.text((column * side + 4, 3), name, fill="black")
        for row, crop in enumerate(crops):
            picture = Image.fromarray(_pixels(images[crop])).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(picture, (column * side, LABEL + row * side))
    sheet.save(path, quality=90)


def _pixels(image: torch.Tensor) -> np.ndarray:
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def _markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *lines)]


def _filled(page: str, tables: Mapping[str, Sequence[str]]) -> str:
    """``page`` with what stands between ``<!-- NAME -->`` and ``<!-- end -->`` replaced."""
    for name, lines in tables.items():
        before, mark, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not mark or not end:
            raise ValueError(f"{PAGE}: there is no place for {name}")
        page = before + mark + "\n".join(["", *lines, "", end]) + after
    return page
