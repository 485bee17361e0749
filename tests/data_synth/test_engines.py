"""Engines: every shard once, the same bytes wherever it is made, errors as what they are."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from data_synth.build import build_dataset
from data_synth.engines import EngineError, ProcessEngine, RayEngine
from data_synth.engines.ray_data import _quiet, _revived, _ShardTask
from data_synth.photos import photo_source
from data_synth.plan import BuildConfig
from data_synth.recipe import RecipeConfig
from data_synth.schema import SchemaError
from data_synth.schema.pixels import write_atomically
from data_synth.sr_models.protocol import SRModelError
from tests.data_synth.fake_sr import nearest_network


@dataclass(frozen=True)
class FakeJob:
    path: str


@dataclass(frozen=True)
class Doubling:
    """Stands for an SR model: what matters is which process loaded it, and how often."""

    loads: Path

    def double(self, text: str) -> str:
        return text + text


def doubling(loads: Path) -> Mapping[str, Doubling]:
    loads.mkdir(exist_ok=True, parents=True)
    write_atomically(loads / f"{os.getpid()}-{time.monotonic_ns()}", b"")
    return {"doubling": Doubling(loads)}


def no_weights() -> Mapping[str, Doubling]:
    raise SRModelError("no weights at nowhere.safetensors; download them")


@dataclass(frozen=True)
class FakeMaker:
    """Writes a file decided by the job alone, and says where it was made."""

    out: Path
    seconds: float = 0.0

    def make(self, job: FakeJob, models: Mapping[str, Doubling]) -> dict[str, object]:
        time.sleep(self.seconds)
        self.fail(job)
        digest = hashlib.sha256(job.path.encode()).hexdigest()
        write_atomically(self.out / job.path, models["doubling"].double(digest).encode())
        threads = {"torch": torch.get_num_threads(), "openmp": os.environ.get("OMP_NUM_THREADS")}
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        return {"pid": os.getpid(), "threads": threads, "gpus": gpus, "folder": str(Path.cwd()), "digest": digest, "rows": 3}

    def fail(self, job: FakeJob) -> None:
        if job.path == "nan":
            raise SRModelError("SR model broken: output must be finite")
        if job.path == "schema":
            raise SchemaError("file", "field", "this", [1])
        if job.path == "bug":
            raise ZeroDivisionError("a bug of ours")
        if job.path == "local":
            raise LocalError("somewhere", code=3)
        if job.path == "dies" or (job.path == "dies-once" and not (self.out / "died").exists()):
            (self.out / "died").touch()
            os._exit(1)


class LocalError(Exception):
    """Cannot be pickled: it is made with more than its message."""

    def __init__(self, where: str, *, code: int) -> None:
        super().__init__(f"{where} gave {code}")


JOBS = [FakeJob(f"data/train-{i:05d}.bin") for i in range(5)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.bin")}


def run(engine, out: Path, jobs=JOBS, seconds: float = 0.0):
    out.mkdir(exist_ok=True)
    return list(engine.run(FakeMaker(out, seconds), jobs, partial(doubling, out / "loads")))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What one process makes."""
    out = tmp_path_factory.mktemp("reference")
    done = run(ProcessEngine(1), out)
    assert [job for job, _ in done] == JOBS
    assert {made["pid"] for _, made in done} == {os.getpid()}
    assert len(list((out / "loads").iterdir())) == 1
    assert len(contents(out)) == len(JOBS)
    return contents(out)


def check(done, out: Path, reference, loads: int) -> None:
    """Every job once, with its own metadata, the reference's bytes, and models loaded once a worker."""
    assert sorted(job.path for job, _ in done) == [job.path for job in JOBS]
    for job, made in done:
        assert made["digest"] == hashlib.sha256(job.path.encode()).hexdigest()
    assert contents(out) == reference
    pids = {made["pid"] for _, made in done}
    assert os.getpid() not in pids
    assert len(pids) == loads == len(list((out / "loads").iterdir()))


def test_processes_make_the_same(reference, tmp_path):
    check(run(ProcessEngine(2), tmp_path, seconds=0.2), tmp_path, reference, loads=2)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_error_keeps_its_type(tmp_path, workers):
    jobs = [FakeJob("first.bin"), FakeJob("nan")]
    with pytest.raises(SRModelError, match="SR model broken: output must be finite"):
        run(ProcessEngine(workers), tmp_path, jobs)
    assert (tmp_path / "first.bin").exists()


def test_models_that_do_not_load_are_named_by_worker_processes_too(tmp_path):
    with pytest.raises(SRModelError, match="no weights at nowhere"):
        list(ProcessEngine(2).run(FakeMaker(tmp_path), JOBS, no_weights))


