"""Encoded pictures → JSON items: decode, assess, encode the map. Knows nothing about HTTP or threads."""

from __future__ import annotations

import base64
import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, assert_never

import numpy as np
import numpy.typing as npt

from data_synth.schema.pixels import RGB8, decode_rgb, encode_png
from finpercep.errors import FinpercepError, ImageError
from finpercep.heatmap import heat_colours, map_samples, overlay
from finpercep.local_reward import side_fault
from finpercep.reward import RewardWeights
from finpercep.wire import ItemReply, RegionReply
from rm_server.refusal import SERVER_FAULT, UNPROCESSABLE, Refusal

if TYPE_CHECKING:
    from finpercep.predictor import Assessment, Predictor

MapKind = Literal["none", "png", "heatmap", "overlay"]
Outcome = ItemReply | Refusal

log = logging.getLogger(__name__)


def decode_picture(body: bytes, max_pixels: int) -> RGB8 | Refusal:
    """Pixels of one picture, or why it has none."""
    try:
        return decode_rgb(body, max_pixels=max_pixels)
    except ImageError as error:
        return Refusal(UNPROCESSABLE, str(error))


def assess_pictures(
    predictor: Predictor, pictures: Sequence[RGB8 | Refusal], weights: RewardWeights, kind: MapKind
) -> list[Outcome]:
    """One outcome a picture; a picture that fails leaves its neighbours alone."""
    return [one if isinstance(one, Refusal) else _assess(predictor, one, weights, kind) for one in pictures]


def as_item(outcome: Outcome) -> ItemReply:
    """An outcome in a batch's reply: a refusal is its sentence and nulls."""
    return ItemReply(error=str(outcome)) if isinstance(outcome, Refusal) else outcome


def _assess(predictor: Predictor, pixels: RGB8, weights: RewardWeights, kind: MapKind) -> Outcome:
    if fault := side_fault(pixels.shape[0], pixels.shape[1], predictor.min_side):
        return Refusal(UNPROCESSABLE, fault)
    try:
        return _item(predictor, predictor.assess(pixels, weights), pixels, kind)
    except FinpercepError as error:
        return Refusal(UNPROCESSABLE, str(error))
    except Exception:  # one picture that breaks the model must not take its neighbours' results
        log.exception("%s failed on a picture of %s", predictor.rung, pixels.shape)
        return model_failed(predictor)


def model_failed(predictor: Predictor) -> Refusal:
    """The model raised an error of its own; the log has it."""
    return Refusal(SERVER_FAULT, f"{predictor.rung} failed on this image; the server's log says why")


def not_finite(predictor: Predictor) -> Refusal:
    """The model's result is no number; an error, never a number."""
    return Refusal(SERVER_FAULT, f"{predictor.rung} (digest {predictor.digest}) gave a result that is not finite")


def _item(predictor: Predictor, assessment: Assessment, pixels: RGB8, kind: MapKind) -> Outcome:
    numbers = (assessment.score, assessment.reward, assessment.max_degradation, assessment.mean_degradation)
    degradation = None if assessment.map is None else assessment.map.detach().cpu().numpy()
    if not all(number is None or math.isfinite(number) for number in numbers):
        return not_finite(predictor)
    if degradation is not None and not np.isfinite(degradation).all():
        return not_finite(predictor)
    regions = tuple(RegionReply(**dataclasses.asdict(region)) for region in assessment.regions)
    return ItemReply(
        score=assessment.score,
        reward=assessment.reward,
        max_degradation=assessment.max_degradation,
        mean_degradation=assessment.mean_degradation,
        regions=None if degradation is None else regions,
        map=None if degradation is None else _picture_of(degradation, pixels, kind),
    )


def _picture_of(degradation: npt.NDArray[np.float32], pixels: RGB8, kind: MapKind) -> str | None:
    """The map as base64 PNG of the picture's size."""
    match kind:
        case "none":
            return None
        case "png":
            png = encode_png(map_samples(degradation))
        case "heatmap":
            png = encode_png(heat_colours(degradation))
        case "overlay":
            png = encode_png(overlay(pixels, degradation))
        case _:
            assert_never(kind)
    return base64.b64encode(png).decode("ascii")
