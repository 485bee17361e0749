"""A rung that a run has trained takes the place of the one that its reward is read from: in this process, or on servers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from finpercep.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from finpercep.client import RewardClient
    from finpercep.local_reward import LocalSource
    from finpercep.rl.world import World

RECORD_NAME = "refresh.json"
"""In the folder of a refresh: what came of it. A folder with one is complete."""


class Publisher(Protocol):
    """Has the reward's source serve another model."""

    def publish(self, rung: str, ladder: Path, digest: str) -> None:
        """Serve ``rung`` of ``ladder``, whose digest it is, from now on; nothing happens where it is served already."""
        ...


class LocalPublisher:
    """`Publisher` to a reward in this process."""

    def __init__(self, source: LocalSource, device: torch.device | str) -> None:
        self._source, self._device = source, device

    def publish(self, rung: str, ladder: Path, digest: str) -> None:  # noqa: ARG002
        """See `Publisher`."""
        from finpercep.predictor import load_predictor

        self._source.replace(rung, load_predictor(ladder, rung, self._device))


class ServedPublisher:
    """`Publisher` to servers that load ladders from a folder which this machine sees too.

    Args:
        client: of the servers.
        model_root: their ``--model-root``.
        admin_token: theirs.
        world: the processes that train together.
    """

    def __init__(self, client: RewardClient, model_root: Path, admin_token: str, world: World) -> None:
        self._client, self._root, self._admin_token, self._world = client, model_root, admin_token, world

    def publish(self, rung: str, ladder: Path, digest: str) -> None:
        """See `Publisher`. Raises `RewardRejected` where a server does not take it."""
        name = f"{ladder.parent.name}-{digest.rpartition(':')[2][:12]}"
        self._world.from_main(partial(copy_folder, ladder, self._root / name, "ladder.json"))
        self._client.put_rung(rung, name, admin_token=self._admin_token, digest=digest)


@dataclass(frozen=True)
class ServerAccess:
    """What it takes to have servers serve another rung: their model root as this machine sees it, and their admin token."""

    model_root: Path
    admin_token: str


def ladder_behind(served: Mapping[str, str], candidates: Sequence[Path]) -> Path:
    """The ladder among ``candidates`` whose rungs have the digests that are served, by rung.

    Raises:
        ConfigError: there is none.
    """
    from finpercep.checkpoint import read_ladder
    from finpercep.errors import FinpercepError

    for folder in candidates:
        try:
            found = {entry.rung: entry.digest for entry in read_ladder(folder).rungs}
        except FinpercepError:
            continue
        if found == dict(served):
            return folder
    raise ConfigError(
        f"--refresh needs the ladder behind the reward, {', '.join(served)}; none of {', '.join(map(str, candidates))} is it"
    )


def unrefreshed(folder: Path, served: Mapping[str, str]) -> dict[str, str]:
    """``served``, rung → digest, as it was before the refreshes in ``folder``: what the run began with."""
    before = {}
    for path in folder.glob(f"*/{RECORD_NAME}"):
        record = json.loads(path.read_text())
        before[record["digest"]] = record["digest_before"]
    return {rung: before.get(digest, digest) for rung, digest in served.items()}


def copy_folder(source: Path, target: Path, written_last: str) -> None:
    """Copy a folder, unless it is there: one with the file that is ``written_last`` is complete."""
    if not (target / written_last).exists():
        copy = target.with_name(f".{target.name}.partial")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(source, copy)
        shutil.rmtree(target, ignore_errors=True)
        copy.rename(target)
