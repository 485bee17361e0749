"""`finpercep serve`: the reward as an HTTP server."""

from __future__ import annotations

import logging
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rm_server.registry import Registry
    from rm_server.settings import Settings


SWITCH_SECONDS = 0.0005
"""A thread that needs the interpreter for the next layer of a model waits no longer for the event loop (Python: 5 ms)."""


def serve(
    model: Annotated[Path | None, typer.Option(help="Folder of a ladder; the packaged one when absent.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (default 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (default 8000); 0 picks a free one.")] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda[:i], or several separated by commas: a worker on each.")
    ] = None,
    model_root: Annotated[
        Path | None, typer.Option(help="Folder of the ladders and rungs that PUT /rungs/NAME may load.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 (default) or bf16.")] = None,
    compile: Annotated[bool | None, typer.Option("--compile", help="Make the models quicker by torch.compile.")] = None,
    warm_up: Annotated[
        str | None, typer.Option(help="Sizes to score before /readyz says so: 256,640x480; above all with --compile.")
    ] = None,
) -> None:
    """Serve a reward model over HTTP. Prints its address when it is ready; options may also come as FINPERCEP_PORT, ….

    Tokens come by the environment alone: FINPERCEP_TOKEN for callers, FINPERCEP_ADMIN_TOKEN for PUT /rungs. Every other setting
    has a variable too (`rm_server.settings`).

    Example: finpercep serve --port 8000, then: curl -F image=@photo.png http://127.0.0.1:8000/score
    """
    import torch
    from pydantic import ValidationError

    from data_synth.device import resolve_device
    from finpercep.errors import ConfigError, MissingExtraError
    from finpercep.predictor import load_predictors, packaged_model_folder

    try:
        from rm_server.registry import Registry
        from rm_server.settings import Settings
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "fastapi", "server") from error
    given: dict[str, Any] = {
        "model": model,
        "host": host,
        "port": port,
        "device": device,
        "model_root": model_root,
        "precision": precision,
        "compile": compile,
        "warm_up": warm_up,
    }
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        fault = error.errors()[0]
        setting = ".".join(map(str, fault["loc"]))  # no received value: it may be a token
        message = fault["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{setting}: {message}" if setting else message) from error
    settings = settings.model_copy(update={"threads": settings.threads or torch.get_num_threads()})
    torch.set_num_threads(1)  # of this thread; the engine's first alone may have a team (`Engine`)
    folder = settings.model or packaged_model_folder()
    ladders = [load_predictors(folder, resolve_device(name.strip())) for name in settings.device.split(",")]
    registry = Registry({rung: [ladder[rung] for ladder in ladders] for rung in ladders[0]})
    logging.getLogger("rm_server.access").setLevel(logging.INFO)
    logging.basicConfig(format="%(message)s")
    run_server(registry, settings)


def run_server(registry: Registry, settings: Settings) -> None:
    """Serve until interrupted; one line on standard output when the first request can be answered.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    import uvicorn

    from rm_server.app import create_app
    from rm_server.tokens import LoopbackNames

    class Announcing(uvicorn.Server):
        """uvicorn, saying so when it listens."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            default = registry.default
            if self.started:
                print(f"finpercep: serving {default.rung} (digest {default.digest}) on {address}", flush=True)

    sys.setswitchinterval(SWITCH_SECONDS)
    with _listen(settings.host, settings.port) as listener:
        name, port = listener.getsockname()[:2]
        address = f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
        app = create_app(registry, settings)
        config = uvicorn.Config(
            LoopbackNames(app) if settings.token is None else app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=settings.drain_seconds,
        )
        Announcing(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    from finpercep.errors import ConfigError

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port} ({error.strerror}); try another --port, 0 for a free one") from error
