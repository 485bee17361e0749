"""The rungs being served, by name and by digest. Knows nothing about HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from finpercep.errors import ConfigError
from finpercep.wire import WIRE_VERSION, ModelId, ModelReply, RungReply
from rm_server.refusal import Refusal

if TYPE_CHECKING:
    from finpercep.predictor import Predictor


class Registry:
    """Loaded predictors. The last rung, the finest, is the default.

    Args:
        predictors: rung → predictor, RM_0 first (`finpercep.predictor.load_predictors`).
    """

    def __init__(self, predictors: Mapping[str, Predictor]) -> None:
        if not predictors:
            raise ConfigError("a server needs at least one rung, got an empty ladder")
        self._predictors = dict(predictors)

    @property
    def default(self) -> Predictor:
        """The rung that answers when a request names none."""
        return list(self._predictors.values())[-1]

    def get(self, rung: str | None) -> Predictor:
        """The predictor of a rung named by its name or digest; the default for None.

        Raises:
            Refusal: it is not served.
        """
        if rung is None:
            return self.default
        for name, predictor in self._predictors.items():
            if rung in {name, predictor.digest}:
                return predictor
        raise Refusal(404, f"unknown rung {rung!r}; this server has {', '.join(self._predictors)}")

    def describe(self) -> ModelReply:
        """What ``GET /model`` says."""
        rungs = tuple(RungReply(name=name, digest=p.digest, has_map=p.has_map) for name, p in self._predictors.items())
        default = self.default
        return ModelReply(name=default.name, rung=default.rung, digest=default.digest, rungs=rungs, wire=WIRE_VERSION)


def model_id(predictor: Predictor) -> ModelId:
    """How replies name a predictor."""
    return ModelId(name=predictor.name, rung=predictor.rung, digest=predictor.digest)
