"""What an image's low-resolution input says of it: the planes that the encoder sees beside RGB (beyond the paper).

A super-resolved image is a guess; its LR input is what is known. `lr_evidence` brings the image down to the LR picture's size and
hands on the signed difference, so that hallucination that contradicts the input shows. The difference alone also shows the LR
picture's own noise and compression; telling the two apart, and seeing faults that agree with the input, is left to the network.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

EVIDENCE_PLANES = 4
"""Three colours of down(image) − lr, and one plane that is 1 where they are known."""

GAIN = 8.0
"""Brings typical differences (a few hundredths) to the size of normalised RGB."""


def lr_difference(images: torch.Tensor, lr: torch.Tensor) -> torch.Tensor:
    """down(image) − lr at the LR picture's size.

    Args:
        images: (N, 3, H, W) float RGB in [0, 1].
        lr: (N, 3, h, w) the same, h ≤ H and w ≤ W: what the images were made from.

    Returns:
        (N, 3, h, w) in [−1, 1], signed; the image is brought down bicubically with antialiasing.
    """
    small = F.interpolate(images.float(), lr.shape[-2:], mode="bicubic", antialias=True, align_corners=False)
    return small.clamp(0, 1) - lr.float()


def lr_evidence(difference: torch.Tensor, known: torch.Tensor | None, size: tuple[int, int]) -> torch.Tensor:
    """The planes for the encoder.

    Args:
        difference: (N, 3, h, w) of `lr_difference`.
        known: (N,) bool, the images whose difference may be seen; None: all.
        size: (H, W) of the images.

    Returns:
        (N, 4, H, W): the difference times `GAIN`, brought up bilinearly, then 1; all 0 for an image that is not ``known``.
    """
    planes = _flagged(F.interpolate(difference, size, mode="bilinear", align_corners=False))
    return planes if known is None else planes * known[:, None, None, None].to(planes.dtype)


def lr_evidence_in(difference: torch.Tensor, size: tuple[int, int], window: tuple[int, int, int, int]) -> torch.Tensor:
    """The part of `lr_evidence` inside ``window`` (top, bottom, left, right), without the rest."""
    top, bottom, left, right = window
    rows = _bring_up(difference, size[0], range(top, bottom), dim=2)
    return _flagged(_bring_up(rows, size[1], range(left, right), dim=3))


def _bring_up(planes: torch.Tensor, length: int, positions: range, dim: int) -> torch.Tensor:
    """Linear interpolation along one axis to ``length``, at some positions: `F.interpolate` without aligned corners."""
    low = planes.shape[dim]
    places = torch.arange(positions.start, positions.stop, device=planes.device, dtype=torch.float64)
    places = ((places + 0.5) * (low / length) - 0.5).clamp_min(0)
    first = places.long()
    shape = [-1 if axis == dim else 1 for axis in range(planes.ndim)]
    share = (places - first).to(planes.dtype).view(shape)
    second = (first + 1).clamp_max(low - 1)
    return torch.lerp(planes.index_select(dim, first), planes.index_select(dim, second), share)


def _flagged(difference: torch.Tensor) -> torch.Tensor:
    return torch.cat([difference * GAIN, torch.ones_like(difference[:, :1])], dim=1)


def no_evidence(images: torch.Tensor) -> torch.Tensor:
    """The planes of images whose LR input is not known: (N, 4, H, W) of 0."""
    return torch.zeros_like(images[:, :1]).expand(-1, EVIDENCE_PLANES, -1, -1)
