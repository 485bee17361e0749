"""How the demo's report is put together from the run directory and the measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_synth.schema import RGB8, Row, read_split
from finpercep.cli.demo_measures import PLANTED_AREA, Evaluation, Planted
from finpercep.client import ImageScore
from finpercep.predictor import Predictor, load_predictors
from finpercep.report.figures import Cell, image_grid
from finpercep.report.finetuning import finetuning_sections
from finpercep.report.page import Picture, Report, Section, Table
from finpercep.report.runs import figure, panel_table, read_records, training_sections
from finpercep.sr.panel import PANEL
from finpercep.training.evaluate import RungQuality, evaluate_rung

_SHOWN = 4

MODELS = ("before", "control", "after")
"""The SR models that are compared: at the start, after steps without a reward, after fine-tuning."""

MapOf = Callable[[RGB8], np.ndarray]
"""A picture → its degradation map, float32 (H, W) in [0, 1]."""


@dataclass(frozen=True)
class HeldOut:
    """The finest rung on the test split: its figures, and how many photos stand behind them."""

    quality: RungQuality
    photos: int

    @classmethod
    def of(cls, predictor: Predictor, samples: Sequence[Row]) -> HeldOut:
        """Measure ``predictor`` on all ``samples``."""
        return cls(evaluate_rung(predictor.model, samples), len({row.source_id for row in samples}))


def compose(
    folder: Path,
    planted: Sequence[Planted],
    evaluation: Evaluation,
    elapsed: Callable[[], Mapping[str, float]],
    *,
    scratch: bool,
) -> Report:
    """The report, from the run directory and what was measured; ``elapsed`` is asked last, so that drawing counts too."""
    predictors = load_predictors(folder / "ladder")
    finest = list(predictors.values())[-1]
    samples = read_split(folder / "data", "test")

    def map_of(pixels: RGB8) -> np.ndarray:
        return _array(finest.assess(pixels).map)

    sections = [
        dataset_section(read_split(folder / "data", "train")),
        *training_sections(read_records(folder / "ladder" / "metrics.jsonl")),
        map_section(samples, map_of, finest.rung),
        planted_section(planted),
        *finetuning_sections(read_records(folder / "finetune" / "metrics.jsonl")),
        panel_section(evaluation),
        outputs_section(evaluation, map_of),
    ]
    held_out = HeldOut.of(finest, samples)
    start = "fresh weights" if scratch else "the packaged weights"
    story = f"Real photographs → dataset → reward-model ladder (from {start}) → HTTP server → curriculum fine-tuning."
    compared = "The SR model starts early in its training, with faults to see; the control takes the same steps without a reward."
    summary = f"{story} {compared} Figures are on photos held out of training; curves and the contact sheet are of training."
    seconds = elapsed()
    timing = Section("Time", tables=[Table(["phase", "seconds"], [[name, f"{value:.0f}"] for name, value in seconds.items()])])
    return Report("finpercep demo", summary, key_figures(held_out, planted, evaluation, seconds), [*sections, timing])


def key_figures(
    held_out: HeldOut, planted: Sequence[Planted], evaluation: Evaluation, seconds: Mapping[str, float]
) -> list[tuple[str, str]]:
    """The figures the terminal and the head of the report show."""
    quality, where = held_out.quality, f"{held_out.photos} test photos"
    first, rewards = planted[0], evaluation.rewards
    rows = [
        (f"map AUROC, paired ({where})", figure(quality.map.paired_auroc if quality.map else None)),
        (f"order gt > syn > sr ({where})", figure(quality.ranking.triplet)),
        (f"score, clean → {first.kind} planted", f"{first.of_clean.score:.3f} → {first.of_broken.score:.3f}"),
        ("reward before → control → after (GT)", f"{_told(rewards)} ({rewards['GT']:.4f})"),
    ]
    panels = {name: evaluation.panels[name].means() for name in MODELS}
    rows += [
        (f"{metric.upper()} before → control → after", _told({name: panel[metric] for name, panel in panels.items()}))
        for metric in PANEL
    ]
    return [*rows, ("time", f"{sum(seconds.values()):.0f} s")]


def _told(values: Mapping[str, float]) -> str:
    return " → ".join(f"{values[name]:.4g}" for name in MODELS)


def dataset_section(samples: Sequence[Row]) -> Section:
    """Contact sheet of training samples."""
    shown = [samples[index] for index in np.linspace(0, len(samples) - 1, 6).astype(int)]
    rows = [[Cell(r.gt), Cell(r.sr), Cell((r.mask * 255).astype(np.uint8)), Cell(r.syn), Cell(r.map)] for r in shown]
    text = f"{len(samples)} training samples. A region of each photo (gt) is swapped with that of a worse image (sr)."
    sheet = image_grid(["gt", "sr", "mask m", "syn", "map M_gt"], rows, cell_inches=1.7)
    return Section(
        "Dataset",
        text,
        pictures=[
            Picture(
                sheet,
                "Contact sheet; syn = m·sr + (1 − m)·gt. The map is 0 outside the mask, bright where the difference is visible.",
            )
        ],
    )


def map_section(samples: Sequence[Row], predict: MapOf, rung: str) -> Section:
    """Predictions of the finest rung beside ground truth, on photos held out of training and validation."""
    by_size = sorted(range(len(samples)), key=lambda index: float(samples[index].map.mean()))
    shown = [samples[by_size[int(at * (len(by_size) - 1))]] for at in (0.5, 0.65, 0.8, 0.95)]
    rows = [[Cell(r.gt), Cell(r.syn), Cell(r.map), Cell(predict(r.syn)), Cell(predict(r.gt))] for r in shown]
    sheet = image_grid(["gt", "syn", "M_gt", f"{rung} on syn", f"{rung} on gt"], rows)
    caption = (
        "Test photos: four samples at the 50th, 65th, 80th and 95th percentile of degradation. On gt the map should stay dark."
    )
    return Section("What the reward model sees", pictures=[Picture(sheet, caption)])


def planted_section(planted: Sequence[Planted]) -> Section:
    """The served score before and after a defect is planted."""
    rows = [
        [
            p.kind,
            f"{p.of_clean.score:.3f}",
            f"{p.of_broken.score:.3f}",
            f"{_inside(p, p.of_clean):.3f}",
            f"{_inside(p, p.of_broken):.3f}",
        ]
        for p in planted
    ]
    columns = ["planted defect", "score, clean", "score, broken", "map inside, clean", "map inside, broken"]
    cells = [
        [Cell(p.clean, f"score {p.of_clean.score:.3f}"), Cell(p.broken, f"{p.kind}: score {p.of_broken.score:.3f}"), *_maps(p)]
        for p in planted
    ]
    sheet = image_grid(["photo", "broken copy", "map of photo", "map of broken copy"], cells, cell_inches=2.3)
    text = f"A defect on {PLANTED_AREA:.0%} of a held-out photo, where it shows most, scored by the running server over HTTP."
    picture = Picture(sheet, "Photo, broken copy, and the maps that came back from POST /score.")
    return Section("A planted defect", text, [Table(columns, rows)], [picture])


def _maps(planted: Planted) -> list[Cell]:
    return [Cell(_array(of.map)) for of in (planted.of_clean, planted.of_broken)]


def _inside(planted: Planted, of: ImageScore) -> float:
    return float(_array(of.map)[planted.mask > 0.5].mean())


def _array(degradation_map: torch.Tensor | None) -> np.ndarray:
    if degradation_map is None:
        raise ValueError("the served rung has no map")
    return degradation_map.numpy()


def panel_section(evaluation: Evaluation) -> Section:
    """Full-reference metrics of the SR models, which no reward contains."""
    means = {name: panel.means() for name, panel in evaluation.panels.items()}
    note = (
        f"Means over {len(evaluation.hr)} crops of the test photos; PSNR, FSIM, VSI higher is better, GMSD lower. Same LR "
        "images, same noise. control: the same steps without the reward, its Gram term included."
    )
    models = ["bicubic", *MODELS, "GT"]
    tables = [
        panel_table(list(PANEL), means, note),
        _changes(evaluation, "control"),
        _changes(evaluation, "before"),
        Table([f"reward R of {evaluation.rung}", *models], [["mean", *(f"{evaluation.rewards[name]:.4f}" for name in models)]]),
    ]
    return Section("Held-out full-reference metrics", "The reward never sees the ground truth of these photos.", tables)


def _changes(evaluation: Evaluation, other: str) -> Table:
    """What ``after`` has beyond another model, crop by crop."""
    rows = []
    for name, higher in PANEL.items():
        paired = evaluation.panels["after"].values[name] - evaluation.panels[other].values[name]
        better = int(((paired > 0) if higher else (paired < 0)).sum())
        error = float(paired.std() / len(paired) ** 0.5)
        rows.append([name.upper(), f"{float(paired.mean()):+.5f} ± {error:.5f}", f"{better} of {len(paired)}"])
    return Table(["metric", f"after − {other}, paired, ± standard error over crops", "crops better"], rows)


def outputs_section(evaluation: Evaluation, predict: MapOf) -> Section:
    """LR, the SR models with heatmaps, and ground truth."""
    rows = []
    for index in range(min(_SHOWN, len(evaluation.hr))):
        lr = _pixels(evaluation.lr[index]).repeat(4, axis=0).repeat(4, axis=1)
        row = [Cell(lr)]
        for name in MODELS:
            pixels = _pixels(evaluation.images[name][index])
            row += [Cell(pixels, f"{evaluation.panels[name].values['psnr'][index]:.2f} dB"), Cell(predict(pixels))]
        rows.append([*row, Cell(_pixels(evaluation.hr[index]))])
    titles = [title for name in MODELS for title in (name, f"map of {name}")]
    sheet = image_grid(["LR", *titles, "GT"], rows)
    caption = "Held-out crops, x4: LR; before fine-tuning, after the same steps without a reward, after fine-tuning; GT."
    return Section("SR output", pictures=[Picture(sheet, caption)])


def _pixels(image: torch.Tensor) -> RGB8:
    return (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()
