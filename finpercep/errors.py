"""The errors of this package, under the distribution's one root (`data_synth.schema.errors.FinpercepError`).

FinpercepError
├── ImageError, SchemaError       (the contracts')
│   └── WireError                 a wire message that breaks contract 3 (a SchemaError)
│       └── TooManyImages         of more images than its reader takes (`finpercep.wire.codec`)
├── ConfigError                   a setting outside its range
├── MissingExtraError             an optional dependency that a command needs
├── WeightsError                  weights that cannot be found or downloaded
├── TrainingError                 a run that cannot go on (non-finite loss, run directory of another run)
└── RewardError                   a reward that could not be had; never replaced by a number
    ├── RewardUnavailable         the server cannot be reached, or is not ready
    ├── RewardRejected            the request was refused; the message says why
    ├── ServerFailed              the server failed on the request; the message is its own
    └── RewardChanged             the served model is no longer the one this run began with
"""

from __future__ import annotations

from data_synth.schema.errors import FinpercepError, ImageError, SchemaError

__all__ = [
    "ConfigError",
    "FinpercepError",
    "ImageError",
    "MissingExtraError",
    "Refusal",
    "RewardChanged",
    "RewardError",
    "RewardRejected",
    "RewardUnavailable",
    "SchemaError",
    "ServerFailed",
    "TrainingError",
    "WeightsError",
    "WireError",
]


class ConfigError(FinpercepError):
    """A setting outside its allowed range."""


class MissingExtraError(FinpercepError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed, and this needs it: pip install 'finpercep[{extra}]'")


class WeightsError(FinpercepError):
    """Weights that cannot be found, downloaded or read."""


class TrainingError(FinpercepError):
    """A training run that cannot go on."""


class Diverged(TrainingError):
    """A loss or a gradient that is not finite."""


class RewardError(FinpercepError):
    """A reward that could not be had. It is raised, never replaced by a number."""


class RewardUnavailable(RewardError):
    """The reward server cannot be reached or is not ready."""


class RewardRejected(RewardError):
    """The request for a reward was refused; asking again will not help.

    Attributes:
        status: the server's HTTP status, or None when the refusal came before anything was sent.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ServerFailed(RewardError):
    """A server's own 500: it failed on the request, and its sentence says how; asking again would not help.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


Refusal = RewardRejected | ServerFailed
"""What a server's own sentence comes to: nothing is wrong with the connection, but there is no result."""


class RewardChanged(RewardError):
    """The served model has another digest than before: rewards would no longer be comparable."""


class WireError(SchemaError):
    """A wire message that breaks its contract; names the field, what was expected and what was received."""
