"""The same application on Ray Serve: replicas on one machine or many, started, watched, scaled and updated by Serve.

    serve deploy deploy/ray/reward.yaml                    # docs/scale.md

`build` is the application's import path. A replica is a whole server: it decodes, batches, scores and encodes as `finpercep
serve` does, with the same limits, so a picture travels once, from the proxy to the replica. Not here: routing, health,
autoscaling and restarts, which are Serve's and are set in its configuration file.

**Rungs.** Every replica holds the whole ladder. Serve's multiplexing would hold some rungs here and others there, and load one
when it is first asked for: worth it where models are many or large, but a ladder is a few rungs of some megabytes, a request
would wait for the loading, and a rung's requests would crowd on the replicas that have it.

**Updates.** Which rungs replace those of the ladder is the deployment's ``user_config``: Serve keeps it, hands it to the
replicas a few at a time, and gives it to those that start later. ``PUT /rungs/NAME`` tries the rung on the replica that got the
request, writes it into ``user_config`` with its digest, and answers when every replica serves it.

Tokens never travel through Ray: each replica takes them from its own machine's environment.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import get_runtime_context, serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema
from starlette.types import ASGIApp

from data_synth.device import resolve_device
from finpercep.errors import ConfigError
from finpercep.predictor import load_predictors, packaged_model_folder
from rm_server.app import create_app
from rm_server.problems import Problem
from rm_server.registry import Registry, ServedRung
from rm_server.service import Service
from rm_server.settings import Settings

if TYPE_CHECKING:
    from ray.serve._private.client import ServeControllerClient

DEPLOYMENT = "RewardServer"

HEALTH_SECONDS = 120.0
"""A canary waits for its turn like any image, so a replica with a full queue may take so long to show that it is well."""

ROLLOUT_SECONDS = 600.0
"""Time for all replicas to take a rung, a few at a time; after it the former rungs are asked back."""

POLL_SECONDS = 0.5

log = logging.getLogger(__name__)


class RungSource(BaseModel):
    """Where a rung comes from.

    The digest is not optional: it makes replicas agree, whatever happens to the folder between one's loading and the next's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(description="Path in the model root of a ladder's folder, or of a rung's.", max_length=200)
    digest: str = Field(description="Digest that the rung must have.", max_length=200)


