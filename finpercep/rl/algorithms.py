"""The algorithms by name, with their settings."""

from __future__ import annotations

from collections.abc import Mapping

from finpercep.errors import ConfigError
from finpercep.rl.algorithm import AlgorithmConfig
from finpercep.rl.ddpo import DdpoConfig
from finpercep.rl.dpo import DpoConfig
from finpercep.rl.draft import DraftConfig
from finpercep.rl.grpo import GrpoConfig
from finpercep.rl.nft import NftConfig
from finpercep.rl.refl import ReflConfig
from finpercep.rl.rfsr import RfsrConfig

ALGORITHMS: Mapping[str, type[AlgorithmConfig]] = {
    config.name: config for config in (ReflConfig, RfsrConfig, DraftConfig, DdpoConfig, GrpoConfig, DpoConfig, NftConfig)
}


def algorithm_class(name: str) -> type[AlgorithmConfig]:
    """The settings class of the algorithm called ``name``. Raises `ConfigError` when there is none."""
    if name not in tuple(ALGORITHMS):  # a settings file may say anything, a list too, which no mapping can be asked for
        raise ConfigError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {name!r}")
    return ALGORITHMS[name]
