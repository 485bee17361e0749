"""`finpercep synth --config FILE.toml`: a build's settings from defaults, a file and flags, in rising order of precedence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_synth.plan import BuildConfig
from data_synth.schema import read_manifest
from finpercep.cli.settings_file import merge_settings, read_settings, set_flags, validated

_REPLACED = frozenset({"recipe.mask.shapes"})
"""Tables that are lists of what is wanted: what a file leaves out of them is not wanted."""


def build_config(
    file: Path | None, flags: Mapping[str, Any], *, scale: int | None = None, built: Path | None = None
) -> BuildConfig:
    """Settings of a build.

    Args:
        file: TOML with any part of `BuildConfig`, nested as it is: ``[recipe.mix]``, ``[recipe.mask]``, ``[ground_truth]``, …
            There are as many ``[[recipe.degradation.stages]]`` as the file has, each on top of the default stage of its place;
            a table of mask shapes replaces the default.
        flags: dotted names, ``recipe.crop``, and values; None leaves the file's value, or the default.
        scale: of both degradations; None leaves the file's.
        built: a data set whose settings are the defaults; None: those of `BuildConfig`.

    Raises:
        ConfigError: the file cannot be read, or a setting is unknown or out of range; names it.
    """
    base = asdict(BuildConfig(count=1000))
    if built:
        base = {name: value for name, value in read_manifest(built).config.items() if name in base}
    tree = merge_settings(base, read_settings(file, "build"), str(file), replaced=_REPLACED) if file else base
    factor = tree["recipe"]["degradation"]["scale"] if scale is None else scale
    set_flags(tree, {**flags, "recipe.degradation.scale": factor, "recipe.light.scale": factor})
    return validated(BuildConfig, tree)
