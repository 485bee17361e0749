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
    planes = F.interpolate(difference * GAIN, size, mode="bilinear", align_corners=False)
    planes = torch.cat([planes, torch.ones_like(planes[:, :1])], dim=1)
    return planes if known is None else planes * known[:, None, None, None].to(planes.dtype)


def no_evidence(images: torch.Tensor) -> torch.Tensor:
    """The planes of images whose LR input is not known: (N, 4, H, W) of 0."""
    return torch.zeros_like(images[:, :1]).expand(-1, EVIDENCE_PLANES, -1, -1)
