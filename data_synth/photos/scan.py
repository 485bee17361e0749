"""Every photo looked at once, before a build: which can be used, which are near-duplicates.

What was found is kept in a JSON file by name, size and time of change, so that going on with a build costs no decoding. A photo
that could not be read is not kept: it is tried again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_synth.photos.duplicates import DuplicateRule, Fingerprint, fingerprint, near_duplicates
from data_synth.photos.photo import Photo, PhotoError, too_small
from data_synth.schema.errors import ImageError
from data_synth.schema.pixels import decode_reduced, quiet_metadata, write_atomically

_CACHE_VERSION = 2
_SAVE_EVERY = 15.0
"""Seconds between savings: what an interruption costs at most."""
_REDUCED_SIDE = 192
"""Longer side fingerprints are taken at, in px."""


@dataclass(frozen=True)
class PhotoScan:
    """What a scan found.

    Attributes:
        usable: photos that can be read and are large enough, in the order given.
        left_out: one message for each of the others, naming it and what is wrong.
        groups: source ids of usable near-duplicates, two and more to a group; for `split_photos`.
        contents: digest of each usable photo as it is stored, in their order: what tells whether it is still the same photo.
    """

    usable: tuple[Photo, ...]
    left_out: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    contents: tuple[str, ...]


@dataclass(frozen=True)
class _Finding:
    """One readable photo: ``stamp`` says cheaply which state of it was looked at, ``content`` surely; size is (height, width)."""

    stamp: str
    content: str
    size: tuple[int, int]
    print: Fingerprint


def scan_photos(
    photos: Sequence[Photo],
    *,
    min_side: int,
    workers: int = 2,
    cache_file: Path | None = None,
    on_scanned: Callable[[int], None] | None = None,
    strict: bool = False,
    rule: DuplicateRule | None = None,
) -> PhotoScan:
    """Decode every photo once, in threads.

    Args:
        photos: of all sources; names must be unique.
        min_side: least height and width of a usable photo, in px.
        workers: threads; the result does not depend on them.
        cache_file: where findings are kept between runs; None: nowhere.
        on_scanned: told after each photo how many are done.
        strict: the first photo that cannot be used is an error.
        rule: what counts as a near-duplicate.

    Raises:
        PhotoError: two photos of one name, or none can be used.
        ImageError: ``strict``, and a photo cannot be used.
    """
    if len({photo.source_id for photo in photos}) < len(photos):
        raise PhotoError("photos must have names of their own, got the same name twice; combine sources with gather()")
    usable: list[Photo] = []
    prints: list[Fingerprint] = []
    contents: list[str] = []
    left_out: list[str] = []
    kept = _Cache(cache_file)
    try:
        with closing(_findings(photos, kept.findings, workers)) as findings:
            for done, (photo, found) in enumerate(findings, start=1):
                refusal = found if isinstance(found, ImageError) else too_small(photo, found.size, min_side)
                if isinstance(found, _Finding):
                    kept.add(photo, found)
                    if refusal is None:
                        usable.append(photo)
                        prints.append(found.print)
                        contents.append(found.content)
                if refusal is not None:
                    if strict:
                        raise ImageError(f"{refusal}; remove it, or do without strict") from refusal
                    left_out.append(str(refusal))
                if on_scanned:
                    on_scanned(done)
    finally:
        kept.save()
    if not usable:
        raise PhotoError(
            f"none of {len(photos)} photos can be used ({left_out[0] if left_out else 'there are none'}); add photos"
        )
    groups = tuple(tuple(sorted(usable[i].source_id for i in group)) for group in near_duplicates(prints, rule))
    return PhotoScan(tuple(usable), tuple(left_out), tuple(sorted(groups)), tuple(contents))


def _findings(
    photos: Sequence[Photo], known: Mapping[str, _Finding], workers: int
) -> Generator[tuple[Photo, _Finding | ImageError]]:
    """Findings in the order of the photos; a few are under way at any time, so that stopping early stops soon."""
    with quiet_metadata(), ThreadPoolExecutor(workers) as pool:
        under_way: deque[tuple[Photo, Future[_Finding | ImageError]]] = deque()
        try:
            for photo in photos:
                under_way.append((photo, pool.submit(_look_at, photo, known.get(photo.source_id))))
                if len(under_way) > 4 * workers:
                    first, future = under_way.popleft()
                    yield first, future.result()
            for first, future in under_way:
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _look_at(photo: Photo, known: _Finding | None) -> _Finding | ImageError:
    try:
        if photo.path is None and photo.row is None:
            pixels = photo.read()
            return _Finding("packaged", _digest(pixels.tobytes()), pixels.shape[:2], fingerprint(pixels))
        source = photo.path or (photo.row.encoded() if photo.row else b"")
        stamp = _stamp(source)
        if known and known.stamp == stamp:
            return known
        reduced, size = decode_reduced(source, _REDUCED_SIDE, name=str(photo.path or photo.source_id))
        return _Finding(stamp, _digest(source), size, fingerprint(reduced))
    except ImageError as error:
        return error


def _stamp(source: Path | bytes) -> str:
    """Size and time of change of a file, digest of encoded bytes: what is cheap to have."""
    if isinstance(source, bytes):
        return _digest(source)
    try:
        status = source.stat()
    except OSError as error:
        raise ImageError(f"{source}: {error.strerror}") from error
    return f"{status.st_size}:{status.st_mtime_ns}"


def _digest(source: Path | bytes) -> str:
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
    except OSError as error:
        raise ImageError(f"{source!s}: {error.strerror}") from error
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class _Cache:
    """Findings by source id, of this run and earlier ones; saved now and then."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.findings = _load(file) if file else {}
        self._saved_at, self._changed = time.monotonic(), False

    def add(self, photo: Photo, finding: _Finding) -> None:
        if self.findings.get(photo.source_id) == finding:
            return
        self.findings[photo.source_id] = finding
        self._changed = True
        if time.monotonic() - self._saved_at > _SAVE_EVERY:
            self.save()

    def save(self) -> None:
        if self.file is None or not self._changed:
            return
        records = {name: _to_json(finding) for name, finding in sorted(self.findings.items())}
        write_atomically(self.file, json.dumps({"version": _CACHE_VERSION, "photos": records}, indent=0).encode())
        self._saved_at, self._changed = time.monotonic(), False


def _load(file: Path) -> dict[str, _Finding]:
    """Findings of an earlier run; none when the file is absent, damaged or of another version, for it can be made again."""
    try:
        content = json.loads(file.read_bytes())
        if content["version"] != _CACHE_VERSION:
            return {}
        return {name: _from_json(record) for name, record in content["photos"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _to_json(finding: _Finding) -> list[Any]:
    look = finding.print
    return [
        finding.stamp,
        finding.content,
        *finding.size,
        f"{look.hash:016x}",
        f"{look.mirrored:016x}",
        base64.b64encode(look.thumbnail).decode(),
    ]


def _from_json(record: list[Any]) -> _Finding:
    stamp, content, height, width, hash_, mirrored, thumbnail = record
    return _Finding(
        stamp,
        content,
        (height, width),
        Fingerprint(int(hash_, 16), int(mirrored, 16), base64.b64decode(thumbnail, validate=True)),
    )
