"""What operators see: Prometheus metrics, and one line of JSON a request. Never what is in an image."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rm_server.batching import Batcher, Done
from rm_server.engine import ImageResult, ImageWork, Outcome
from rm_server.problems import GONE, Problem, ReaderStalled, answer
from rm_server.registry import ServedRung

REQUEST_ID = "X-Request-ID"
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

access = logging.getLogger("rm_server.access")
log = logging.getLogger("rm_server")


class Metrics:
    """The server's metrics, in a registry of their own, so that several applications may live in one process."""

    def __init__(self, batcher: Batcher[ImageWork, ImageResult]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "finpercep_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "finpercep_request_seconds", "From the head of a request to the end of its answer.", ["route"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.received = Counter("finpercep_received_bytes", "Bytes of bodies.", registry=self.registry)
        self.sent = Counter("finpercep_sent_bytes", "Bytes of answers.", registry=self.registry)
        self.items = Counter("finpercep_items", "Images scored.", ["rung"], registry=self.registry)
        self.item_errors = Counter(
            "finpercep_item_errors", "Images without a result, by kind of problem.", ["rung", "kind"], registry=self.registry
        )
        self.queue = Histogram(
            "finpercep_queue_seconds", "An image's wait for its batch.", ["rung"], buckets=_SECONDS, registry=self.registry
        )
        self.compute = Histogram(
            "finpercep_compute_seconds", "A batch's time on the device, counted for each image in it.", ["rung"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.batch = Histogram(
            "finpercep_batch_images", "Images in the batch an image was in.", ["rung"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=self.registry,
        )  # fmt: skip
        self.swaps = Counter("finpercep_rung_swaps", "Rungs put in place of another.", ["rung"], registry=self.registry)
        depth = Gauge("finpercep_queue_images", "Images that wait for a batch.", registry=self.registry)
        depth.set_function(lambda: batcher.waiting)
        inside = Gauge("finpercep_pixels_inside", "Pixels of all requests being answered.", registry=self.registry)
        inside.set_function(lambda: batcher.pixels_inside)

    def note(self, rung: ServedRung, outcomes: Sequence[Outcome]) -> None:
        """Count the images of a request."""
        for outcome in outcomes:
            if isinstance(outcome, Done):
                self.items.labels(rung.rung).inc()
                self.queue.labels(rung.rung).observe(outcome.queue_seconds)
                self.compute.labels(rung.rung).observe(outcome.compute_seconds)
                self.batch.labels(rung.rung).observe(outcome.batch)
            else:
                assert isinstance(outcome, Problem)
                self.item_errors.labels(rung.rung, outcome.kind).inc()

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)


class Observed:
    """Middleware: gives a request an id, measures it, and logs it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, watching what goes in and out."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        begun, status, received, sent = time.perf_counter(), 0, 0, 0

        async def watched_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def watched_send(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, watched_receive, watched_send)
        except ReaderStalled as stalled:
            log.warning("%s %s: %s", scope["method"], scope["path"][:200], stalled)  # uvicorn closes the connection
        except Exception:
            log.exception("request %s failed", request_id)
            if status:
                raise  # the answer has begun: whoever reads it must not take it for whole
            failed = answer(Problem("failed", "the server failed on this request; its log says why"))
            await failed(scope, watched_receive, watched_send)
        finally:
            seconds = time.perf_counter() - begun
            route = getattr(scope.get("route"), "path", "other")
            status = status or GONE
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            self.metrics.received.inc(received)
            self.metrics.sent.inc(sent)
            line = {
                "id": request_id,
                "method": scope["method"],
                "path": scope["path"][:200],
                "status": status,
                "ms": round(seconds * 1000, 2),
                "received": received,
                "sent": sent,
                **scope.get("state", {}).get("log", {}),
            }
            access.info(json.dumps(line))
