"""How judges do on a dataset: does the map see the defect, and does the score order gt, syn and sr? By defect size and type.

A pixel is marked where M_gt exceeds `VISIBLE`. Samples stream through once and every map is counted and forgotten, so memory does
not grow with the dataset. `finpercep.training.evaluate` holds the shorter figures that training reports of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_synth.schema import Row
from finpercep.training.data import Samples
from finpercep.training.judges import Judge, Judgement
from finpercep.training.map_tally import MapFigures, MapTally, count_image
from finpercep.training.metrics import VISIBLE, ranking_quality

DEFECT_AREAS = ((0.0, 0.01), (0.01, 0.03), (0.03, 0.1), (0.1, 0.3), (0.3, 1.01))
"""Bins of the visibly degraded share of the image."""


@dataclass(frozen=True)
class Provenance:
    """Where a sample's defects come from.

    Attributes:
        origin: one word: model, perturbed, hallucination, artefact or clean.
        families: every family of faults in it; a sample counts in each.
    """

    origin: str
    families: frozenset[str]


ReadProvenance = Callable[[str], Provenance]
"""A row's recipe (JSON) → where its defects come from. The recipe is no part of contract 1, so its reader is handed in."""


@dataclass(frozen=True)
class RankingFigures:
    """Order of scores over the samples with a visible defect; None where there is none.

    Attributes:
        score_paired: chance that a sample's gt scores above its syn, ties counting half; 0.5 = blind.
        score_drop: mean S_GT − S_syn.
        gt_over_syn, syn_over_sr, triplet: share with S_GT > S_syn, S_syn > S_SR, and both; a tie counts as wrong.
        count: number of triplets.
    """

    score_paired: float | None
    score_drop: float | None
    gt_over_syn: float | None
    syn_over_sr: float | None
    triplet: float | None
    count: int


@dataclass(frozen=True)
class GroupFigures:
    """A judge's figures on a group of samples; ``map`` is None for a judge without a map."""

    samples: int
    map: MapFigures | None
    ranking: RankingFigures

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "samples": self.samples,
            "map": None if self.map is None else self.map.to_json(),
            "ranking": asdict(self.ranking),
        }


@dataclass(frozen=True)
class Case:
    """One sample as a judge saw it.

    Attributes:
        position: its place in the split.
        index, source_id: as in the dataset.
        area: visibly degraded share of the image.
        provenance: where its defects come from.
        scores: of gt, syn and sr.
        paired_auroc: of this sample alone; None without a map or a visible defect.
    """

    position: int
    index: int
    source_id: str
    area: float
    provenance: Provenance
    scores: tuple[float, float, float]
    paired_auroc: float | None


