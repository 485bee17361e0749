"""`finpercep finetune --config FILE.toml --set KEY=VALUE`: the settings of a run from defaults, a file and flags."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from finpercep.cli.refresh import RefreshConfig
from finpercep.cli.settings_file import as_table, merge_settings, read_settings, set_flags, validated
from finpercep.curriculum.loop import FinetuneConfig
from finpercep.errors import ConfigError
from finpercep.rl.algorithms import ALGORITHMS, algorithm_class
from finpercep.sr.settings import PolicySettings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

POLICY_TABLE, REFRESH_TABLE = "policy_settings", "refresh"
"""Of a settings file, and of a run's own ``config.toml``."""

T = TypeVar("T", bound="DataclassInstance")


def finetune_config(
    file: Path | None, algorithm: str | None, flags: Mapping[str, Any], settings: Sequence[str] = ()
) -> FinetuneConfig:
    """Settings of a fine-tuning run.

    Args:
        file: TOML with any part of `FinetuneConfig`: ``steps = 300``, ``algorithm = "grpo"``, tables ``[reward]`` and, under the
            algorithm's name, its own settings. The ``[finetune]`` table of a run's ``config.toml`` will do.
        algorithm: its name; None leaves the file's, or refl.
        flags: settings by name; None leaves the file's value, or the default.
        settings: ``KEY=VALUE`` of the algorithm, VALUE as TOML writes it; quotes may be left out.

    Raises:
        ConfigError: the file cannot be read, or a setting is unknown or out of range; names it.
    """
    given = read_settings(file, "fine-tuning") if file else {}
    beside = {key: value for key, value in given.items() if key not in (POLICY_TABLE, REFRESH_TABLE)}
    given = as_table(given.get("finetune", beside), "finetune", str(file))
    name = algorithm or given.get("algorithm", FinetuneConfig().algorithm.name)
    kind = algorithm_class(name)
    general = dataclasses.asdict(FinetuneConfig())
    tree = merge_settings({**general, "algorithm": name, name: dataclasses.asdict(kind())}, _chosen(given, name), str(file))
    set_flags(tree, flags)
    own = merge_settings(tree.pop(name), _settings(settings, "--set"), "--set")
    hints = {key: hint for key, hint in get_type_hints(FinetuneConfig).items() if key != "algorithm"}
    rest = {key: value for key, value in tree.items() if key != "algorithm"}
    checked: Any = validated(dataclasses.make_dataclass("FinetuneSettings", hints.items()), rest)  # pydantic knows no protocols
    return FinetuneConfig(algorithm=validated(kind, own), **vars(checked))


def policy_settings(file: Path | None, settings: Sequence[str]) -> PolicySettings:
    """What is decided about the policy: the file's table ``[policy_settings]``, and ``KEY=VALUE`` over it. Raises as `_table`."""
    return _table(PolicySettings, POLICY_TABLE, file, _settings(settings, "--policy-set"), "--policy-set")


def refresh_config(file: Path | None, samples: int | None, settings: Sequence[str]) -> RefreshConfig:
    """How rungs are refreshed: the file's table ``[refresh]``, ``KEY=VALUE`` and ``samples`` over it. Raises as `_table`."""
    flags = {} if samples is None else {"samples": samples}
    config = _table(RefreshConfig, REFRESH_TABLE, file, {**_settings(settings, "--refresh-set"), **flags}, "--refresh-set")
    if settings and not config.samples:
        raise ConfigError("--refresh-set is of --refresh, and nothing is to be refreshed")
    return config


def _table(kind: type[T], name: str, file: Path | None, flags: dict[str, Any], option: str) -> T:
    """Settings of a table of their own: the defaults, the file's over them, ``flags`` over these.

    Raises:
        ConfigError: an unknown setting, or a value of the wrong type or out of range.
    """
    given = as_table(read_settings(file, "fine-tuning").get(name, {}), name, str(file)) if file else {}
    tree = merge_settings(dataclasses.asdict(kind()), given, str(file))
    return validated(kind, merge_settings(tree, flags, option))


def _chosen(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Without the tables of algorithms that are not the chosen one, so that one file can hold settings for several."""
    return {key: value for key, value in given.items() if key not in ALGORITHMS or key == name} | {"algorithm": name}


def _settings(given: Sequence[str], option: str) -> dict[str, Any]:
    """What ``option`` says, once for each setting."""
    found: dict[str, Any] = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not equals:
            raise ConfigError(f"{option} {one}: expected KEY=VALUE")
        try:
            found[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key.strip()] = value.strip()
    return found
