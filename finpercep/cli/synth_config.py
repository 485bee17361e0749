"""`finpercep synth --config FILE.toml`: a build's settings from defaults, a file and flags, in rising order of precedence."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_synth.degradations import DegradationConfig
from data_synth.plan import BuildConfig
from data_synth.recipe import RecipeConfig
from finpercep.errors import ConfigError

Tree = dict[str, Any]


def build_config(file: Path | None, flags: Mapping[str, Any], *, scale: int | None = None) -> BuildConfig:
    """Settings of a build.

    Args:
        file: TOML with any part of `BuildConfig`, nested as it is: ``[recipe.mix]``, ``[recipe.mask]``, ``[ground_truth]``, …
        flags: dotted names, ``recipe.crop``, and values; None leaves the file's value, or the default.
        scale: of both degradations; None leaves the file's.

    Raises:
        ConfigError: the file cannot be read, or a setting is unknown or out of range; names it.
    """
    from pydantic import TypeAdapter, ValidationError

    given = _read(file) if file else {}
    scale = scale or given.get("recipe", {}).get("degradation", {}).get("scale", 4)
    defaults = BuildConfig(
        count=1000, recipe=RecipeConfig(degradation=DegradationConfig(scale=scale), light=DegradationConfig.light(scale))
    )
    tree = _merge(asdict(defaults), given, str(file))
    for name, value in flags.items():
        if value is not None:
            *path, last = name.split(".")
            branch = tree
            for part in path:
                branch = branch[part]
            branch[last] = value
    tree["recipe"]["degradation"]["scale"] = tree["recipe"]["light"]["scale"] = scale
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
        if isinstance(base[key], dict):
            if not isinstance(value, dict):
                raise ConfigError(f"{file}: {name} is a table of settings, got {value!r}")
            merged[key] = _merge(base[key], value, file, f"{name}.")
        else:
            merged[key] = value
    return merged
