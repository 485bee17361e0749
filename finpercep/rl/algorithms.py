"""The algorithms by name, with their settings."""

from __future__ import annotations

from collections.abc import Mapping

from finpercep.errors import ConfigError
from finpercep.rl.algorithm import AlgorithmConfig
from finpercep.rl.refl import ReflConfig

ALGORITHMS: Mapping[str, type[AlgorithmConfig]] = {config.name: config for config in (ReflConfig,)}


def algorithm_config(name: str, settings: Mapping[str, object] | None = None) -> AlgorithmConfig:
    """Settings of the algorithm called ``name``, its defaults but for ``settings``.

    Raises:
        ConfigError: no such algorithm or setting, or a bad value.
    """
    if name not in ALGORITHMS:
        raise ConfigError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {name!r}")
    config = ALGORITHMS[name]
    known = config.__dataclass_fields__  # type: ignore[attr-defined]
    if unknown := set(settings or {}) - set(known):
        raise ConfigError(f"{name} has the settings {', '.join(known)}, got {', '.join(sorted(unknown))}")
    return config(**(settings or {}))
