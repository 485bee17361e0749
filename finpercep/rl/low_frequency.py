"""The low-frequency constraint of RFSR (arXiv 2412.03268; method §6): what an early step predicts has the photo's structure.

The authors take the low-pass band of a 3-level dual-tree complex wavelet transform (``near_sym_b``/``qshift_b``). Its libraries
need a NumPy or a setuptools of years ago, so the band is built from PyWavelets' filters, in the same form: an exact linear map
A x Bᵀ of each plane, a coefficient every 4 px, and the gain of 4 on a constant that theirs has. Two phases of a ``sym8``
transform, 4 px apart, stand for the two trees. The frequency response differs from the authors' by at most 0.05.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pywt
import torch

WAVELET = "sym8"
LEVELS = 3
_PHASE = 2**LEVELS // 2  # px between the two phases: half a coarsest step
_GAIN = 2.0 / np.sqrt(2.0) ** LEVELS


def decompose(columns: np.ndarray) -> np.ndarray:
    """The low-pass band of every column, `LEVELS` levels deep, with symmetric borders."""
    for _ in range(LEVELS):
        columns, _ = pywt.dwt(columns, WAVELET, mode="symmetric", axis=0)
    return columns


@lru_cache(maxsize=32)
def low_pass_matrix(side: int) -> torch.Tensor:
    """A: float32 (m, side), the low-pass band of a line of ``side`` px; each row sums to 2 away from the borders."""
    identity = np.eye(side)
    moved = np.pad(identity, ((_PHASE, 0), (0, 0)), mode="symmetric")
    return torch.from_numpy(_GAIN * np.concatenate([decompose(identity), decompose(moved)])).float()


def low_band(images: torch.Tensor) -> torch.Tensor:
    """A x Bᵀ of each plane: (N, C, H, W) → (N, C, m_H, m_W), linear and differentiable."""
    rows, columns = (low_pass_matrix(side).to(images) for side in images.shape[-2:])
    return rows @ images @ columns.T


def low_frequency_distance(images: torch.Tensor, photos: torch.Tensor) -> torch.Tensor:
    """L_dwt_ll: mean L1 between the low-pass bands of two batches (N, 3, H, W); a scalar, 0 where they agree."""
    return low_band(images - photos).abs().mean()
