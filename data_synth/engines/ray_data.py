"""Shards made on many machines, through Ray Data: one row a job, a pool of actors that make a shard each and write it themselves.

What the machines need: the same release of finpercep with its `cluster` extra, and the photos, the SR models and the output
folder under the same paths, on storage that all of them see. Only paths and metadata travel through Ray. Scheduling, retries
after a lost machine and shutting down are Ray's; nothing of that is done here.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import socket
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_synth.engines.protocol import EngineError, J, Maker, N, Worker
from data_synth.library_errors import first_line

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM", "RAYON_NUM_THREADS")
_ONE_THREAD = dict.fromkeys(_THREADS, "1")
"""Ray counts one CPU a worker; the libraries would take all of the machine's, in every worker."""

_NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
"""Ray itself hides a node's GPUs in some versions only."""

_LOCAL_STORE = 256 * 2**20
"""Bytes of Ray's object store on a cluster we start: rows are a path and some JSON."""


@dataclass(frozen=True)
class RayEngine:
    """A pool of Ray actors, each with one CPU.

    Attributes:
        workers: actors; as many work at a time as the cluster has room for.
        address: the cluster's, as ``ray.init`` takes it (``HOST:PORT``; ``auto``: any this machine is part of). None: the one
            that RAY_ADDRESS or a ``ray start`` on this machine names, else one started here with ``workers`` CPUs and ended
            afterwards. ``local``: always the latter. In a process already connected to Ray, that connection is used and kept.
        gpus_per_worker: may be a fraction; with 0, workers see no GPU.
        retries: times that a worker which died is started again, and its shard with it; a shard that kills every worker must end.
    """

    workers: int = 1
    address: str | None = None
    gpus_per_worker: float = 0.0
    retries: int = 4

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise EngineError(f"workers must be at least 1, got {self.workers}")
        if not 0 <= self.gpus_per_worker < float("inf"):
            raise EngineError(f"gpus_per_worker must not be negative, got {self.gpus_per_worker}")

    def run(self, maker: Maker[J, N], jobs: Sequence[J], networks: Callable[[], N]) -> Iterator[tuple[J, dict[str, Any]]]:
        """See `Engine.run`. A worker that dies is replaced, and its shard made again."""
        if not jobs:
            return
        _require_ray()
        from ray.exceptions import RayError

        by_path = {job.path: job for job in jobs}
        with _connection(self.address, self.workers):
            self._check_room()
            try:
                dataset = self._dataset(maker, tuple(jobs), networks)
                with closing(iter(dataset.iter_rows())) as rows:  # closing it stops the workers
                    for row in rows:
                        if row["error"]:
                            raise _revived(row["error"], row["traceback"])
                        yield by_path[row["path"]], json.loads(row["metadata"])
            except RayError as error:
                raise EngineError(
                    f"the Ray cluster lost its workers ({type(error).__name__}), perhaps for lack of memory; "
                    "run again to go on, with fewer workers perhaps"
                ) from error

    def _dataset(self, maker: Maker[J, N], jobs: Sequence[J], networks: Callable[[], N]) -> Any:
        """Finished shards, one a row, once one iterates over it."""
        import ray.data

        with _quiet(), ray.data.DataContext.current(_context()):
            # A block a job, so that a job is a task of its own; its position says which, for workers have the jobs.
            positions = ray.data.from_items([{"position": i} for i in range(len(jobs))], override_num_blocks=len(jobs))
            return positions.map(
                _ShardTask,  # type: ignore[arg-type]  # a class: Ray makes one in each actor
                fn_constructor_args=(maker, jobs, networks, str(Path.cwd())),
                compute=ray.data.ActorPoolStrategy(size=min(self.workers, len(jobs)), max_tasks_in_flight_per_actor=2),
                num_cpus=1,
                num_gpus=self.gpus_per_worker or None,
                runtime_env={"env_vars": _ONE_THREAD if self.gpus_per_worker else _ONE_THREAD | _NO_GPU},
                max_restarts=self.retries,
                max_task_retries=self.retries,
            )

    def _check_room(self) -> None:
        """Refuse what would wait for ever."""
        import ray

        found = ray.cluster_resources()
        if found.get("CPU", 0.0) < 1:
            raise EngineError("the Ray cluster must have a CPU for each worker, got none; add a node with `ray start`")
        if found.get("GPU", 0.0) < self.gpus_per_worker:
            raise EngineError(
                f"the Ray cluster must have {self.gpus_per_worker:g} GPU for each worker, got {found.get('GPU', 0.0):g} in all; "
                "add a node that has one, or use none"
            )


