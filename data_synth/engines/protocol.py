"""What a build asks of whatever makes its shards, and what that sees of makers and jobs.

A job says all there is to say about its shard, so an engine may make shards anywhere and in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from data_synth.schema.errors import FinpercepError


class EngineError(FinpercepError):
    """Workers that cannot be started, or that died."""


class Job(Protocol):
    """What an engine sees of a `ShardJob`: picklable; ``path`` names the shard, uniquely within a build."""

    @property
    def path(self) -> str: ...  # noqa: D102


J = TypeVar("J", bound=Job)
N = TypeVar("N")
JobIn = TypeVar("JobIn", bound=Job, contravariant=True)
NetworksIn = TypeVar("NetworksIn", contravariant=True)


class Maker(Protocol[JobIn, NetworksIn]):
    """What an engine sees of a `ShardMaker`: picklable; makes and writes one shard, returns its metadata (plain JSON)."""

    def make(self, job: JobIn, networks: NetworksIn, /) -> dict[str, Any]: ...  # noqa: D102


class Engine(Protocol):
    """Makes shards."""

    def run(self, maker: Maker[J, N], jobs: Sequence[J], networks: Callable[[], N]) -> Iterator[tuple[J, dict[str, Any]]]:
        """Make every job's shard; yield each with its metadata as it gets done, in any order.

        Args:
            maker: picklable.
            jobs: picklable, each of its own path.
            networks: loads what ``maker`` needs loaded; picklable, called once in each worker.

        Raises:
            FinpercepError: what ``maker`` or ``networks`` raised, as it is. Shards done by then stay.
            EngineError: the workers cannot be started, or died.
        """
        ...


class Worker(Generic[J, N]):
    """What a worker process keeps between shards. The networks are loaded once, for the first shard.

    Not when the process starts: an error there would reach the parent as no more than "a process died".
    """

    def __init__(self, maker: Maker[J, N], jobs: Sequence[J], networks: Callable[[], N]) -> None:
        self._maker, self._jobs, self._networks = maker, jobs, networks
        self._loaded: tuple[N] | None = None

    def make(self, position: int) -> dict[str, Any]:
        """Make the shard of the job at ``position``."""
        if self._loaded is None:
            self._loaded = (self._networks(),)
        return self._maker.make(self._jobs[position], self._loaded[0])