def test_a_dead_process_is_reported(tmp_path):
    with pytest.raises(EngineError, match=r"a worker process died.*fewer workers"):
        run(ProcessEngine(2), tmp_path, [FakeJob("dies"), FakeJob("other.bin")])


def test_nothing_to_do_starts_nothing(tmp_path):
    for engine in (ProcessEngine(1), ProcessEngine(4), RayEngine(2, address="nowhere:1")):
        assert list(engine.run(FakeMaker(tmp_path), [], no_weights)) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProcessEngine(0), "workers must be at least 1, got 0"),
        (lambda: RayEngine(0), "workers must be at least 1, got 0"),
        (lambda: RayEngine(1, gpus_per_worker=-0.5), "gpus_per_worker must not be negative, got -0.5"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(EngineError, match=message):
        make()


# -- Ray ----------------------------------------------------------------------------------------------------------------
# Ray leaves threads behind in any process that has used it, and ends the process when its node is lost: the cluster and every
# scenario have processes of their own.


def start_cluster() -> str:
    """Two nodes of one CPU each, on this machine. Returns the address; whoever calls this must not connect to it."""
    global _cluster
    os.environ.update(RAY_worker_niceness="0")  # Ray makes way for everyone else: by 15
    from ray.cluster_utils import Cluster

    patience = {"health_check_timeout_ms": 60_000, "health_check_failure_threshold": 20}  # a busy machine is not a dead node
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False, "_system_config": patience}
    _cluster = Cluster(initialize_head=True, head_node_args=node)
    _cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    return _cluster.address


def stop_cluster() -> None:
    _cluster.shutdown()


def use_cluster(address: str) -> None:
    """In the process of a scenario, before it."""
    global ADDRESS
    import ray

    ADDRESS = address
    warnings.simplefilter("error")
    for module in (__name__, "tests.data_synth.fake_sr"):  # workers cannot import tests
        ray.cloudpickle.register_pickle_by_value(sys.modules[module])


def connect():
    """What a process does that uses Ray for something else."""
    import ray

    return ray.init(ADDRESS, log_to_driver=False, logging_level="ERROR")


def two_nodes_make_the_same(out: Path) -> None:
    import ray

    run(ProcessEngine(1), out / "here")
    done = run(RayEngine(2, address=ADDRESS), out / "ray", seconds=0.5)
    check(done, out / "ray", contents(out / "here"), loads=2)
    for _, made in done:
        assert made["threads"] == {"torch": 1, "openmp": "1"}
        assert made["gpus"] == ""  # none was asked for
        assert made["folder"] == str(Path.cwd())
    assert not ray.is_initialized()  # it disconnected …
    with connect():
        assert ray.cluster_resources()["CPU"] == 2  # … and left the cluster alone


def a_data_set_is_the_same_bytes_from_both_engines(out: Path) -> None:
    """A small real build, SR models and cache included."""
    samples = photo_source("samples")
    config = BuildConfig(count=8, seed=5, shard_size=2, validation=0.2, test=0.2, sr_batch=3, recipe=RecipeConfig(crop=64))
    engines = {"one": ProcessEngine(1), "ray": RayEngine(2, address=ADDRESS)}
    for name, engine in engines.items():
        cache = out / f"{name}-cache"
        list(build_dataset([samples], out / name, config, networks=nearest_network, engine=engine, sr_cache=cache))
    one, ray = (
        {str(path.relative_to(out / name)): path.read_bytes() for path in (out / name).rglob("*") if path.is_file()}
        for name in engines
    )
    assert len([path for path in one if path.endswith(".parquet")]) == 4
    assert one == ray


def a_connection_it_did_not_make_is_kept(out: Path) -> None:
    """… and its settings; results come as they are done, and closing early stops the workers."""
    import ray
    from ray.data import DataContext

    jobs = [FakeJob(f"{i}.bin") for i in range(40)]
    with connect(), _quiet():
        DataContext.get_current().enable_progress_bars = True
        rows = RayEngine(2).run(FakeMaker(out, seconds=0.3), jobs, partial(doubling, out / "loads"))
        assert next(rows)[0] in jobs
        rows.close()
        time.sleep(1.5)  # what was begun may end
        made = len(contents(out))
        assert 1 <= made < 15
        time.sleep(1.5)
        assert len(contents(out)) == made
        assert ray.is_initialized()
        assert DataContext.get_current().enable_progress_bars


def models_that_do_not_load_are_named(out: Path) -> None:
    with pytest.raises(SRModelError, match="no weights at nowhere"):
        list(RayEngine(2, address=ADDRESS).run(FakeMaker(out), JOBS, no_weights))


