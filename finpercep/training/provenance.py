"""Where a run came from: the commands that began and continued it, and the versions they ran with.

Not part of the settings a run must be continued with: another PyTorch or another machine may go on with it, and this file tells.
"""

from __future__ import annotations

import json
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Self

from data_synth.schema.pixels import write_atomically

PROVENANCE_NAME = "provenance.json"

PACKAGES = ("finpercep", "torch", "torchvision", "diffusers", "transformers", "timm", "pyiqa", "numpy")
"""Whose versions can change what a run does."""

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")


@dataclass(frozen=True)
class Session:
    """One start of a run.

    Attributes:
        command: what was typed, as a shell would take it; user and password of a URL are left out.
        folder: where it was typed; its relative paths begin there.
        started: date and time, ISO 8601, UTC.
        versions: package → version; those that are not installed are left out.
        python: its version.
        platform: operating system and architecture.
        device: what the policy runs on.
        processes: that trained together, as ``accelerate launch`` or ``torchrun`` started them.
    """

    command: str
    folder: str
    started: str
    versions: Mapping[str, str]
    python: str
    platform: str
    device: str
    processes: int

    @classmethod
    def now(cls, arguments: Sequence[str], device: str, processes: int = 1) -> Self:
        """The session that begins now.

        Args:
            arguments: of the command line, without the program's name.
            device: what the policy runs on.
            processes: that train together.
        """
        words = ["finpercep", *(_CREDENTIALS.sub("", word) for word in arguments)]
        started = datetime.now(UTC).isoformat(timespec="seconds")
        where = f"{platform.system()} {platform.machine()}"
        command, versions = shlex.join(words), _versions()
        return cls(command, str(Path.cwd()), started, versions, platform.python_version(), where, device, processes)


def add_session(folder: Path, session: Session) -> None:
    """Add a session to those of the run in ``folder``."""
    sessions = [*read_sessions(folder), session]
    write_atomically(folder / PROVENANCE_NAME, (json.dumps([asdict(one) for one in sessions], indent=2) + "\n").encode())


def read_sessions(folder: Path) -> list[Session]:
    """All sessions of a run, the first one first; none of a run that was begun without keeping them."""
    path = folder / PROVENANCE_NAME
    return [Session(**one) for one in json.loads(path.read_text())] if path.exists() else []


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
