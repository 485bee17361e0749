"""What do the server's replicas on Ray Serve add, and what does Serve cost beside one process?

    python -m benchmarks.cluster [--replicas 1,2] [--clients 16] [--seconds 15] [--side 256] [--out]
    python -m benchmarks.cluster --seconds 2 --clients 4 --side 64       # does it run?

The same clients (one event loop, one image a request) ask ``finpercep serve``, and then a cluster of one machine with so many
replicas of one CPU each, through Serve's proxy. Clients, proxy and replicas share the cores, so two replicas on two cores cannot
be twice one; what the table shows is Serve's overhead, and that a replica adds what cores there are. ``--out`` writes
``results/cluster.json``.
"""

from __future__ import annotations

import argparse
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.load import Load, closed_loop
from benchmarks.report import print_table, write_result
from benchmarks.serving import pictures, requests
from finpercep.cli.server_process import ServerProcess
from finpercep.predictor import packaged_model_folder

APP = "benchmark"
START_SECONDS = 600.0
OBJECT_STORE = 100 * 2**20
"""Bytes; Ray's least is 75 MiB, and requests are no objects."""


@contextmanager
def serve_running(cpus: int) -> Iterator[str]:
    """Ray and Serve on this machine, for as long as the block lasts; the address of the proxy."""
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")  # no less than clients and the lone server have
    import ray
    from ray import serve

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ray.init(num_cpus=cpus, include_dashboard=False, object_store_memory=OBJECT_STORE, log_to_driver=False, logging_level="ERROR")
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def deploy(model: Path, replicas: int) -> None:
    """So many replicas, one CPU each, and no others; return when they run."""
    from ray import serve

    from rm_server import cluster

    options = {"name": cluster.DEPLOYMENT, "num_replicas": replicas, "ray_actor_options": {"num_cpus": 1}}
    arguments = {"host": "127.0.0.1", "model": str(model)}
    cluster.deploy(
        [
            {
                "name": APP,
                "route_prefix": "/",
                "import_path": "rm_server.cluster:build",
                "args": arguments,
                "deployments": [options],
            }
        ]
    )
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        application = serve.status().applications.get(APP)
        if application is not None and application.status == "DEPLOY_FAILED":
            raise RuntimeError(application.message)
        if application is not None and application.status == "RUNNING":
            states = application.deployments[cluster.DEPLOYMENT].replica_states
            if states == {"RUNNING": replicas}:
                return
        time.sleep(0.3)
    raise RuntimeError(f"{replicas} replicas did not start within {START_SECONDS:g} s: {serve.status()}")


def measure(model: Path, replicas: list[int], clients: int, seconds: float, side: int) -> list[dict[str, Any]]:
    """All lines; gradients too, since they are what trainers ask for."""
    images, lines = pictures(side), []

    def loaded(name: str, url: str) -> None:
        for route in ("tensors", "gradients"):
            load = closed_loop(url, requests(url, route, images), clients, seconds)
            lines.append(_line(f"{name}, {route}", load))

    with ServerProcess(model) as server:
        loaded("one process", server.url)
    with serve_running(max(replicas)) as url:
        for count in replicas:
            deploy(model, count)
            loaded(f"Serve, {count} replica{'s' * (count > 1)}", url)
    return lines


def _line(name: str, load: Load) -> dict[str, Any]:
    return {
        "line": name,
        "images_per_second": load.rate,
        "p50_ms": load.percentile_ms(0.5),
        "p99_ms": load.percentile_ms(0.99),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=packaged_model_folder())
    parser.add_argument("--replicas", default="1,2")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each line")
    parser.add_argument("--side", type=int, default=256, help="of the images, in px")
    parser.add_argument("--out", action="store_true", help="write results/cluster.json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    replicas = [int(count) for count in options.replicas.split(",")]
    lines = measure(options.model, replicas, options.clients, options.seconds, options.side)
    print_table(tuple(lines[0]), [tuple(line.values()) for line in lines])
    if options.out:
        settings = {"clients": options.clients, "seconds": options.seconds, "side": options.side}
        print(write_result("cluster", {"settings": settings, "lines": lines}))


if __name__ == "__main__":
    main()
