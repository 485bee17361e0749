"""RM_0 … RM_N: which rungs a ladder has, and their names."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from finpercep.errors import ConfigError
from finpercep.reward_model.config import RewardModelConfig


@dataclass(frozen=True)
class LadderConfig:
    """The rungs to train, from global and coarse to fine.

    Attributes:
        base: what all rungs share.
        map_strides: stride of the map of RM_1 … RM_N, strictly falling. RM_0 has no map (method §5).
    """

    base: RewardModelConfig = field(default_factory=RewardModelConfig)
    map_strides: tuple[int, ...] = (16, 4)

    def __post_init__(self) -> None:
        if any(later >= earlier for earlier, later in zip(self.map_strides, self.map_strides[1:], strict=False)):
            raise ConfigError(f"map_strides must fall strictly from rung to rung, got {self.map_strides}")

    def rungs(self) -> list[tuple[str, RewardModelConfig]]:
        """(name, config) of every rung, RM_0 first."""
        strides: tuple[int | None, ...] = (None, *self.map_strides)
        return [(rung_name(k), replace(self.base, map_stride=stride)) for k, stride in enumerate(strides)]


def rung_name(index: int) -> str:
    """``RM_k``."""
    return f"RM_{index}"
