"""The rungs being served, by name, index and digest, and how one takes another's place. Knows nothing about HTTP.

A `ServedRung` never changes. A request looks its rung up once and keeps it, so a rung that is replaced meanwhile still finishes
what it began, and no reply mixes two.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from finpercep.checkpoint import CONFIG_NAME, LADDER_NAME
from finpercep.errors import ConfigError, FinpercepError
from finpercep.wire import WIRE_VERSION, ModelId, ModelReply, RungReply
from rm_server import canary
from rm_server.problems import Problem

if TYPE_CHECKING:
    from finpercep.predictor import Predictor

_INDEX = re.compile(r"-?[0-9]{1,3}", re.ASCII)
"""How a rung is asked for by its place."""


@dataclass(frozen=True, eq=False)
class ServedRung:
    """One rung, ready on every device.

    Attributes:
        replicas: the same rung on each device.
        expected: what the canary's score and mean degradation must be (`canary.expected_numbers`).
    """

    replicas: tuple[Predictor, ...]
    expected: tuple[float, float]

    @classmethod
    def of(cls, replicas: Sequence[Predictor]) -> ServedRung:
        """Replicas of one rung."""
        return cls(tuple(replicas), canary.expected_numbers(replicas[0]))

    def compile(self) -> None:
        """Have `torch.compile` make it quicker, when it next scores; ``expected`` stays what the trained model says."""
        for replica in self.replicas:
            replica.network.compile()

    @property
    def name(self) -> str:
        """Of its ladder; of a rung that came alone, its source."""
        return self.replicas[0].name

    @property
    def rung(self) -> str:
        """Its own name, RM_k."""
        return self.replicas[0].rung

    @property
    def digest(self) -> str:
        """Identity of weights, preprocessing and calibration."""
        return self.replicas[0].digest

    @property
    def has_map(self) -> bool:
        """Whether it has a degradation map."""
        return self.replicas[0].has_map

    @property
    def takes_lr(self) -> bool:
        """Whether it can also be shown the LR picture."""
        return self.replicas[0].takes_lr

    @property
    def min_side(self) -> int:
        """Smallest side of an image, in px."""
        return self.replicas[0].min_side

    @property
    def model_id(self) -> ModelId:
        """How replies name it."""
        return ModelId(name=self.name, rung=self.rung, digest=self.digest)


class Registry:
    """Rungs by name, RM_0 first; the last, the finest, is the default.

    Args:
        ladder: rung → its predictors, one for each device.
    """

    def __init__(self, ladder: Mapping[str, Sequence[Predictor]]) -> None:
        if not ladder:
            raise ConfigError("a server needs at least one rung, got an empty ladder")
        self._rungs = {name: ServedRung.of(replicas) for name, replicas in ladder.items()}
        self._lock = threading.Lock()

    @property
    def rungs(self) -> tuple[ServedRung, ...]:
        """As they are served now, RM_0 first."""
        return tuple(self._rungs.values())

    @property
    def default(self) -> ServedRung:
        """The rung that answers when a request names none."""
        return self.rungs[-1]

    def get(self, wanted: str | None) -> ServedRung:
        """The rung of that name, index (``0``, ``-1``) or digest; the default for None.

        Raises:
            Problem: it is not served.
        """
        rungs = self._rungs  # one reading: it may be replaced meanwhile
        if wanted is None:
            return list(rungs.values())[-1]
        if wanted in rungs:
            return rungs[wanted]
        if _INDEX.fullmatch(wanted) and -len(rungs) <= int(wanted) < len(rungs):
            return list(rungs.values())[int(wanted)]
        for rung in rungs.values():
            if rung.digest == wanted:
                return rung
        served = ", ".join(rungs)
        raise Problem(
            "not-found",
            f"unknown rung {wanted[:80]!r}; this server has {served}",
            field="rung",
            expected=f"one of {served}, its index or its digest",
            received=wanted[:80],
        )

    def replace(self, name: str, rung: ServedRung) -> None:
        """Serve ``rung`` as ``name`` from now on; a name that is new comes last."""
        with self._lock:
            self._rungs = {**self._rungs, name: rung}

    def become(self, rungs: Mapping[str, ServedRung]) -> None:
        """Serve exactly these from now on, RM_0 first: all of them at once."""
        with self._lock:
            self._rungs = dict(rungs)

    def describe(self) -> ModelReply:
        """What ``GET /model`` says."""
        served = dict(self._rungs)
        rungs = tuple(
            RungReply(name=name, digest=rung.digest, has_map=rung.has_map, takes_lr=rung.takes_lr)
            for name, rung in served.items()
        )
        default = list(served.values())[-1]
        return ModelReply(name=default.name, rung=default.rung, digest=default.digest, rungs=rungs, wire=WIRE_VERSION)


def load_rung(root: Path, source: str, rung: str, devices: Sequence[torch.device], digest: str | None = None) -> ServedRung:
    """A rung out of the model root.

    Args:
        root: folder of ladders and rungs.
        source: path in ``root`` of a ladder's folder that has the rung, or of the folder of a rung alone, which is then served by
            the name ``rung``. Each of its names is looked for among what there is; it is never opened as a path.
        rung: which.
        devices: to load it on.
        digest: that it must have.

    Raises:
        Problem: there is no such folder or rung, it cannot be read, or it has another digest.
    """
    try:
        folder = _found(root, source)
        replicas = [_loaded(folder, source, rung, device) for device in devices]
    except Problem:
        raise
    except (FinpercepError, OSError) as error:
        raise Problem("conflict", f"{source[:80]}: {error}") from error
    found = replicas[0].digest
    if digest is not None and found != digest:
        raise Problem(
            "conflict",
            f"{source}/{rung} has digest {found}, not the one that was asked for",
            field="digest",
            expected=digest[:100],
            received=found,
        )
    return ServedRung.of(replicas)


def _loaded(folder: Path, source: str, rung: str, device: torch.device) -> Predictor:
    from finpercep.predictor import Predictor, load_predictor
    from finpercep.reward_model.model import FinPercepRM

    if (folder / LADDER_NAME).is_file():
        return load_predictor(folder, rung, device)
    model = FinPercepRM.load(folder)
    assert model.digest is not None  # it was read from disk
    return Predictor(model, name=source, rung=rung, digest=model.digest, device=device)


def _found(root: Path, source: str) -> Path:
    """The folder of a source. Raises `Problem`."""
    folder: Path | None = root
    for name in source.split("/"):
        folder = None if folder is None else next((one for one in _folders(folder) if one.name == name), None)
    if folder is None or not _is_source(folder):
        there = [f"{one.name}{'' if _is_source(one) else '/'}" for one in _folders(root)]
        raise Problem(
            "not-found",
            f"the model root has no ladder or rung {source[:80]!r}; it has {', '.join(sorted(there)[:20]) or 'nothing'}",
            field="source",
            expected=f"a folder with a {LADDER_NAME} or a {CONFIG_NAME}",
            received=source[:80],
        )
    return folder


def _is_source(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (LADDER_NAME, CONFIG_NAME))


def _folders(folder: Path) -> list[Path]:
    return [one for one in folder.iterdir() if one.is_dir()]
