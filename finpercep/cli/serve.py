"""`finpercep serve`: the reward as an HTTP server."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rm_server.registry import Registry
    from rm_server.settings import Settings


def serve(
    model: Annotated[Path | None, typer.Option(help="Folder of a ladder; the packaged one when absent.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (default 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (default 8000); 0 picks a free one.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda[:i].")] = None,
) -> None:
    """Serve a reward model over HTTP. Prints its address when it is ready; options may also come as FINPERCEP_PORT, ….

    Example: finpercep serve --port 8000, then: curl -F image=@photo.png http://127.0.0.1:8000/score
    """
    from pydantic import ValidationError

    from data_synth.device import resolve_device
    from finpercep.errors import ConfigError, MissingExtraError
    from finpercep.predictor import load_predictors, packaged_model_folder

    try:
        from rm_server.registry import Registry
        from rm_server.settings import Settings
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "fastapi", "server") from error
    given: dict[str, Any] = {"model": model, "host": host, "port": port, "device": device}
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        fault = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}, got {fault['input']!r}") from error
    predictors = load_predictors(settings.model or packaged_model_folder(), resolve_device(settings.device))
    run_server(Registry(predictors), settings)


def run_server(registry: Registry, settings: Settings) -> None:
    """Serve until interrupted; one line on standard output when the first request can be answered.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    import uvicorn

    from rm_server.app import create_app

    class Announcing(uvicorn.Server):
        """uvicorn, saying so when it listens."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            default = registry.default
            if self.started:
                print(f"finpercep: serving {default.rung} (digest {default.digest}) on {address}", flush=True)

    with _listen(settings.host, settings.port) as listener:
        name, port = listener.getsockname()[:2]
        address = f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
        config = uvicorn.Config(create_app(registry, settings), log_level="warning", access_log=False)
        Announcing(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    from finpercep.errors import ConfigError

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port} ({error.strerror}); try another --port, 0 for a free one") from error
