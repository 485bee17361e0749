"""Segments: parts of a picture that belong together, for masks with the outlines of things.

Three makers: SLIC superpixels and graph segments (scikit-image, of any picture, fast), and a `Segmenter`, a segmentation model
behind a small protocol; `SamSegmenter` is any SAM checkpoint (Kirillov et al., 2023). Knows nothing about areas and masks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data_synth.device import resolve_device
from data_synth.images import FloatImage
from data_synth.library_errors import first_line
from data_synth.schema.errors import FinpercepError
from data_synth.schema.pixels import RGB8

Labels = npt.NDArray[np.int64]
"""H×W: the segment each pixel belongs to, 0 … K − 1."""
Segments = npt.NDArray[np.bool_]
"""K×H×W: segments that may overlap and need not cover the picture; K may be 0."""

_WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth"})


class SegmenterError(FinpercepError):
    """A segmentation model that is missing, cannot be loaded, or returns something else than segments."""


class Segmenter(Protocol):
    """Picture in, segments out, the same for the same picture. Picklable: worker processes load what they need themselves."""

    @property
    def name(self) -> str:
        """What the data set's card calls it."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever its output would, for instance a digest of its weights."""
        ...

    def __call__(self, photo: RGB8) -> Segments:
        """Segments bool K×H×W of ``photo``, uint8 H×W×3; K may be 0. Meant for crops: K full-size masks take memory."""
        ...


@dataclass(frozen=True)
class SamSegmenter:
    """Any SAM checkpoint, through the mask-generation pipeline of transformers. Loaded when first used, once a process.

    Attributes:
        model: repository on the hub, or a folder with weights, config and preprocessor.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        points: points a side of the grid that prompts it; 16 finds what matters in a crop of 256 px.
        iou, stability: least predicted IoU and stability of a segment; SAM's own defaults.
    """

    model: str
    device: str = "auto"
    points: int = 16
    iou: float = 0.88
    stability: float = 0.95

    @property
    def name(self) -> str:
        """``sam:`` and the repository, or the folder's own name."""
        return f"sam:{Path(self.model).resolve().name if Path(self.model).exists() else self.model}"

    @cached_property
    def version(self) -> str:
        """The hub's commit, or a digest of the folder's files, and the settings.

        Raises:
            SegmenterError: the checkpoint cannot be loaded.
        """
        folder = Path(self.model)
        weights = _digest(folder) if folder.is_dir() else getattr(self._pipeline.model.config, "_commit_hash", None)
        if not weights:
            raise SegmenterError(f"segmenter {self.model}: its version cannot be told; download it to a folder and name that")
        return f"{weights[:16]} points={self.points} iou={self.iou} stability={self.stability}"

    def __call__(self, photo: RGB8) -> Segments:
        """Segments bool K×H×W of ``photo``, best first.

        Raises:
            SegmenterError: the checkpoint cannot be loaded, or does not return masks of the photo's size.
        """
        from PIL import Image

        settings = {"points_per_crop": self.points, "pred_iou_thresh": self.iou, "stability_score_thresh": self.stability}
        found = self._pipeline(Image.fromarray(photo), points_per_batch=64, **settings)["masks"]
        masks = [np.asarray(mask, dtype=bool) for mask in found]
        if any(mask.shape != photo.shape[:2] for mask in masks):
            raise SegmenterError(
                f"segmenter {self.model}: masks must be {photo.shape[:2]}, got {masks[0].shape}; is it a SAM checkpoint?"
            )
        return np.stack(masks) if masks else np.zeros((0, *photo.shape[:2]), dtype=bool)

    @cached_property
    def _pipeline(self) -> Any:
        try:
            from transformers import pipeline

            return pipeline("mask-generation", model=self.model, device=resolve_device(self.device))
        except ImportError as error:
            raise SegmenterError("segmentation models need transformers: pip install 'finpercep[train]'") from error
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise SegmenterError(
                f"segmenter {self.model}: no SAM checkpoint could be loaded ({first_line(error)}); check the name or path, "
                "or download it where there is a network"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        """The settings alone: what is loaded stays in its process."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def _digest(folder: Path) -> str:
    """Of the folder's weights and settings."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json" or path.suffix in _WEIGHT_SUFFIXES:
            digest.update(f"{path.name}:{path.stat().st_size}:".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def superpixels(photo: FloatImage, count: int) -> Labels:
    """About ``count`` SLIC superpixels of ``photo`` (Achanta et al., 2012), H×W×3 float32 in [0, 1]."""
    from skimage.segmentation import slic

    labels: Labels = slic(photo, n_segments=count, compactness=8.0, start_label=0, channel_axis=-1, max_num_iter=5)
    return labels


def graph_segments(photo: FloatImage, scale: float, min_size: int) -> Labels:
    """Segments of a region-merging graph (Felzenszwalb and Huttenlocher, 2004) of ``photo``, H×W×3 float32 in [0, 1].

    They follow outlines further than superpixels do and differ widely in size. ``scale``: larger, larger segments;
    ``min_size``: their least size in px.
    """
    from skimage.segmentation import felzenszwalb

    labels: Labels = felzenszwalb(photo, scale=scale, sigma=0.8, min_size=min_size, channel_axis=-1)
    return labels
