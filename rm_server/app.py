"""The HTTP application: routes, bodies and statuses. The work is in `service`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response, params
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finpercep.errors import WireError
from finpercep.wire import TENSOR_MEDIA_TYPE, WIRE_HEADER, WIRE_VERSION, ModelReply, RungReply, ScoreReply
from rm_server import tokens
from rm_server.admission import BodyGate
from rm_server.bodies import read_new_rung, read_uploads
from rm_server.observability import Observed
from rm_server.openapi import PROBLEM_REPLIES, RUNG_DOCUMENT, RUNG_REPLIES, SCORE_DOCUMENT
from rm_server.options import ScoreOptions
from rm_server.problems import GONE, KINDS, Problem, answer
from rm_server.registry import Registry
from rm_server.service import ClientGone, Service
from rm_server.settings import Settings
from rm_server.web_page import add_web_page

SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def create_app(registry: Registry, settings: Settings, service: Service | None = None) -> FastAPI:
    """The application over ready rungs. Errors are RFC 9457 problem details.

    Args:
        registry: the rungs.
        settings: limits and tokens.
        service: does the work; one of its own when None. It is closed with the application.
    """
    service = service or Service(registry, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(service.warm_up())
        yield
        warming.cancel()
        service.close()

    app = FastAPI(
        title="finpercep reward server",
        version=str(WIRE_VERSION),
        lifespan=lifespan,
        responses=PROBLEM_REPLIES,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere; `web_page` has its own
        redoc_url=None,
    )
    app.add_middleware(
        BodyGate,
        body_bytes=settings.max_body_bytes,
        house_bytes=settings.house_bytes,
        body_seconds=settings.body_seconds,
    )
    app.add_middleware(Observed, metrics=service.metrics)
    app.add_middleware(_Headers)
    _answer_errors(app)

    async def allowed(request: Request) -> None:  # async, or FastAPI asks a thread
        tokens.require(request, settings.token)

    async def administrator(request: Request) -> None:
        if settings.admin_token is None:
            raise Problem(
                "unauthorised", "this server has no admin token, so nobody may change its rungs; set FINPERCEP_ADMIN_TOKEN"
            )
        tokens.require(request, settings.admin_token)

    guarded = [Depends(allowed)]

    @app.post("/score", response_model=ScoreReply, openapi_extra=SCORE_DOCUMENT, dependencies=guarded)
    async def score(request: Request, options: Annotated[ScoreOptions, Query()]) -> Response:
        """Score one picture or several, or tensors."""
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind == TENSOR_MEDIA_TYPE:
            if request.query_params:
                raise Problem("bad-request", "a safetensors message carries its options in its metadata; leave the query away")
            return Response(await service.score_tensors(request, await request.body()), media_type=TENSOR_MEDIA_TYPE)
        reply = await service.score_pictures(request, await read_uploads(request, kind, settings.max_images), options)
        return Response(reply.model_dump_json(), media_type="application/json")

    @app.get("/model", dependencies=guarded)
    async def model() -> ModelReply:
        """Which rungs are served, and by which one an unnamed request is answered."""
        return registry.describe()

    @app.get("/rungs", dependencies=guarded)
    async def rungs() -> tuple[RungReply, ...]:
        """The rungs alone, RM_0 first."""
        return registry.describe().rungs

    @app.put("/rungs/{name}", openapi_extra=RUNG_DOCUMENT, responses=RUNG_REPLIES, dependencies=[Depends(administrator)])
    async def put_rung(name: str, request: Request) -> ModelReply:
        """Load a rung from the model root and let it take the place of the one of its name.

        It must score a canary as it should first. Requests in flight finish on the rung they began with.
        """
        new = await read_new_rung(request)  # here, not as a parameter: FastAPI would read it before it asks for the token
        await service.put_rung(name, new.source, new.digest)
        return registry.describe()

    _add_health(app, service, registry, guarded)
    add_web_page(app)
    return app


def _add_health(app: FastAPI, service: Service, registry: Registry, guarded: Sequence[params.Depends]) -> None:
    """Routes for whoever runs the server."""

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """Whether the default rung scored a canary as it should, within the last seconds."""
        if fault := await service.readiness_fault():
            raise Problem("not-ready", fault, headers={"Retry-After": "5"})
        return {"status": "ready", "rung": registry.default.rung, "digest": registry.default.digest}

    @app.get("/metrics", response_class=PlainTextResponse, dependencies=guarded)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


class _Headers:
    """Middleware: headers that every answer has."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        fixed = {WIRE_HEADER: str(WIRE_VERSION), **SECURITY}
        self._fixed = [(name.lower().encode(), value.encode()) for name, value in fixed.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *self._fixed]
            await send(message)

        await self.app(scope, receive, with_headers)


def _answer_errors(app: FastAPI) -> None:
    """Every error as problem details."""

    def handle(kind: type[Exception], make: Callable[[Any], Problem]) -> None:
        async def handler(_: Request, error: Exception) -> Response:
            return answer(make(error))

        app.add_exception_handler(kind, handler)

    async def gone(_: Request, __: Exception) -> Response:
        return Response(status_code=GONE)

    async def unrouted(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return answer(_of_status(request, error))

    for left in (ClientGone, ClientDisconnect):
        app.add_exception_handler(left, gone)
    handle(Problem, lambda error: error)
    handle(WireError, Problem.of_schema)
    handle(RequestValidationError, _bad_parameters)
    app.add_exception_handler(HTTPException, unrouted)  # anything else is `Observed`'s


def _bad_parameters(error: RequestValidationError) -> Problem:
    """The first of FastAPI's complaints."""
    fault = error.errors()[0]
    field = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        name, expected = str(fault["loc"][-1])[:80], f"one of {', '.join(ScoreOptions.model_fields)}"
        sentence = f"unknown parameter {name!r}; expected {expected}"
        return Problem("unprocessable", sentence, field=field, expected=expected, received=name)
    received = repr(fault.get("input"))[:80]
    return Problem(
        "unprocessable", f"{field}: {fault['msg']}, got {received}", field=field, expected=fault["msg"], received=received
    )


def _of_status(request: Request, error: HTTPException) -> Problem:
    """What the framework itself refuses: an unknown path, a method that is not there."""
    kind = next((kind for kind, (status, _) in KINDS.items() if status == error.status_code), "bad-request")
    path = request.scope["path"][:200]
    sentence = f"{error.detail}: {request.method} {path!r}; GET /docs describes what there is"
    return Problem(kind, sentence, received=path, headers=error.headers, status=error.status_code)