class UserConfig(BaseModel):
    """The deployment's ``user_config``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rungs: dict[str, RungSource] = Field(
        default_factory=dict, description="Rungs that take the place of the ladder's, by name; a name that is new comes last."
    )


class Rollout(Protocol):
    """Makes all replicas serve a rung."""

    async def put(self, name: str, source: RungSource) -> None:
        """Return when every replica serves it.

        Raises:
            Problem: they do not; the former rungs are served.
        """
        ...


class ReplicaService(Service):
    """A replica's `Service`: its rungs are the ladder's, and over them those of ``user_config``.

    Args:
        registry: the ladder.
        settings: limits and the model root.
        rollout: how ``PUT /rungs/NAME`` reaches the other replicas.
    """

    def __init__(self, registry: Registry, settings: Settings, rollout: Rollout) -> None:
        super().__init__(registry, settings)
        self._ladder = {rung.rung: rung for rung in registry.rungs}
        self._rollout = rollout
        self._tried: ServedRung | None = None

    async def put_rung(self, name: str, source: str, digest: str | None) -> None:
        """Try the rung here, then have every replica serve it, this one too."""
        self._tried = await self._proven(name, source, digest)
        await self._rollout.put(name, RungSource(source=source, digest=self._tried.digest))

    async def take(self, wanted: UserConfig) -> None:
        """Serve the ladder, and over it ``wanted``: all rungs at once, when each one's canary has lived.

        Raises:
            Problem: one cannot be loaded, has another digest, or its canary another result. Nothing has changed then.
        """
        served = {rung.rung: rung for rung in self.registry.rungs}
        rungs = dict(self._ladder)
        for name, one in wanted.rungs.items():
            ready = [rung for rung in (served.get(name), self._tried) if rung and (rung.rung, rung.digest) == (name, one.digest)]
            rungs[name] = ready[0] if ready else await self._proven(name, one.source, one.digest)
        self.registry.become(rungs)
        self._tried = None
        for name, rung in rungs.items():
            if name not in served or served[name].digest != rung.digest:
                self.metrics.swaps.labels(name).inc()


class ServeRollout:
    """`Rollout` by Serve's controller: rewrites this deployment's ``user_config``, as ``serve deploy`` with an edited file would.

    Args:
        app: the application's name.
        seconds: time that the replicas have.
    """

    def __init__(self, app: str, seconds: float = ROLLOUT_SECONDS) -> None:
        self.app, self.seconds = app, seconds

    async def put(self, name: str, source: RungSource) -> None:
        """See `Rollout.put`."""
        await asyncio.to_thread(self._put, name, source)

    def _put(self, name: str, source: RungSource) -> None:
        before = self._user_config()
        wanted = UserConfig(rungs={**before.rungs, name: source})
        self._write(wanted)
        if not self._settled(name, source.digest):
            self._write(before)
            raise Problem(
                "conflict", f"not every replica came to serve {source.source}/{name}; the former rungs are served again"
            )
        if self._user_config().rungs.get(name) != source:
            raise Problem("conflict", f"another rung was put at the same time and {name} was lost; look, and put it again")

    def _user_config(self) -> UserConfig:
        deployment = _deployment_of(self._applications()[self.app])
        return UserConfig.model_validate(deployment.get("user_config") or {})

    def _write(self, wanted: UserConfig) -> None:
        applications = self._applications()
        _deployment_of(applications[self.app])["user_config"] = wanted.model_dump()
        deploy(applications.values())

    def _applications(self) -> dict[str, dict[str, Any]]:
        """Every application that was deployed by a configuration file, as that file has it."""
        details = _client().get_serve_details()["applications"]
        configs = {name: one["deployed_app_config"] for name, one in details.items() if one.get("deployed_app_config")}
        if self.app not in configs:
            raise Problem(
                "conflict",
                "this application was not deployed by a configuration file, so its rungs cannot be changed while it runs; "
                "start it with `serve deploy FILE`",
            )
        return configs

    def _settled(self, name: str, digest: str) -> bool:
        """Wait until the deployment is whole and every replica serves the rung; False when one cannot, or time is up."""
        handle = serve.get_deployment_handle(DEPLOYMENT, self.app)
        until = time.monotonic() + self.seconds
        while time.monotonic() < until:
            time.sleep(POLL_SECONDS)
            application = serve.status().applications[self.app]
            if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                return False
            states = application.deployments[DEPLOYMENT].replica_states
            running = sum(count for state, count in states.items() if state == "RUNNING")
            if application.status != "RUNNING" or not running:
                continue
            found = handle.broadcast("digests").results(timeout_s=self.seconds, return_exceptions=True)
            if len(found) == running and all(isinstance(one, dict) and one.get(name) == digest for one in found):
                return True
        return False


class Replica:
    """One server of the deployment; Serve sends it HTTP requests as ASGI calls.

    Args:
        arguments: settings, by name (`build`).
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        settings = settings_of(arguments)
        _keep_to_its_share()
        rollout = ServeRollout(serve.get_replica_context().app_name)
        self.service = ReplicaService(load_registry(settings), settings, rollout)
        logging.getLogger("rm_server.access").setLevel(logging.INFO)
        logging.basicConfig(format="%(message)s")

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """What Serve sends requests to; it asks for it by this name."""
        return create_app(self.service.registry, self.service.settings, self.service)

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Take the rungs of a new ``user_config``; Serve calls it, also on replicas that start later."""
        await self.service.take(UserConfig.model_validate(user_config))

    async def check_health(self) -> None:
        """Raise when the finest rung no longer scores the canary as it should; Serve replaces the replica then.

        Serve asks before it sends the first request, and takes a fault for a failed start: so the warm-up is waited for.
        """
        await self.service.warm_up()
        if fault := await self.service.readiness_fault():
            raise RuntimeError(fault)

    def digests(self) -> dict[str, str]:
        """Rung → digest, as it is served now."""
        return {rung.rung: rung.digest for rung in self.service.registry.rungs}


RewardServer = serve.deployment(
    name=DEPLOYMENT,
    max_ongoing_requests=64,
    health_check_period_s=10,
    health_check_timeout_s=HEALTH_SECONDS,
    graceful_shutdown_timeout_s=30,
)(serve.ingress()(Replica))
"""Defaults; replicas, autoscaling, CPUs and GPUs are said in Serve's configuration file, under the deployment's name."""


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application, from the ``args`` of Serve's configuration file.

    Args:
        arguments: any of `Settings`, tokens excepted. ``host`` is where Serve's proxies listen, and they do so on every machine:
            unless it is said to be loopback, a token is needed, as for a single server.

    Raises:
        ConfigError: a setting is wrong, or a token is among them or missing.
    """
    settings_of(arguments)  # a mistake is found before any replica starts
    return RewardServer.bind(dict(arguments))


