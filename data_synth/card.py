"""README.md of a data set: the card people read, with the YAML header `datasets.load_dataset` reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from data_synth.recipe import Recipe
from data_synth.schema.dataset import COLUMNS
from data_synth.schema.manifest import CONTRACT_VERSION, SPLITS, ShardRecord

_AREA_EDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)


def recipe_counts(recipes: Iterable[Recipe]) -> dict[str, dict[str, int]]:
    """How often each origin, SR model, artefact, severity, mask shape and area occurs. Plain JSON; sums with `add_counts`."""
    counters = {name: Counter[str]() for name in ("origin", "model", "artefact", "severity", "shape", "area")}
    for recipe in recipes:
        counters["origin"][recipe.origin] += 1
        counters["shape"][recipe.mask.shape] += 1
        bin_ = int(np.searchsorted(_AREA_EDGES[1:-1], recipe.mask.area, side="right"))
        counters["area"][f"{_AREA_EDGES[bin_]:03.0%}–{_AREA_EDGES[bin_ + 1]:03.0%}"] += 1
        if recipe.model:
            counters["model"][recipe.model.name] += 1
        for artefact in recipe.artefacts:
            low = min(4, int(artefact.severity * 5)) / 5
            counters["artefact"][artefact.kind] += 1
            counters["severity"][f"{low:.1f}–{low + 0.2:.1f}"] += 1
    return {name: dict(sorted(counter.items())) for name, counter in counters.items()}


def add_counts(parts: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Sum of several `recipe_counts`."""
    total: dict[str, Counter[str]] = {}
    for part in parts:
        for name, counts in part.items():
            total.setdefault(name, Counter()).update(counts)
    return {name: dict(sorted(counter.items())) for name, counter in sorted(total.items())}


def dataset_card(shards: Sequence[ShardRecord], notes: Mapping[str, Any], seed: int) -> str:
    """The whole README.md."""
    return "\n".join([*_yaml_header(shards), "", *_body(shards, notes, seed)]) + "\n"


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


def _body(shards: Sequence[ShardRecord], notes: Mapping[str, Any], seed: int) -> list[str]:
    lines = [
        "# Region-swapped super-resolution samples",
        "",
        f"Built by `finpercep synth` (contract 1, version {CONTRACT_VERSION}, seed {seed}); `finpercep.json` holds all settings.",
        "Part of each clean photo (`gt`) was replaced by a super-resolved or artificially broken version (`sr`) under a mask;",
        "`syn` is the result, `map` says where and how badly it differs (16-bit grey, 65535 = fully degraded).",
        "Photos keep their own licences; no photo stands in two splits.",
        "",
        "| split | samples |",
        "|---|---|",
    ]
    for split in SPLITS:
        if rows := sum(shard.rows for shard in shards if shard.split == split):
            lines.append(f"| {split} | {rows} |")
    lines += ["", f"Photos used: {notes['photos']}; left out as unreadable or too small: {len(notes['left_out'])}.", ""]
    for name, counts in notes["counts"].items():
        if counts:
            lines += [f"| {name} | count |", "|---|---|", *(f"| {value} | {count} |" for value, count in counts.items()), ""]
    return lines
