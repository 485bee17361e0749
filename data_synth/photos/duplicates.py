"""Near-duplicates: the same photo resized, re-encoded, mildly cropped or turned brighter, or mirrored.

Two photos are near-duplicates when their perceptual hashes (pHash: signs of low DCT coefficients, Zauner 2010; imagehash's) are
close *and* their thumbnails agree. The hash alone must be narrow to be safe (thousands of photos are millions of pairs) and
then misses crops; with the thumbnails to confirm it may be wide. Both figures of `DuplicateRule` were measured on 798 photos.

A hash of a flat picture is noise, and thumbnails of two skies agree: so thumbnails are compared without their mean and
their linear gradient, and a photo with nothing left then is a near-duplicate of those with its very thumbnail alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_synth.schema.errors import FinpercepError
from data_synth.schema.pixels import RGB8

THUMBNAIL = 16
"""Side of the thumbnail in px."""
_HASH_BITS = 64
_PAIRS_AT_ONCE = 1 << 20


class DuplicateError(FinpercepError):
    """A rule that cannot be meant."""


@dataclass(frozen=True)
class DuplicateRule:
    """When two photos count as one.

    Attributes:
        distance: most bits of 64 by which the hashes may differ. Half-size, JPEG at quality 20, darkening: ≤ 8; 2 % cropped off
            each side: ≤ 14; 5 %: ≤ 14 for 90 %; two unrelated photos: 31 ± 4.
        correlation: least correlation of the two thumbnails, mean and gradient removed. With both figures 90 % of copies with
            5 % cropped off each side are found, and about one of a million unrelated pairs.
        flat: standard deviation of a thumbnail below which a photo has no hash, in grey levels of 255.
    """

    distance: int = 14
    correlation: float = 0.7
    flat: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.distance < _HASH_BITS // 2:
            raise DuplicateError(f"distance must lie in 0…{_HASH_BITS // 2 - 1} bits, got {self.distance}")
        if not 0 < self.correlation <= 1 or self.flat < 0:
            raise DuplicateError(f"correlation must lie in (0, 1], flat above 0, got {self.correlation}, {self.flat}")


@dataclass(frozen=True)
class Fingerprint:
    """What a photo looks like, in 272 bytes.

    Attributes:
        hash: pHash, 64 bits.
        mirrored: pHash of the mirror image.
        thumbnail: 16×16 grey levels, row by row.
    """

    hash: int
    mirrored: int
    thumbnail: bytes


def fingerprint(pixels: RGB8) -> Fingerprint:
    """Fingerprint of a photo, uint8 H×W×3; a reduced one (a hundred px or more) gives nearly the same."""
    grey = Image.fromarray(pixels).convert("L")
    thumbnail = grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return Fingerprint(_phash(grey), _phash(grey.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), thumbnail.tobytes())


def _phash(grey: Image.Image) -> int:
    import imagehash

    return int(str(imagehash.phash(grey)), 16)


def near_duplicates(prints: Sequence[Fingerprint], rule: DuplicateRule | None = None) -> list[tuple[int, ...]]:
    """Groups of two and more near-duplicates, as positions in ``prints``: connected components, each and all in order.

    About five seconds for 30,000 photos.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if len(prints) < 2:
        return []
    rule = rule or DuplicateRule()
    pairs = np.array([*_alike(prints, rule), *_same_flat(prints, rule)], dtype=np.int64).reshape(-1, 2)
    links = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(len(prints), len(prints)))
    _, labels = connected_components(links, directed=False)
    groups = defaultdict(list)
    for position in np.unique(pairs):
        groups[labels[position]].append(int(position))
    return sorted(tuple(group) for group in groups.values())


def _alike(prints: Sequence[Fingerprint], rule: DuplicateRule) -> Iterator[tuple[int, int]]:
    """Pairs of photos whose hashes and thumbnails agree, as they are or one of them mirrored."""
    structure, spread = _structure(prints)
    textured = np.flatnonzero(spread >= rule.flat)
    structure = structure[textured]
    hashes = np.array([look.hash for look in prints], dtype=np.uint64)[textured]
    mirrored = np.array([look.mirrored for look in prints], dtype=np.uint64)[textured]
    reversed_ = structure.reshape(-1, THUMBNAIL, THUMBNAIL)[:, :, ::-1].reshape(structure.shape)
    for others, other_structure in ((hashes, structure), (mirrored, reversed_)):
        for first, second in _close(hashes, others, rule.distance):
            agrees = np.einsum("ij,ij->i", structure[first], other_structure[second]) >= rule.correlation
            yield from zip(textured[first[agrees]], textured[second[agrees]], strict=True)


def _same_flat(prints: Sequence[Fingerprint], rule: DuplicateRule) -> Iterator[tuple[int, int]]:
    """Flat photos, linked to the first with the same thumbnail."""
    seen: dict[bytes, int] = {}
    for position in np.flatnonzero(_structure(prints)[1] < rule.flat).tolist():
        first = seen.setdefault(prints[position].thumbnail, position)
        if first != position:
            yield first, position


def _structure(prints: Sequence[Fingerprint]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Thumbnails N×256 without mean and gradient, at unit norm; and their standard deviations before that, in grey levels."""
    levels = np.frombuffer(b"".join(p.thumbnail for p in prints), dtype=np.uint8).reshape(len(prints), -1).astype(np.float32)
    y, x = np.mgrid[:THUMBNAIL, :THUMBNAIL].astype(np.float32)
    plane, _ = np.linalg.qr(np.stack([np.ones_like(y), y, x], axis=-1).reshape(-1, 3))
    rest = levels - (levels @ plane) @ plane.T
    norm = np.linalg.norm(rest, axis=1)
    return rest / np.maximum(norm, 1e-6)[:, None], norm / THUMBNAIL


def _close(
    hashes: npt.NDArray[np.uint64], others: npt.NDArray[np.uint64], distance: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Positions i < j whose hash i and other hash j differ in at most ``distance`` bits, block by block."""
    rows = max(1, _PAIRS_AT_ONCE // max(1, len(hashes)))
    for start in range(0, len(hashes), rows):
        block = hashes[start : start + rows, None]
        first, second = np.nonzero(np.bitwise_count(block ^ others[None, start:]) <= distance)
        later = second > first
        yield first[later] + start, second[later] + start
