"""The JSON half of the wire: the replies of `POST /score` and `GET /model`, names fixed by the architecture."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from finpercep.errors import WireError

WIRE_VERSION = 1
"""Version of contract 3: JSON replies carry it in the header `WIRE_HEADER`, safetensors messages in metadata ``wire``."""

WIRE_HEADER = "finpercep-wire"
TENSOR_MEDIA_TYPE = "application/x-safetensors"

Unit = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(ge=0)]


class WireModel(BaseModel):
    """Immutable; finite numbers only. A receiver ignores fields it does not know, so that a server may add some."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, protected_namespaces=())


class ModelId(WireModel):
    """Which model answered. Every reply carries it."""

    name: str = Field(description="Name of the ladder.")
    rung: str = Field(description="Rung of the ladder, RM_0 the coarsest.")
    digest: str = Field(description="Identity of weights, preprocessing and calibration.")


class Timing(WireModel):
    """Where a request spent its time on the server."""

    queue_ms: Milliseconds = Field(description="Waiting for the model.")
    batch_ms: Milliseconds = Field(description="Decoding, and putting the batch together.")
    compute_ms: Milliseconds = Field(description="Running the model.")


class RegionReply(WireModel):
    """A connected region of degradation."""

    box: tuple[int, int, int, int] = Field(description="x0, y0, x1, y1 in px; x1 and y1 are exclusive.")
    area: int = Field(ge=1, description="Pixels in the region.")
    mean: Unit = Field(description="Mean degradation inside the region.")
    peak: Unit = Field(description="Largest degradation inside the region.")


class ItemReply(WireModel):
    """One image's result: numbers, or ``error`` and nulls; never a number for an image that failed."""

    score: Unit | None = Field(default=None, description="Global score; higher is better.")
    reward: float | None = Field(default=None, description="Fused reward R of score and map; higher is better.")
    max_degradation: Unit | None = Field(default=None, description="Mean of the worst pixels; null for a rung without a map.")
    mean_degradation: Unit | None = Field(default=None, description="Mean of the map; null for a rung without a map.")
    regions: tuple[RegionReply, ...] | None = Field(
        default=None, description="Regions, worst first; null for a rung without a map."
    )
    map: str | None = Field(
        default=None, description="Base64 PNG as the request's ``map`` asked; null when not asked, or no map."
    )
    error: str | None = Field(default=None, description="Why this image has no result.")

    @model_validator(mode="after")
    def _number_or_error(self) -> ItemReply:
        numbers = (self.score, self.reward, self.max_degradation, self.mean_degradation)
        if self.error is None and (self.score is None or self.reward is None):
            raise ValueError("an item without an error must have score and reward")
        if self.error is not None and any(number is not None for number in numbers):
            raise ValueError("an item with an error must have no numbers")
        return self


class ScoreReply(WireModel):
    """Reply of ``POST /score``: one item an image, in the request's order."""

    items: tuple[ItemReply, ...]
    model: ModelId
    timing: Timing


class RungReply(WireModel):
    """One rung that is being served."""

    name: str
    digest: str
    has_map: bool
    takes_lr: bool = Field(default=False, description="Whether it can also be shown the low-resolution picture.")


class ModelReply(WireModel):
    """Reply of ``GET /model``."""

    name: str = Field(description="Name of the ladder.")
    rung: str = Field(description="The rung that answers when a request names none.")
    digest: str = Field(description="Digest of that rung.")
    rungs: tuple[RungReply, ...] = Field(min_length=1, description="RM_0 first.")
    wire: int = Field(description="Wire version.")


Reply = TypeVar("Reply", bound=WireModel)


def parse_reply(kind: type[Reply], body: bytes | str) -> Reply:
    """Validate a JSON body.

    Raises:
        WireError: not JSON, or not a ``kind``; names the first field that is wrong.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise first_fault(kind.__name__, error) from None


def first_fault(where: str, error: ValidationError) -> WireError:
    """The first of pydantic's complaints as a `WireError`."""
    fault = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in fault["loc"]) or "body"
    return WireError(where, field, fault["msg"], _shortened(fault["input"]))


def _shortened(received: object, limit: int = 80) -> object:
    """What was received, cut so that a message stays one line."""
    text = repr(received)
    return received if len(text) <= limit else text[:limit] + "…"
