"""A Ray cluster of several nodes on this machine with the reward server on it; what runs in the process that owns the cluster."""

from __future__ import annotations

import os
import signal
import time
import warnings
from contextlib import suppress
from typing import Any

APP = "finpercep"
PATIENCE = ("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S")
"""Of Serve with its proxies: on a busy machine they take longer than its 5 s to start."""

_state: dict[str, Any] = {}


def start(nodes: int, port: int, environment: dict[str, str]) -> None:
    """A head and ``nodes`` - 1 workers of one CPU each, and Serve's proxies on ``port``."""
    os.environ.update(environment, RAY_USAGE_STATS_ENABLED="0")
    os.environ.update(dict.fromkeys(PATIENCE, "120"), RAY_worker_niceness="0")  # Ray makes way for everyone else: by 15
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    warnings.simplefilter("ignore")
    # A node that is busy answers late, one that is gone refuses at once: 20 refusals, a second apart.
    patience = {"health_check_timeout_ms": 60_000, "health_check_period_ms": 1000, "health_check_failure_threshold": 20}
    _state["node"] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    head = {**_state["node"], "include_dashboard": False, "_system_config": patience}
    cluster = _state["cluster"] = Cluster(initialize_head=True, head_node_args=head)
    _state["workers"] = [cluster.add_node(**_state["node"]) for _ in range(nodes - 1)]
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    with suppress(TimeoutError):  # after a minute, which a busy machine may need; the proxies go on starting
        serve.start(proxy_location="EveryNode", http_options={"host": "127.0.0.1", "port": port})


def stop() -> None:
    """All that was started, also of a start that failed."""
    import ray
    from ray import serve

    if ray.is_initialized():
        serve.shutdown()
        ray.shutdown()
    if "cluster" in _state:
        _state["cluster"].shutdown()


def deploy(args: dict[str, Any], deployment: dict[str, Any]) -> None:
    """Deploy as a configuration file would, and wait until it runs."""
    from rm_server import cluster

    application = {
        "name": APP,
        "route_prefix": "/",
        "import_path": "rm_server.cluster:build",
        "args": args,
        "deployments": [{"name": cluster.DEPLOYMENT, **deployment}],
    }
    cluster.deploy([application])
    wait_until_running()


def wait_until_running(replicas: int | None = None, seconds: float = 400) -> None:
    from ray import serve
    from ray.exceptions import RayActorError

    until = time.monotonic() + seconds
    while time.monotonic() < until:
        application = serve.status().applications.get(APP)
        if application is not None:
            if application.status == "DEPLOY_FAILED":
                raise RuntimeError(application.message)
            with suppress(RayActorError):  # a replica that went with its node, and is still in the books
                if application.status == "RUNNING" and (replicas is None or len(digests()) == replicas):
                    return
        time.sleep(0.3)
    raise TimeoutError(str(serve.status()))


def digests() -> list[dict[str, str]]:
    """Of every replica: rung → digest."""
    from ray import serve

    from rm_server.cluster import DEPLOYMENT

    return serve.get_deployment_handle(DEPLOYMENT, APP).broadcast("digests").results(timeout_s=60)


def replicas() -> list[dict[str, Any]]:
    """Details of every replica: pid, node_id, state."""
    from ray.serve.context import _get_global_client

    from rm_server.cluster import DEPLOYMENT

    return _get_global_client().get_serve_details()["applications"][APP]["deployments"][DEPLOYMENT]["replicas"]


def kill_a_replica() -> int:
    victim = next(one["pid"] for one in replicas() if one["state"] == "RUNNING")
    os.kill(victim, signal.SIGKILL)
    return victim


def wait_until_replaced(pid: int) -> None:
    """Until two replicas run, and none is the one with ``pid``."""
    until = time.monotonic() + 400
    while time.monotonic() < until:
        running = [one["pid"] for one in replicas() if one["state"] == "RUNNING"]
        if pid not in running and len(running) == 2:
            wait_until_running(2)
            return
        time.sleep(0.3)
    raise TimeoutError(str(replicas()))


def remove_a_node() -> None:
    """The last worker goes, with the replica and the proxy on it."""
    _state["cluster"].remove_node(_state["workers"].pop(), allow_graceful=False)


def add_a_node() -> None:
    _state["workers"].append(_state["cluster"].add_node(**_state["node"]))
