"""README.md of a data set: the card people read, with the YAML header `datasets.load_dataset` reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from data_synth.ground_truth import Field
from data_synth.recipe import Recipe
from data_synth.schema.dataset import COLUMNS
from data_synth.schema.manifest import CONTRACT_VERSION, SPLITS, ShardRecord

_AREA_EDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)


def sample_counts(recipes: Iterable[Recipe], maps: Iterable[Field]) -> dict[str, dict[str, int]]:
    """How often each origin, family, SR model, artefact, severity, … occurs. Plain JSON; sums with `add_counts`."""
    names = (
        "swapped region",
        "origin",
        "family",
        "model",
        "artefact",
        "severity",
        "back-projected",
        "mask shape",
        "mask area",
        "feathered",
    )
    counters = {name: Counter[str]() for name in names}
    for recipe, degradation in zip(recipes, maps, strict=True):
        seen = "clean" if recipe.kind == "clean" else "visibly degraded" if degradation.any() else "no visible difference"
        counters["swapped region"][seen] += 1
        counters["origin"][recipe.origin] += 1
        counters["family"].update(recipe.families)
        counters["back-projected"]["yes" if recipe.back_projection else "no"] += 1
        counters["mask shape"][recipe.mask.shape] += 1
        counters["feathered"]["yes" if recipe.mask.feather > 0 else "no"] += 1
        bin_ = int(np.searchsorted(_AREA_EDGES[1:-1], recipe.mask.area, side="right"))
        counters["mask area"][f"{_AREA_EDGES[bin_]:03.0%}–{_AREA_EDGES[bin_ + 1]:03.0%}"] += 1
        if recipe.model:
            counters["model"][recipe.model.name] += 1
        for artefact in recipe.artefacts:
            low = min(4, int(artefact.severity * 5)) / 5
            counters["artefact"][artefact.kind] += 1
            counters["severity"][f"{low:.1f}–{low + 0.2:.1f}"] += 1
    return {name: dict(sorted(counter.items())) for name, counter in counters.items()}


def add_counts(parts: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Sum of several `sample_counts`."""
    total: dict[str, Counter[str]] = {}
    for part in parts:
        for name, counts in part.items():
            total.setdefault(name, Counter()).update(counts)
    return {name: dict(sorted(counter.items())) for name, counter in sorted(total.items())}


def dataset_card(shards: Sequence[ShardRecord], notes: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The whole README.md; ``config`` is the build's identity."""
    return "\n".join([*_yaml_header(shards), "", *_body(shards, notes, config)]) + "\n"


def _yaml_header(shards: Sequence[ShardRecord]) -> list[str]:
    splits = [split for split in SPLITS if any(shard.split == split for shard in shards)]
    lines = [
        "---",
        "tags:",
        "- image-quality-assessment",
        "- super-resolution",
        "configs:",
        "- config_name: default",
        "  data_files:",
    ]
    for split in splits:
        lines += [f"  - split: {split}", f"    path: data/{split}-*.parquet"]
    lines += ["dataset_info:", "  config_name: default", "  features:"]
    for name, dtype in COLUMNS.items():
        lines += [f"  - name: {name}", f"    dtype: {dtype}"]
    lines.append("  splits:")
    for split in splits:
        own = [shard for shard in shards if shard.split == split]
        size, rows = sum(shard.bytes for shard in own), sum(shard.rows for shard in own)
        lines += [f"  - name: {split}", f"    num_bytes: {size}", f"    num_examples: {rows}"]
    return [*lines, "---"]


def _body(shards: Sequence[ShardRecord], notes: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    recipe, truth = config["recipe"], config["ground_truth"]
    lines = [
        "# Region-swapped super-resolution samples",
        "",
        f"Built by `finpercep synth` (contract 1, version {CONTRACT_VERSION}, seed {config['seed']}); `finpercep.json` holds all",
        f"settings. {recipe['crop']} px, x{recipe['degradation']['scale']}. Part of each clean photo (`gt`) was replaced by a",
        "super-resolved or artificially broken version (`sr`) under a mask; `syn` is the result, `map` says where and how badly",
        f"it differs (16-bit grey, 65535 = fully degraded), measured with α = {truth['alpha']} and {truth['features']} features.",
        "No photo stands in two splits; near-duplicates that were recognised stay together.",
        "",
        *_table("split", {split: sum(shard.rows for shard in shards if shard.split == split) for split in SPLITS}, "samples"),
        "",
        "Photos keep their own licences:",
        "",
        "| source | origin | photos | licence |",
        "|---|---|---|---|",
        *(f"| {source['name']} | {source['origin']} | {source['photos']} | {source['licence']} |" for source in notes["sources"]),
        "",
        f"Photos used: {notes['photos']}; left out as unreadable or too small: {len(notes['left_out'])}; "
        f"near-duplicates of another photo: {notes['near_duplicates']}.",
        "",
    ]
    for name, counts in notes["counts"].items():
        if counts:
            lines += [*_table(name, counts, "count"), ""]
    return lines


def _table(name: str, counts: Mapping[str, int], unit: str) -> list[str]:
    return [f"| {name} | {unit} |", "|---|---|", *(f"| {value} | {count} |" for value, count in counts.items() if count)]
