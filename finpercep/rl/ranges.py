"""What settings may be: checks that name the algorithm, the setting, what it must be and what it is."""

from __future__ import annotations

import math
from typing import Any

from finpercep.errors import ConfigError


def refusal(config: Any, name: str, requirement: str) -> ConfigError:
    """The error of a setting that breaks ``requirement``."""
    return ConfigError(f"{config.name} {name} must {requirement}, got {getattr(config, name)!r}")


def at_least(config: Any, low: float, *names: str) -> None:
    """Every named setting is finite and >= ``low``; None, where a setting may be None, is left alone."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not low <= value < math.inf:
            raise refusal(config, name, f"be finite and at least {low}")


def positive(config: Any, *names: str) -> None:
    """Every named setting is finite and > 0."""
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise refusal(config, name, "be finite and > 0")


def share(config: Any, *names: str) -> None:
    """Every named setting lies in (0, 1]."""
    for name in names:
        if not 0 < getattr(config, name) <= 1:
            raise refusal(config, name, "lie in (0, 1]")


def unit(config: Any, *names: str) -> None:
    """Every named setting lies in [0, 1]."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise refusal(config, name, "lie in [0, 1]")


def one_of(config: Any, name: str, *values: object) -> None:
    """The named setting is one of ``values``."""
    if getattr(config, name) not in values:
        raise refusal(config, name, f"be one of {', '.join(map(str, values))}")