def settings_of(arguments: Mapping[str, Any]) -> Settings:
    """Settings from arguments and this machine's environment.

    Raises:
        ConfigError: one is wrong, or a token is among the arguments.
    """
    if secrets := {"token", "admin_token"} & set(arguments):
        raise ConfigError(
            f"{' and '.join(sorted(secrets))} must not stand in args, which Ray's dashboard shows; "
            "set FINPERCEP_TOKEN and FINPERCEP_ADMIN_TOKEN on every machine"
        )
    try:
        return Settings(**{"host": "0.0.0.0", **arguments})
    except ValidationError as error:
        fault = error.errors()[0]
        setting = ".".join(map(str, fault["loc"]))
        raise ConfigError(f"{setting}: {fault['msg']}" if setting else fault["msg"].removeprefix("Value error, ")) from error


def load_registry(settings: Settings) -> Registry:
    """The ladder on every device of a replica."""
    folder = settings.model or packaged_model_folder()
    ladders = [load_predictors(folder, resolve_device(name.strip())) for name in settings.device.split(",")]
    return Registry({rung: [ladder[rung] for ladder in ladders] for rung in ladders[0]})


def deploy(applications: Iterable[Mapping[str, Any]]) -> None:
    """Make these all the applications of the cluster that were deployed by a configuration file, as ``serve deploy`` does.

    Args:
        applications: as in such a file.
    """
    client = _client()
    schemas = [ServeApplicationSchema.model_validate(one) for one in applications]
    client.deploy_apps(ServeDeploySchema(applications=schemas, target_capacity=client.get_serve_details()["target_capacity"]))


def _client() -> ServeControllerClient:
    """Of the Serve that this process is part of. Ray has no public way to it but the dashboard's, which need not run."""
    client = _get_global_client()
    assert client is not None
    return client


def _deployment_of(application: dict[str, Any]) -> dict[str, Any]:
    """Its entry for our deployment, made if there is none."""
    deployments: list[dict[str, Any]] = application.setdefault("deployments", [])
    for one in deployments:
        if one["name"] == DEPLOYMENT:
            return one
    deployments.append({"name": DEPLOYMENT})
    return deployments[-1]


def _keep_to_its_share() -> None:
    """A replica computes with as many threads as it has CPUs, and takes of a GPU no more memory than its share of it."""
    share = get_runtime_context().get_assigned_resources()
    torch.set_num_threads(max(1, int(share.get("CPU", 1))))
    if torch.cuda.is_available() and 0 < share.get("GPU", 0) < 1:
        torch.cuda.set_per_process_memory_fraction(share["GPU"])
