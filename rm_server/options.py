"""The options of ``POST /score`` for pictures: its query parameters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from finpercep.regions import DEFAULT_MIN_AREA, DEFAULT_THRESHOLD
from finpercep.reward import LARGEST_WEIGHT, RewardWeights

DEFAULTS = RewardWeights()
Weight = Annotated[float, Field(ge=0, le=LARGEST_WEIGHT)]
MapKind = Literal["none", "png", "heatmap", "overlay", "raw"]


class ScoreOptions(BaseModel):
    """Query parameters for pictures; a safetensors message carries its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rung: str | None = Field(
        default=None, description="Rung by name, index or digest; the finest when absent.", examples=["RM_1"], max_length=200
    )
    map: MapKind = Field(
        "none",
        description="The map in base64: png (16-bit grey, 65535 = 1.0), heatmap, overlay (PNG both), or raw (a safetensors file "
        "with one float32 tensor, map).",
    )
    map_size: int | None = Field(
        default=None, ge=8, le=8192, description="Longer side of the map, in px; the image's own when absent."
    )
    regions: bool = Field(True, description="Whether the connected degraded regions are wanted.")
    region_threshold: float = Field(DEFAULT_THRESHOLD, gt=0, le=1, description="Degradation from which a pixel counts.")
    region_min_area: int = Field(DEFAULT_MIN_AREA, ge=1, description="Smaller regions are left out; in px.")
    w_score: Weight = Field(DEFAULTS.score, description="Weight of the score in the reward.")
    w_max: Weight = Field(DEFAULTS.max, description="Weight of 1 − max_degradation in the reward.")
    w_mean: Weight = Field(DEFAULTS.mean, description="Weight of 1 − mean_degradation in the reward.")
    top_fraction: float = Field(DEFAULTS.top_fraction, gt=0, le=1, description="Share of pixels whose mean is max_degradation.")

    @property
    def weights(self) -> RewardWeights:
        """The reward's weights."""
        return RewardWeights(self.w_score, self.w_max, self.w_mean, self.top_fraction)

    @property
    def map_side(self) -> int:
        """Longer side of the map that is sent, in px, if it is said; 0 otherwise."""
        return 0 if self.map == "none" else self.map_size or 0

    @property
    def needs_map(self) -> bool:
        """Whether anything in the reply is made from the whole map."""
        return self.regions or self.map != "none"
