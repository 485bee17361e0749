"""Settings of a command from defaults, a TOML file and flags, in rising order of precedence. Knows no command."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, TypeVar

from finpercep.errors import ConfigError

Tree = dict[str, Any]
T = TypeVar("T")


def read_settings(file: Path, kind: str) -> Tree:
    """The tables of a TOML file of ``kind`` settings. Raises `ConfigError` when it cannot be read."""
    try:
        return tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: expected a TOML file of {kind} settings: {error}") from error


def as_table(value: object, name: str, file: str) -> Tree:
    """``value`` of the setting ``name``, which is a table. Raises `ConfigError` when it is something else."""
    if not isinstance(value, dict):
        raise ConfigError(f"{file}: {name} is a table of settings, got {value!r}")
    return value


def merge_settings(base: Tree, over: Tree, file: str, *, replaced: frozenset[str] = frozenset(), prefix: str = "") -> Tree:
    """``base`` with the values of ``over``; tables are merged, anything else replaced.

    Args:
        base: every setting there is.
        over: some of them.
        file: that ``over`` is from, for messages.
        replaced: dotted names of tables that are lists of what is wanted: what a file leaves out of them is not wanted.
        prefix: dotted name of ``base``, with a dot at its end.

    Raises:
        ConfigError: a setting that ``base`` does not have, or a value where a table belongs; names it.
    """
    merged = dict(base)
    for key, value in over.items():
        name = f"{prefix}{key}"
        if key not in base:
            raise ConfigError(f"{file}: no setting is called {name}; here there are {', '.join(sorted(base))}")
        if isinstance(base[key], dict) and name not in replaced:
            merged[key] = merge_settings(base[key], as_table(value, name, file), file, replaced=replaced, prefix=f"{name}.")
        elif _is_tables(base[key]):
            if not _is_tables(value):
                raise ConfigError(f"{file}: {name} is a list of tables, [[{name}]], got {value!r}")
            places = [base[key][min(place, len(base[key]) - 1)] for place in range(len(value))]
            merged[key] = [
                merge_settings(place, item, file, replaced=replaced, prefix=f"{name}.")
                for place, item in zip(places, value, strict=True)
            ]
        else:
            merged[key] = value
    return merged


def _is_tables(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, dict) for item in value)


def set_flags(tree: Tree, flags: Mapping[str, Any]) -> None:
    """Put values in at dotted names, ``recipe.crop``; None leaves what is there."""
    for name, value in flags.items():
        if value is not None:
            *path, last = name.split(".")
            reduce(getitem, path, tree)[last] = value


def validated(kind: type[T], tree: Tree) -> T:
    """``tree`` as the dataclass ``kind``. Raises `ConfigError`: a value of the wrong type or range; names it."""
    from pydantic import TypeAdapter, ValidationError

    try:
        config: T = TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}, got {first['input']!r}") from error
    return config