@dataclass(frozen=True)
class JudgeReport:
    """All figures of one judge.

    Attributes:
        name, digest: the judge's.
        overall: over all samples.
        by_area, by_origin, by_family: over groups, in a fixed order; groups without a sample are left out.
        cases: every sample.
    """

    name: str
    digest: str | None
    overall: GroupFigures
    by_area: dict[str, GroupFigures]
    by_origin: dict[str, GroupFigures]
    by_family: dict[str, GroupFigures]
    cases: tuple[Case, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without the cases."""
        groups = {"area": self.by_area, "origin": self.by_origin, "family": self.by_family}
        by = {name: {label: one.to_json() for label, one in group.items()} for name, group in groups.items()}
        return {"digest": self.digest, **self.overall.to_json(), "by": by}


def evaluate_judges(
    judges: Sequence[Judge],
    samples: Samples,
    read_provenance: ReadProvenance,
    *,
    batch_size: int = 16,
    on_samples: Callable[[int], None] = lambda _: None,
) -> list[JudgeReport]:
    """Judge all ``samples``, uncropped; every row is read once.

    Args:
        judges: who judges; names must differ.
        samples: at least one.
        read_provenance: see above.
        batch_size: samples a batch.
        on_samples: told how many more samples are done, for progress.
    """
    records = [_Record(judge) for judge in judges]
    position = 0
    for rows in _batches(samples, batch_size):
        facts = [_Facts.of(row, read_provenance) for row in rows]
        for record in records:
            record.add(rows, facts, record.judge.judge(rows), position)
        position += len(rows)
        on_samples(len(rows))
    return [record.report() for record in records]


def _batches(samples: Samples, size: int) -> Iterator[list[Row]]:
    """Rows of one size each batch, since a dataset's samples may differ in size."""
    held: list[Row] = []
    for row in samples:
        if held and (len(held) == size or held[0].gt.shape != row.gt.shape):
            yield held
            held = []
        held.append(row)
    if held:
        yield held


def area_label(area: float) -> str | None:
    """The defect-area group, ``"0–1 %"`` …; None without a visible defect."""
    if area <= 0:
        return None
    low, high = next(bounds for bounds in DEFECT_AREAS if bounds[0] <= area < bounds[1])
    return f"{low * 100:.0f}–{min(high, 1.0) * 100:.0f} %"


@dataclass(frozen=True)
class _Facts:
    """What is known of a sample before anyone judges it."""

    marks: npt.NDArray[np.bool_]
    area: float
    provenance: Provenance

    @classmethod
    def of(cls, row: Row, read_provenance: ReadProvenance) -> _Facts:
        marks = row.map > VISIBLE
        return cls(marks, float(marks.mean()), read_provenance(row.recipe))

    def groups(self) -> list[tuple[str, str]]:
        label = area_label(self.area)
        own = [("all", ""), ("origin", self.provenance.origin), *(("family", name) for name in self.provenance.families)]
        return own if label is None else [*own, ("area", label)]


class _Record:
    """One judge's tallies: a few megabytes for the groups, and a line a sample."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self._tallies: dict[tuple[str, str], MapTally] = {}
        self._members: dict[tuple[str, str], list[int]] = {}
        self._cases: list[Case] = []
        self._has_map = True

    def add(self, rows: Sequence[Row], facts: Sequence[_Facts], judgement: Judgement, position: int) -> None:
        self._has_map = judgement.map_syn is not None
        for i, (row, fact) in enumerate(zip(rows, facts, strict=True)):
            counts = None
            if judgement.map_syn is not None and judgement.map_gt is not None:
                counts = count_image(judgement.map_syn[i], fact.marks, original_map=judgement.map_gt[i], target=row.map)
            for group in fact.groups():
                self._members.setdefault(group, []).append(len(self._cases))
                if counts is not None:
                    self._tallies.setdefault(group, MapTally()).add(counts)
            scores = (float(judgement.score_gt[i]), float(judgement.score_syn[i]), float(judgement.score_sr[i]))
            paired = None if counts is None else counts.paired_auroc
            case = Case(position + i, row.index, row.source_id, fact.area, fact.provenance, scores, paired)
            self._cases.append(case)

    def report(self) -> JudgeReport:
        areas = [label for low, _ in DEFECT_AREAS if (label := area_label(low + 1e-9)) is not None]
        return JudgeReport(
            name=self.judge.name,
            digest=self.judge.digest,
            overall=self._figures(("all", "")),
            by_area={label: self._figures(("area", label)) for label in areas if ("area", label) in self._members},
            by_origin=self._named("origin"),
            by_family=self._named("family"),
            cases=tuple(self._cases),
        )

    def _named(self, dimension: str) -> dict[str, GroupFigures]:
        return {group[1]: self._figures(group) for group in sorted(self._members) if group[0] == dimension}

    def _figures(self, group: tuple[str, str]) -> GroupFigures:
        members = self._members.get(group, [])
        tally = self._tallies.get(group)
        figures = tally.figures() if tally is not None and self._has_map else None
        return GroupFigures(len(members), figures, ranking_figures([self._cases[i] for i in members]))


def ranking_figures(cases: Sequence[Case]) -> RankingFigures:
    """Order of the scores of ``cases``; those without a visible defect are passed over."""
    broken = [case for case in cases if case.area > 0]
    gt, syn, sr = np.array([case.scores for case in broken]).reshape(-1, 3).T
    order = ranking_quality(gt, syn, sr, np.ones(len(broken), dtype=bool))
    if not broken:
        return RankingFigures(None, None, None, None, None, 0)
    paired = float(((gt > syn) + 0.5 * (gt == syn)).mean())
    return RankingFigures(paired, float((gt - syn).mean()), order.gt_over_syn, order.syn_over_sr, order.triplet, order.count)


def best_and_worst(cases: Sequence[Case], count: int) -> Mapping[str, list[Case]]:
    """The ``count`` samples a judge saw best and worst: by paired AUROC, or by the fall of its score if it has no map.

    Samples without a visible defect are passed over; no sample stands in both lists.
    """
    broken = [case for case in cases if case.area > 0]
    ordered = sorted(broken, key=lambda case: (_merit(case), case.scores[0] - case.scores[1]), reverse=True)
    count = min(count, len(ordered) // 2)
    return {"best": ordered[:count], "worst": ordered[::-1][:count]}


def _merit(case: Case) -> float:
    return case.scores[0] - case.scores[1] if case.paired_auroc is None else case.paired_auroc
