"""What surrounds every request: its id, its timings, its metric, its trace and its log line."""

from __future__ import annotations

import logging
import os
import re
import time

from prometheus_client import Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.telemetry import metrics
from service.telemetry.record import Record, current
from service.telemetry.traces import Traces

ACCEPTED_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
OTHER = "_OTHER"  # OpenTelemetry's name for any other
NO_ANSWER = 499  # nginx's name for a client that went away

access = logging.getLogger("foveal.access")
logger = logging.getLogger(__name__)


class Telemetry:
    """The outermost layer of the application.

    Every answer bears `X-Request-Id`, the client's own where it is sane, and `Server-Timing`.

    Args:
        app: What answers.
        access_log: Whether each request is worth a line in the log.
        traces: Where spans go, if anywhere.
    """

    def __init__(self, app: ASGIApp, *, access_log: bool, traces: Traces | None) -> None:
        self._app = app
        self._access_log = access_log
        self._traces = traces
        self._durations: dict[tuple[str, str, int], Histogram] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and tell of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        record = Record(request_id(scope))
        current.set(record)
        span = self._traces.start(scope, record) if self._traces else None
        status = NO_ANSWER

        async def respond(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", record.id.encode()),
                    (b"server-timing", _server_timing(record, time.perf_counter() - started)),
                ]
            await send(message)

        try:
            await self._app(scope, receive, respond)
        except Exception:
            # Starlette has answered 500 by now and leaves it to others to tell of it.
            logger.exception("%s %s failed", scope["method"], _route(scope))
        finally:
            seconds = time.perf_counter() - started
            route, method = _route(scope), _method(scope)
            self._duration(method, route, status).observe(seconds)
            if self._traces and span:
                self._traces.end(span, record, method, route, status)
            if self._access_log:
                _log(scope, record, route, status, seconds)

    def _duration(self, method: str, route: str, status: int) -> Histogram:
        # The library's own look-up costs more than the observation.
        labels = (method, route, status)
        child = self._durations.get(labels)
        if child is None:
            child = self._durations[labels] = metrics.REQUESTS.labels(*labels)
        return child


def request_id(scope: Scope) -> str:
    """The client's own id where it is sane, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and ACCEPTED_ID.fullmatch(value):
            return str(value, "ascii")
    return os.urandom(16).hex()


def tell_of_refusal(scope: Scope, name: str, status: int, *, access_log: bool) -> None:
    """Tell of a request that was answered before the application heard of it.

    The time of a request runs from the end of its headers, so it is none here.

    Args:
        scope: `method`, `raw_path` and `client`.
        name: Its id.
        status: Of the answer.
        access_log: Whether each request is worth a line in the log.
    """
    metrics.REQUESTS.labels(_method(scope), "unknown", status).observe(0)
    if access_log:
        token = current.set(record := Record(name))
        _log(scope, record, "unknown", status, 0)
        current.reset(token)


def _method(scope: Scope) -> str:
    """The method, of which there are few."""
    return scope["method"] if scope["method"] in METHODS else OTHER


def _server_timing(record: Record, total: float) -> bytes:
    stages = record.durations() | {"total": total}
    return ", ".join([f"{name};dur={1000 * s:.3f}" for name, s in stages.items()]).encode()


def _route(scope: Scope) -> str:
    """The template of the route, of which there are few, and never the path."""
    if "route" in scope:
        template: str = scope["route"].path
        return template
    if scope.get("root_path"):
        return f"{scope['root_path']}/{{path}}"
    return scope["path"] if "endpoint" in scope else "unknown"


def _log(scope: Scope, record: Record, route: str, status: int, seconds: float) -> None:
    client = scope.get("client")
    fields = {
        "method": scope["method"],
        "path": scope["raw_path"].decode("latin-1"),
        "route": route,
        "status": status,
        "seconds": round(seconds, 6),
        "images": record.images,
        "client": client[0] if client else None,
        "key": record.key,
        "stages": {name: round(s, 6) for name, s in record.durations().items()},
    }
    access.info(
        "%(method)s %(path)s %(status)d in %(seconds).6f s", fields, extra={"fields": fields}
    )