class _ShardTask:
    """Lives in an actor. A row in: a job's position; a row out: its path and metadata as JSON, or the error that came of it."""

    def __init__(self, maker: Maker[Any, Any], jobs: Sequence[Any], networks: Callable[[], Any], folder: str) -> None:
        if Path(folder).is_dir():
            os.chdir(folder)  # relative paths mean what they mean where the build was started
        self._jobs, self._worker = jobs, Worker(maker, jobs, networks)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        position = int(row["position"])
        done = {"path": self._jobs[position].path, "metadata": "", "error": b"", "traceback": ""}
        try:
            return done | {"metadata": json.dumps(self._worker.make(position))}
        except Exception as error:
            # As data: Ray would wrap it in errors of its own, retry and log it.
            return done | {"error": _pickled(error), "traceback": traceback.format_exc()}


def _pickled(error: Exception) -> bytes:
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:  # whatever an error's own pickling raises
        return pickle.dumps(EngineError(f"{type(error).__name__}: {error}"))
    return data


def _revived(data: bytes, where: str) -> Exception:
    error: Exception = pickle.loads(data)
    error.add_note(f"in a Ray worker:\n{where}")
    return error


# -- Ray --------------------------------------------------------------------------------------------------------------


def _require_ray() -> None:
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise EngineError("Ray Data is not installed, and many machines need it: pip install 'finpercep[cluster]'") from error


@contextmanager
def _connection(address: str | None, workers: int) -> Iterator[None]:
    """Be connected to a cluster; undo what was done for it."""
    import ray

    if ray.is_initialized():
        yield
        return
    with _quiet():
        _connect(address, workers)
    try:
        yield
    finally:
        ray.shutdown()  # ends a cluster started here; from any other it only disconnects


def _connect(address: str | None, workers: int) -> None:
    import ray

    silent: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None or address == "local":
        try:
            with _no_usage_reports():
                ray.init(address, num_cpus=workers, include_dashboard=False, object_store_memory=_LOCAL_STORE, **silent)
            return
        except ValueError:
            if address == "local":
                raise
            # There is a cluster, whose resources are not ours to set.
    try:
        _probe(address)
        ray.init(address, **silent)
    except (OSError, RuntimeError, ValueError) as error:
        where = address or "RAY_ADDRESS"
        raise EngineError(f"no Ray cluster answers at {where}: {first_line(error)}; start one with `ray start --head`") from error


def _probe(address: str | None) -> None:
    """Whether anything listens at HOST:PORT. Ray itself would wait for minutes. Raises OSError."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _no_usage_reports() -> Iterator[None]:
    """A cluster started here reports to nobody, unless the user has set otherwise."""
    name = "RAY_USAGE_STATS_ENABLED"
    absent = name not in os.environ
    os.environ.setdefault(name, "0")
    try:
        yield
    finally:
        if absent:
            del os.environ[name]


def _context() -> Any:
    """Ray Data's settings for one run: no output, no time limit on a shard."""
    import ray.data

    context = copy.deepcopy(ray.data.DataContext.get_current())
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a shard of diffusion SR on a CPU takes its time
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # errors come to us as exceptions, and its log files stay
            handler.setLevel(logging.CRITICAL + 1)
    return context


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray warns of its own deprecated settings whatever one sets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