def a_worker_that_dies_is_replaced(out: Path) -> None:
    done = run(RayEngine(1, address=ADDRESS), out, [FakeJob("dies-once"), FakeJob("other.bin")])
    assert sorted(job.path for job, _ in done) == ["dies-once", "other.bin"]


def a_shard_that_kills_every_worker_ends_the_build(out: Path) -> None:
    with pytest.raises(EngineError, match=r"lost its workers .*run again to go on"):
        run(RayEngine(1, address=ADDRESS, retries=1), out, [FakeJob("dies")])


def gpus_that_the_cluster_lacks_are_not_waited_for(out: Path) -> None:
    with pytest.raises(EngineError, match=r"must have 0\.5 GPU for each worker, got 0 in all"):
        run(RayEngine(1, address=ADDRESS, gpus_per_worker=0.5), out)


def an_address_without_a_cluster_is_named(out: Path) -> None:
    with pytest.raises(EngineError, match=r"no Ray cluster answers at 127\.0\.0\.1:9: .*ray start --head"):
        run(RayEngine(1, address="127.0.0.1:9"), out)


@pytest.fixture(scope="module")
def ray_cluster():
    """The address of a cluster."""
    if find_spec("ray") is None:
        pytest.skip("needs Ray")
    with ProcessPoolExecutor(1, get_context("spawn")) as owner:
        yield owner.submit(start_cluster).result()
        owner.submit(stop_cluster).result()


@pytest.mark.slow
@pytest.mark.parametrize(
    "scenario",
    [
        two_nodes_make_the_same,
        a_data_set_is_the_same_bytes_from_both_engines,
        a_connection_it_did_not_make_is_kept,
        models_that_do_not_load_are_named,
        a_worker_that_dies_is_replaced,
        a_shard_that_kills_every_worker_ends_the_build,
        gpus_that_the_cluster_lacks_are_not_waited_for,
        an_address_without_a_cluster_is_named,
    ],
    ids=lambda scenario: scenario.__name__,
)
def test_ray(ray_cluster, tmp_path, scenario):
    for attempt in ("first", "second"):  # on a busy machine Ray now and then aborts the process that connects
        (tmp_path / attempt).mkdir()
        with ProcessPoolExecutor(1, get_context("spawn"), use_cluster, (ray_cluster,)) as process:
            try:
                process.submit(scenario, tmp_path / attempt).result()
            except BrokenProcessPool:
                if attempt == "second":
                    raise
            else:
                return


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("nan", SRModelError, "SR model broken: output must be finite"),
        ("schema", SchemaError, "file: field: expected this, got [1]"),
        ("bug", ZeroDivisionError, "a bug of ours"),
        ("local", EngineError, "LocalError: somewhere gave 3"),
    ],
)
def test_a_ray_workers_error_is_what_it_was(tmp_path, path, kind, message):
    """What an actor does with a row, without the actor."""
    task = _ShardTask(FakeMaker(tmp_path), [FakeJob(path)], partial(doubling, tmp_path), str(tmp_path / "absent"))
    row = task({"position": 0})
    assert (row["path"], row["metadata"]) == (path, "")
    error = _revived(row["error"], row["traceback"])
    assert (type(error), str(error)) == (kind, message)
    assert "in a Ray worker" in error.__notes__[0]
    assert "in fail" in error.__notes__[0]


@pytest.mark.slow
def test_ray_starts_a_cluster_of_its_own_and_ends_it(tmp_path):
    """In a process of its own, so that what Ray prints is seen: one line of its own at most, and nobody is told of the run."""
    if find_spec("ray") is None:
        pytest.skip("needs Ray")
    script = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_engines import FakeJob, FakeMaker, doubling, run
from data_synth.engines import RayEngine
import ray
done = run(RayEngine(2, address="local"), Path(sys.argv[1]))
assert not ray.is_initialized() and "RAY_USAGE_STATS_ENABLED" not in os.environ
print(sorted(job.path for job, _ in done))
"""
    command = [sys.executable, "-W", "error", "-c", script, str(tmp_path), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([job.path for job in JOBS])
    assert len([line for line in done.stderr.splitlines() if "issues/53727" not in line]) == 0, done.stderr


def test_ray_missing_says_what_to_install():
    script = """
import sys
sys.modules["ray"] = None
from data_synth.build import build_dataset
from data_synth.engines import EngineError, RayEngine
try:
    list(RayEngine(1).run(None, [None], None))
except EngineError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("pip install 'finpercep[cluster]'")
