"""What the effects are built from: smoothing, random fields, displacement, local orientation, local strength.

Images are H×W×3 float32, fields H×W float32; lengths in px. Displacement runs on PyTorch (bicubic `grid_sample` is several times
faster than a spline of SciPy's). So does the interpolation of coarse grids, whose last bits depend on whether PyTorch runs on one
thread or several: a build runs everything on one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch.nn import functional as F

from data_synth.images import Field, FloatImage, luma

Array = npt.NDArray[np.float32]
"""H×W or H×W×C float32."""


def smooth(image: Array, sigma: float) -> Array:
    """Gaussian blur over the first two axes, ``sigma`` in px; 3σ support."""
    sigmas = (sigma, sigma, 0.0)[: image.ndim]
    smoothed: Array = ndimage.gaussian_filter(image, sigmas, mode="reflect", truncate=3.0)
    return smoothed


def smooth_coarsely(image: Array, sigma: float) -> Array:
    """About `smooth` for a wide ``sigma``, several times faster: box means on a grid of σ/2, blurred and interpolated."""
    step = max(1, min(int(sigma / 2), min(image.shape[:2]) // 4))
    if step == 1:
        return smooth(image, sigma)
    tensor = _tensor(image)
    height, width = image.shape[:2]
    padded = F.pad(tensor, (0, -width % step, 0, -height % step), mode="replicate")
    coarse = smooth(_array(F.avg_pool2d(padded, step), image.ndim), sigma / step)
    fine = F.interpolate(_tensor(coarse), padded.shape[-2:], mode="bilinear", align_corners=False)
    return _array(fine[..., :height, :width], image.ndim)


def noise_field(rng: np.random.Generator, shape: tuple[int, ...], correlation: float) -> Field:
    """Zero-mean, unit-variance smooth noise of correlation length ``correlation`` px (0: white).

    Long correlations are made on a coarse grid and interpolated: a wide Gaussian costs more and looks the same.
    """
    step = max(1, int(correlation / 3))
    height, width = (-(-side // step) + 3 for side in shape)
    field = rng.standard_normal((height, width), dtype=np.float32)
    if correlation > 0:
        field = smooth(field, correlation / step)
    if step > 1:
        rows, columns = (np.arange(side, dtype=np.float32) / step + 1 for side in shape)
        field = ndimage.map_coordinates(field, np.meshgrid(rows, columns, indexing="ij"), order=1, mode="reflect")
    else:
        field = field[: shape[0], : shape[1]]
    field = field - field.mean()
    return (field / (field.std() + 1e-8)).astype(np.float32)


def displacement_field(rng: np.random.Generator, shape: tuple[int, ...], correlation: float, distance: float) -> Array:
    """Random shifts (rows, columns), 2×H×W in px: r.m.s. length ``distance``, varying over ``correlation`` px."""
    fields = np.stack([noise_field(rng, shape, correlation) for _ in range(2)])
    return fields * np.float32(distance / np.sqrt(2))


def displace(image: Array, shift: Array) -> Array:
    """Read ``image`` at each pixel's place plus ``shift`` (2×H×W: rows, columns, px), bicubic, mirrored at the borders."""
    height, width = image.shape[:2]
    rows = torch.arange(height, dtype=torch.float32)[:, None] + torch.from_numpy(np.ascontiguousarray(shift[0]))
    columns = torch.arange(width, dtype=torch.float32)[None, :] + torch.from_numpy(np.ascontiguousarray(shift[1]))
    return _array(_read(_tensor(image), rows, columns, "bicubic"), image.ndim)


@dataclass(frozen=True)
class Orientation:
    """Local direction of structure.

    Attributes:
        tangent: 2×H×W float32 (rows, columns), unit length, along edges and hairs; its sign is arbitrary.
        coherence: H×W in [0, 1], 0 = no preferred direction, 1 = all gradients parallel.
    """

    tangent: Array
    coherence: Field


def orientation(grey: Field, inner: float, outer: float) -> Orientation:
    """Structure tensor (Förstner and Gülch, 1987): gradients at scale ``inner`` px, averaged over ``outer`` px."""
    gradient: Array = np.asarray(np.gradient(smooth(grey, inner)), dtype=np.float32)
    down, right = gradient
    yy, xx, xy = (smooth_coarsely(product, outer) for product in (*gradient**2, down * right))
    across = 0.5 * np.arctan2(2 * xy, xx - yy)  # direction of the strongest change
    coherence = np.hypot(xx - yy, 2 * xy) / (xx + yy + np.float32(1e-7))
    tangent = np.stack([np.cos(across), -np.sin(across)]).astype(np.float32)
    return Orientation(tangent, coherence.astype(np.float32))


