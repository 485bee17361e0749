"""`finpercep synth --config FILE.toml`: a build's settings from defaults, a file and flags, in rising order of precedence."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from data_synth.plan import BuildConfig
from data_synth.schema import read_manifest
from finpercep.errors import ConfigError

Tree = dict[str, Any]
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
    from pydantic import TypeAdapter, ValidationError

    base = asdict(BuildConfig(count=1000))
    if built:
        base = {name: value for name, value in read_manifest(built).config.items() if name in base}
    tree = _merge(base, _read(file), str(file)) if file else base
    factor = tree["recipe"]["degradation"]["scale"] if scale is None else scale
    both = {"recipe.degradation.scale": factor, "recipe.light.scale": factor}
    for name, value in {**flags, **both}.items():
        if value is not None:
            *path, last = name.split(".")
            reduce(getitem, path, tree)[last] = value
    try:
        config: BuildConfig = TypeAdapter(BuildConfig).validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}, got {first['input']!r}") from error
    return config


def _read(file: Path) -> Tree:
    try:
        return tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: expected a TOML file of build settings: {error}") from error


def _merge(base: Tree, over: Tree, file: str, prefix: str = "") -> Tree:
    """``base`` with the values of ``over``; tables are merged, anything else replaced."""
    merged = dict(base)
    for key, value in over.items():
        name = f"{prefix}{key}"
        if key not in base:
            raise ConfigError(f"{file}: no setting is called {name}; here there are {', '.join(sorted(base))}")
        if isinstance(base[key], dict) and name not in _REPLACED:
            if not isinstance(value, dict):
                raise ConfigError(f"{file}: {name} is a table of settings, got {value!r}")
            merged[key] = _merge(base[key], value, file, f"{name}.")
        elif _is_tables(base[key]):
            if not _is_tables(value):
                raise ConfigError(f"{file}: {name} is a list of tables, [[{name}]], got {value!r}")
            places = [base[key][min(place, len(base[key]) - 1)] for place in range(len(value))]
            merged[key] = [_merge(place, item, file, f"{name}.") for place, item in zip(places, value, strict=True)]
        else:
            merged[key] = value
    return merged


def _is_tables(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, dict) for item in value)
