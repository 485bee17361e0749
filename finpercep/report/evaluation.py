"""The page of `eval-rm`: tables, and the best and worst cases as pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_synth.schema import RGB8, Row, decode_rgb
from finpercep.heatmap import overlay
from finpercep.report.evaluation_tables import agreement_table, dataset_table, group_tables, mask_table
from finpercep.report.figures import Cell, image_grid
from finpercep.report.page import Picture, Section
from finpercep.report.runs import figure
from finpercep.training.artefact_masks import MarkedCase, MaskReport, read_marked
from finpercep.training.dataset_evaluation import Case, JudgeReport, best_and_worst
from finpercep.training.human_scores import HumanReport, RatedCase

MapOf = Callable[[RGB8], npt.NDArray[np.float32] | None]
"""A picture, uint8 H×W×3 RGB → its map, H×W in [0, 1], 1 = degraded; None for a rung without a map."""

SHOWN = 6
_SIDE = 480  # px; larger pictures are reduced for the page


def dataset_sections(
    reports: Sequence[JudgeReport], shown: JudgeReport, samples: Sequence[Row], map_of: MapOf, *, count: int = SHOWN
) -> list[Section]:
    """Tables of all judges, and the cases that ``shown`` saw best and worst.

    Args:
        reports: all judges.
        shown: the one whose cases are drawn.
        samples: the split that was judged; the drawn cases are read again.
        map_of: the map of ``shown``.
        count: best cases to draw, and as many worst.
    """
    sections = [Section("Dataset", tables=[dataset_table(reports)])]
    sections += [Section(title, tables=[table]) for title, table in group_tables(reports).items() if table.rows]
    by = "paired AUROC of the sample" if shown.overall.map is not None else "fall of the score from gt to syn"
    for name, cases in best_and_worst(shown.cases, count).items():
        if cases:
            caption = f"{shown.name}: the {name} {len(cases)} of {shown.overall.ranking.count} defects, by {by}."
            picture = Picture(_case_grid(cases, samples, map_of), caption)
            sections.append(Section(f"{name.capitalize()} cases", pictures=[picture]))
    return sections


def _case_grid(cases: Sequence[Case], samples: Sequence[Row], map_of: MapOf) -> bytes:
    return image_grid(
        ["gt", "syn", "truth M_gt", "map on syn", "map on gt"],
        [_case_cells(case, samples[case.position], map_of) for case in cases],
        cell_inches=2.1,
    )


def _case_cells(case: Case, row: Row, map_of: MapOf) -> list[Cell]:
    what = ", ".join(sorted(case.provenance.families)) or "–"
    return [
        Cell(row.gt, f"sample {case.index}: score {case.scores[0]:.3f}"),
        Cell(row.syn, f"score {case.scores[1]:.3f}"),
        Cell(row.map, f"{case.provenance.origin}, {case.area:.1%}\n{what}"),
        Cell(_laid_over(row.syn, map_of(row.syn)), f"paired AUROC {figure(case.paired_auroc)}"),
        Cell(_laid_over(row.gt, map_of(row.gt))),
    ]


def _laid_over(pixels: RGB8, degradation_map: npt.NDArray[np.float32] | None) -> RGB8:
    return pixels if degradation_map is None else overlay(pixels, degradation_map)


def mask_sections(reports: Sequence[MaskReport], shown: MaskReport, map_of: MapOf, *, count: int = SHOWN) -> list[Section]:
    """The table of all judges, and the pictures whose marks ``shown`` found best and worst."""
    sections = [Section("Human artefact masks", tables=[mask_table(reports)])]
    found = sorted((case for case in shown.cases if case.area > 0), key=_found, reverse=True)
    count = min(count, len(found) // 2)
    for name, cases in {"best": found[:count], "worst": found[::-1][:count]}.items():
        if cases:
            grid = image_grid(["picture", "marked", "map"], [_marked_cells(case, map_of) for case in cases], cell_inches=2.9)
            by = "paired AUROC" if any(case.figures.paired_auroc is not None for case in cases) else "AUROC"
            caption = f"{shown.name}: the {name} {len(cases)} of {len(found)} marked pictures, by {by} of the picture."
            sections.append(Section(f"Masks: {name} cases", pictures=[Picture(grid, caption)]))
    return sections


def _found(case: MarkedCase) -> float:
    of = case.figures
    return of.paired_auroc if of.paired_auroc is not None else of.auroc if of.auroc is not None else 0.5


def _marked_cells(case: MarkedCase, map_of: MapOf) -> list[Cell]:
    marked = read_marked(case.files)
    texts = [f"AUROC {figure(case.figures.auroc)}", f"IoU at 0.5 {figure(case.figures.iou_fixed)}"]
    if case.figures.paired_auroc is not None:
        texts = [f"paired {figure(case.figures.paired_auroc)}", *texts]
    return [
        Cell(_reduced(marked.pixels), case.files.image.name),
        Cell(_reduced(overlay(marked.pixels, marked.marks.astype(np.float32))), f"{case.area:.1%} marked"),
        Cell(_reduced(_laid_over(marked.pixels, map_of(marked.pixels))), ", ".join(texts)),
    ]


def opinion_sections(reports: Sequence[HumanReport], shown: HumanReport, map_of: MapOf, *, count: int = SHOWN) -> list[Section]:
    """The table of all judges, and the pictures where ``shown`` and people agree best and differ most."""
    sections = [Section("Human scores", tables=[agreement_table(reports)])]
    fitted = [case for case in shown.cases if case.expected is not None]
    for title, cases in _by_error(fitted, min(count, len(fitted) // 4 * 2)).items():
        if cases:
            cells = [_rated_cells(case, map_of) for case in cases]
            rows = [[*left, *right] for left, right in zip(cells[::2], cells[1::2], strict=False)]
            caption = f"{shown.name}; expected: the opinion that the logistic fit gives for its score."
            grid = image_grid(["picture", "map"] * 2, rows, cell_inches=2.4)
            sections.append(Section(f"Human scores: {title}", pictures=[Picture(grid, caption)]))
    return sections


def _by_error(cases: Sequence[RatedCase], count: int) -> Mapping[str, list[RatedCase]]:
    ordered = sorted(cases, key=_error)
    return {
        "best agreement": sorted(cases, key=lambda case: abs(_error(case)))[:count],
        "rated too high by the model": ordered[::-1][:count],
        "rated too low by the model": ordered[:count],
    }


def _error(case: RatedCase) -> float:
    return (case.expected or 0.0) - case.opinion.mos


def _rated_cells(case: RatedCase, map_of: MapOf) -> list[Cell]:
    pixels = decode_rgb(case.opinion.image)
    people = f"{case.opinion.image.name}: people {case.opinion.mos:.1f}"
    judged = f"score {case.score:.3f}, expected {case.expected or 0.0:.1f}"
    return [Cell(_reduced(pixels), people), Cell(_reduced(_laid_over(pixels, map_of(pixels))), judged)]


def _reduced(pixels: RGB8) -> RGB8:
    factor = _SIDE / max(pixels.shape[:2])
    if factor >= 1:
        return pixels
    size = (max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor)))
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
