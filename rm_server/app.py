"""The HTTP application: routes, bodies and statuses. The work is in `pictures` and `tensors`, on the thread of `worker`."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile

from finpercep.errors import WireError
from finpercep.reward import RewardWeights
from finpercep.wire import (
    TENSOR_MEDIA_TYPE,
    WIRE_HEADER,
    WIRE_VERSION,
    ModelReply,
    ScoreReply,
    Timing,
    decode_request,
    encode_response,
)
from rm_server.body_limit import BodyLimit
from rm_server.pictures import MapKind, as_item, assess_pictures, decode_picture
from rm_server.refusal import Refusal, refuse_single
from rm_server.registry import Registry, model_id
from rm_server.settings import Settings
from rm_server.tensors import respond, score_images
from rm_server.worker import Worker

HEADERS = {WIRE_HEADER: str(WIRE_VERSION)}
DEFAULTS = RewardWeights()
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ScoreOptions(BaseModel):
    """Query parameters of ``POST /score`` for pictures; a safetensors message carries its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rung: str | None = Field(default=None, description="Rung by name or digest; the finest when absent.")
    map: MapKind = Field("none", description="Picture of the map: png (16-bit grey, 65535 = 1.0), heatmap or overlay.")
    w_score: Weight = Field(DEFAULTS.score, description="Weight of the score in the reward.")
    w_max: Weight = Field(DEFAULTS.max, description="Weight of 1 − max_degradation in the reward.")
    w_mean: Weight = Field(DEFAULTS.mean, description="Weight of 1 − mean_degradation in the reward.")

    top_fraction: float = Field(DEFAULTS.top_fraction, gt=0, le=1, description="Share of pixels whose mean is max_degradation.")

    @property
    def weights(self) -> RewardWeights:
        """The reward's weights."""
        return RewardWeights(self.w_score, self.w_max, self.w_mean, self.top_fraction)


class _Service:
    """What the routes share: rungs, limits and the inference thread."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self.registry = registry
        self.settings = settings
        self.worker = Worker()

    async def score(self, request: Request, options: ScoreOptions) -> Response:
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind == TENSOR_MEDIA_TYPE:
            if request.query_params:
                raise Refusal(400, "a safetensors message carries its options in its metadata; leave the query away")
            return await self._score_tensors(await request.body())
        if kind == "multipart/form-data":
            return await self._score_pictures(await self._uploads(request), options)
        if kind.startswith("image/"):
            return await self._score_pictures([await request.body()], options)
        raise Refusal(
            415,
            f"content type must be multipart/form-data with fields 'image', image/* or {TENSOR_MEDIA_TYPE}, "
            f"got {kind or 'none'}; try: curl -F image=@photo.png URL/score",
        )

    async def _uploads(self, request: Request) -> list[bytes]:
        async with request.form(max_files=self.settings.max_images, max_fields=8) as form:
            bodies = []
            for name, value in form.multi_items():
                if name != "image" or not isinstance(value, UploadFile):
                    received = f"a file {name!r}" if isinstance(value, UploadFile) else f"a text {name!r}"
                    raise Refusal(400, f"multipart fields must be files named 'image' (curl -F image=@photo.png), got {received}")
                bodies.append(await value.read())
        if not bodies:
            raise Refusal(400, "multipart body must have at least one file named 'image', got none")
        return bodies

    async def _score_pictures(self, bodies: list[bytes], options: ScoreOptions) -> Response:
        predictor = self.registry.get(options.rung)
        begun = time.perf_counter()
        pictures = [await asyncio.to_thread(decode_picture, body, self.settings.max_pixels) for body in bodies]
        batch_ms = (time.perf_counter() - begun) * 1000
        job = functools.partial(assess_pictures, predictor, pictures, options.weights, options.map)
        done = await self.worker.run(job)
        refuse_single(done.result)
        timing = Timing(queue_ms=done.queue_ms, batch_ms=batch_ms, compute_ms=done.compute_ms)
        reply = ScoreReply(items=tuple(as_item(one) for one in done.result), model=model_id(predictor), timing=timing)
        return Response(reply.model_dump_json(), media_type="application/json", headers=HEADERS)

    async def _score_tensors(self, body: bytes) -> Response:
        begun = time.perf_counter()
        request = await asyncio.to_thread(decode_request, body)
        if len(request) > self.settings.max_images:
            raise Refusal(413, f"a request must have at most {self.settings.max_images} images, got {len(request)}")
        predictor = self.registry.get(request.rung)
        batch_ms = (time.perf_counter() - begun) * 1000
        done = await self.worker.run(functools.partial(score_images, predictor, request, self.settings.max_pixels))
        refuse_single(done.result)
        timing = Timing(queue_ms=done.queue_ms, batch_ms=batch_ms, compute_ms=done.compute_ms)
        reply = await asyncio.to_thread(lambda: encode_response(respond(predictor, request, done.result, timing)))
        return Response(reply, media_type=TENSOR_MEDIA_TYPE, headers=HEADERS)


def create_app(registry: Registry, settings: Settings) -> FastAPI:
    """The application over ready rungs. Errors are ``{"detail": "one sentence"}``."""
    service = _Service(registry, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.worker.close()

    app = FastAPI(title="finpercep reward server", lifespan=lifespan)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(WireError, _malformed)
    app.add_exception_handler(RequestValidationError, _bad_query)
    app.add_exception_handler(Exception, _failed)

    @app.post("/score", response_model=ScoreReply, openapi_extra=_SCORE_BODIES)
    async def score(request: Request, options: Annotated[ScoreOptions, Query()]) -> Response:
        """Score one picture or several."""
        return await service.score(request, options)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the server is up."""
        return {"status": "ok"}

    @app.get("/model")
    async def model(response: Response) -> ModelReply:
        """Which rungs are served."""
        response.headers.update(HEADERS)
        return registry.describe()

    return app


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FILES = {"type": "object", "properties": {"image": {"type": "array", "items": _BINARY["schema"]}}, "required": ["image"]}
_SCORE_BODIES = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": {"schema": _FILES}, "image/*": _BINARY, TENSOR_MEDIA_TYPE: _BINARY},
    }
}


def _sentence(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"detail": sentence}, status_code=status, headers=HEADERS)


def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)
    return _sentence(error.status, str(error))


def _malformed(_: Request, error: Exception) -> JSONResponse:
    return _sentence(422, str(error))


def _bad_query(_: Request, error: Exception) -> JSONResponse:
    """FastAPI's list of complaints as one sentence about the first."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    field = ".".join(str(part) for part in fault["loc"])
    return _sentence(422, f"{field}: {fault['msg']}, got {fault.get('input')!r}")


def _failed(_: Request, __: Exception) -> JSONResponse:
    return _sentence(500, "the server failed on this request; its log says why")
