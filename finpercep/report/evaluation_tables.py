"""Tables of an evaluation, the same for the terminal and the page: what is to be reported first stands first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finpercep.report.page import Table
from finpercep.report.runs import figure
from finpercep.training.artefact_masks import MaskReport
from finpercep.training.dataset_evaluation import GroupFigures, JudgeReport
from finpercep.training.human_scores import HumanReport
from finpercep.training.map_tally import MapFigures, PixelFigures

_PAIRED_NOTE = (
    "Paired AUROC: the map at the marked pixels against the map at the same pixels of the clean original; 0.5 is blind. "
    "A map that only follows texture gains nothing in it, and much in all figures below it: compare with the laplacian energy."
)

Figures = dict[str, str]
"""Head → text of a judge's column."""


def dataset_table(reports: Sequence[JudgeReport]) -> Table:
    """Maps and scores on all samples, a judge a column."""
    ranking = reports[0].overall.ranking
    note = (
        f"{_PAIRED_NOTE} Marked: M_gt above 0.1; all pixels of all samples together. Scores are compared on the {ranking.count} "
        "samples with a visible defect; score, paired: how often gt scores above its own syn, ties counting half. "
        "laplacian: texture energy. consistency: |down(sr) − lr|, which is shown the LR input. Their score is 1 − mean map."
    )
    return _by_judge([(report.name, _dataset_figures(report.overall)) for report in reports], note)


def _by_judge(columns: Sequence[tuple[str, Figures]], note: str) -> Table:
    heads = list(columns[0][1])
    return Table(["", *(name for name, _ in columns)], [[head, *(own[head] for _, own in columns)] for head in heads], note)


def _dataset_figures(group: GroupFigures) -> Figures:
    ranking, maps = group.ranking, group.map
    return {
        **_map_figures(maps),
        "map, mean on clean gt": figure(maps.clean_mean if maps else None),
        "map, L1": figure(maps.l1 if maps else None),
        "score, paired": figure(ranking.score_paired),
        "score, gt > syn > sr": figure(ranking.triplet),
        "score, gt > syn": figure(ranking.gt_over_syn),
        "score, syn > sr": figure(ranking.syn_over_sr),
        "score, mean gt − syn": figure(ranking.score_drop),
    }


def _map_figures(maps: MapFigures | None) -> Figures:
    pointing, chance = (maps.pointing, maps.pointing_chance) if maps else (None, None)
    return {
        **_pixel_figures(maps.pooled if maps else PixelFigures()),
        "map, pointing (chance)": _with(pointing, chance),
    }


def _pixel_figures(pixels: PixelFigures) -> Figures:
    return {
        "map, AUROC paired": figure(pixels.paired_auroc),
        "map, AUROC": figure(pixels.auroc),
        "map, AUPRC (× chance)": _with(pixels.auprc, pixels.auprc_over_chance, 1),
        "map, IoU at 0.5": figure(pixels.iou_fixed),
        "map, IoU best (at)": _with(pixels.iou_best, pixels.best_threshold),
    }


def _with(value: float | None, aside: float | None, digits: int = 3) -> str:
    return figure(value) if value is None or aside is None else f"{figure(value)} ({figure(aside, digits)})"


def group_tables(reports: Sequence[JudgeReport]) -> dict[str, Table]:
    """By defect area, origin and family: a group a row, a judge a column."""
    return {
        "By defect area": _group_table([(r.name, r.by_area) for r in reports], "visible area"),
        "By origin": _group_table([(r.name, r.by_origin) for r in reports], "origin"),
        "By family": _group_table([(r.name, r.by_family) for r in reports], "family"),
    }


def _group_table(judges: Sequence[tuple[str, Mapping[str, GroupFigures]]], head: str) -> Table:
    rows = [
        [label, f"{group.ranking.count} of {group.samples}", *(_group_cell(by[label]) for _, by in judges)]
        for label, group in judges[0][1].items()
    ]
    note = "Paired AUROC of the map / order gt > syn > sr. A sample with several families counts in each."
    return Table([head, "visible", *(name for name, _ in judges)], rows, note)


def _group_cell(group: GroupFigures) -> str:
    paired = group.map.pooled.paired_auroc if group.map is not None else None
    return f"{figure(paired, 2)}/{figure(group.ranking.triplet, 2)}"


def mask_table(reports: Sequence[MaskReport]) -> Table:
    """Maps against people's marks, pooled and mean over pictures, a judge a column."""
    columns = []
    for report in reports:
        mean = {f"mean {head}": text for head, text in _pixel_figures(report.map.per_image).items()}
        columns.append((report.name, {**{f"pooled {k}": v for k, v in _map_figures(report.map).items()}, **mean}))
    maps = reports[0].map
    note = (
        f"{_PAIRED_NOTE} It needs originals. Pooled: all pixels together. Mean: over the {maps.marked_images} of {maps.images} "
        "pictures with a marked pixel; the best threshold is one for all pictures. Pointing: share of pictures."
    )
    return _by_judge(columns, note)


def agreement_table(reports: Sequence[HumanReport]) -> Table:
    """Agreement with mean opinion scores, a judge a column."""
    columns = []
    for report in reports:
        own, figures = report.agreement, {}
        estimates = {"SRCC": own.srcc, "PLCC": own.plcc, "KRCC": own.krcc, "RMSE": own.rmse}
        for name, estimate in estimates.items():
            digits = 2 if name == "RMSE" else 3
            figures[name] = figure(estimate.value, digits)
            figures[f"{name}, 95 %"] = f"{figure(estimate.low, digits)} … {figure(estimate.high, digits)}"
        columns.append((report.name, figures))
    first = reports[0].agreement
    note = (
        f"{first.images} pictures. PLCC and RMSE after a 4-parameter logistic fit, which may fall: SRCC's sign says whether the "
        f"score goes the right way. 95 %: bootstrap interval over {first.replicates} resamples of the pictures, with a new fit "
        "each. laplacian: 1 − mean texture energy."
    )
    return _by_judge(columns, note)