def along_flow(image: Array, tangent: Array, length: float, *, step: float = 1.0) -> Array:
    """Line integral convolution (Cabral and Leedom, 1993): Gaussian mean of ``length`` px (σ) along the curves of ``tangent``.

    Follows the curve ``2·length`` px either way in steps of ``step`` px; the tangent's sign is made continuous on the way.
    """
    source, directions = _tensor(image), torch.from_numpy(tangent)[None]
    height, width = image.shape[:2]
    total, weights = source.clone(), 1.0
    start = torch.meshgrid(torch.arange(height, dtype=torch.float32), torch.arange(width, dtype=torch.float32), indexing="ij")
    for sign in (1.0, -1.0):
        rows, columns = start
        heading = sign * directions
        for number in range(1, round(2 * length / step) + 1):
            rows, columns = rows + step * heading[0, 0], columns + step * heading[0, 1]
            weight = float(np.exp(-0.5 * (number * step / length) ** 2))
            total, weights = total + weight * _read(source, rows, columns, "bilinear"), weights + weight
            ahead = _read(directions, rows, columns, "nearest")
            heading = torch.where((ahead * heading).sum(1, keepdim=True) < 0, -ahead, ahead)
    return _array(total / weights, image.ndim)


def crispen(image: FloatImage, *, scale: float, reach: float) -> FloatImage:
    """Make edges steep without overshoot: a shock filter (Osher and Rudin, 1990) in warped form.

    Each pixel beside an edge takes the colour ``reach`` px further from it, on its own side; the side is the sign of the second
    derivative along the gradient at ``scale`` px.
    """
    down, right = np.gradient(smooth(luma(image), scale))
    (dd, dr), (_, rr) = np.gradient(down), np.gradient(right)
    steepness = np.sqrt(down * down + right * right) + np.float32(1e-6)
    curvature = (down * down * dd + 2 * down * right * dr + right * right * rr) / (steepness * steepness)
    side = np.tanh(np.float32(2 * scale) * curvature / (steepness + np.float32(2e-3)))
    shift = -np.float32(reach) * np.stack([down, right]) / steepness * side
    return displace(image, shift)


def strength(band: Array, sigma: float = 3.0) -> Field:
    """Local r.m.s. of a band over ``sigma`` px, channels together: H×W."""
    energy = band * band if band.ndim == 2 else np.einsum("ijc,ijc->ij", band, band) / np.float32(band.shape[2])
    return np.sqrt(np.maximum(smooth_coarsely(energy, sigma), 0))


def texture_share(high: Array, *, reach: int = 5) -> Field:
    """How much of a high band is texture, H×W in [0, 1]: 1 inside detailed areas, 0 at lone edges and silhouettes.

    The local strength, eroded by ``reach`` px, against itself: beside a lone edge it falls to nothing. What stands there is left
    alone by effects that replace detail, as SR models keep strong contours, and as a false edge in a clear sky fools nobody.
    """
    here = strength(high, 2.0)
    eroded = ndimage.minimum_filter1d(ndimage.minimum_filter1d(here, 2 * reach + 1, axis=0), 2 * reach + 1, axis=1)
    share: Field = smooth(np.clip(2.2 * eroded / (here + np.float32(1e-4)) - 0.2, 0, 1).astype(np.float32), 1.5)
    return share


def with_strength_of(band: Array, reference: Field, sigma: float = 3.0, limit: float = 2.0) -> Array:
    """``band`` rescaled pixel by pixel so that its `strength` is about ``reference``; gains stay within 0.1 … ``limit``."""
    gain = np.clip((reference + np.float32(1e-3)) / (strength(band, sigma) + np.float32(1e-3)), 0.1, limit)
    return band * (gain if band.ndim == 2 else gain[..., None])


def coloured_like(pattern: Field, band: FloatImage) -> FloatImage:
    """A grey pattern at the local strength of ``band`` and in the colours along which it varies (regression on its own luma)."""
    own = luma(band)
    energy = smooth_coarsely(own * own, 4.0) + np.float32(1e-5)
    direction = smooth_coarsely(band * own[..., None], 4.0) / energy[..., None]
    grey = with_strength_of(pattern, np.sqrt(energy), limit=1e3)
    return grey[..., None] * np.clip(direction, -3, 3)


def local_energy(image: FloatImage) -> Field:
    """Where the image has detail: smoothed gradient magnitude, 0.15 in flat regions, about 1 in textured ones."""
    grey = luma(image)
    magnitude = np.hypot(ndimage.sobel(grey, 0, mode="reflect"), ndimage.sobel(grey, 1, mode="reflect")) / 8
    blurred = smooth(magnitude, 3.0)
    return (0.15 + 0.85 * blurred / (blurred + 0.03)).astype(np.float32)


def _read(source: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, mode: str) -> torch.Tensor:
    """Values of 1×C×H×W at H×W positions in px."""
    height, width = source.shape[-2:]
    grid = torch.stack([columns * (2 / (width - 1)) - 1, rows * (2 / (height - 1)) - 1], dim=-1)[None]
    return F.grid_sample(source, grid, mode=mode, padding_mode="reflection", align_corners=True)


def _tensor(image: Array) -> torch.Tensor:
    planes = image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0)
    return torch.from_numpy(np.ascontiguousarray(planes, dtype=np.float32))[None]


def _array(tensor: torch.Tensor, ndim: int) -> Array:
    array: Array = tensor[0, 0].numpy() if ndim == 2 else tensor[0].permute(1, 2, 0).contiguous().numpy()
    return array
