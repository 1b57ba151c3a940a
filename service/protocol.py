"""HTTP on one connection: uvicorn's protocol with the limits that it lacks.

uvicorn waits for ever for headers that trickle in, and reads them however long they grow. Here a
timer runs whenever a connection owes us a request, headers are bounded, and more than so many
connections are answered 503. When the server drains, a connection is not closed under a request
that may be on its way. A request to upgrade the connection is answered as if it were none.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import httptools
import orjson
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.errors import (
    FovealError,
    HeadersTimeout,
    HeadersTooLarge,
    MalformedRequest,
    Overloaded,
)
from service.routes.problems import MEDIA_TYPE, render
from service.settings import Settings
from service.telemetry import metrics
from service.telemetry.middleware import OTHER, Telemetry, request_id, tell_of_refusal

LINGER = 1.0  # seconds
PROBES = (b"/livez", b"/readyz", b"/metrics")


class Config(uvicorn.Config):
    """uvicorn's, with ours beside it."""

    def __init__(self, settings: Settings, **options: Any) -> None:
        super().__init__(**options)
        self.settings = settings
        self.refuse_crowd = Telemetry(_refuse_crowd, access_log=settings.access_log, traces=None)


class State(ServerState):
    """What all connections of a server share."""

    draining = False


class Protocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        config: Config,
        server_state: State,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._settings = config.settings
        self._refuse_crowd = config.refuse_crowd
        self._state = server_state
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._refusal: FovealError | None = None
        self._in_headers = False
        self._begun = 0  # requests that begin in this read
        self._earlier = 0  # bytes of these headers that came in reads before this one
        self._read = 0  # bytes of this read

    @property
    def idle(self) -> bool:
        """Whether no request is being read or answered."""
        answered = self.cycle is None or self.cycle.response_complete
        return answered and not self._in_headers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request soon."""
        super().connection_made(transport)
        self._start_timer()
        if self._state.draining:
            self.shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, within the limits."""
        if self._refusal:
            return
        self._read = len(data)
        self._begun = 0
        was_idle = self.idle
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal or MalformedRequest("This is not HTTP/1.1."))
        if self._in_headers:
            # Of a read that holds other requests as well, only what is this one's.
            shared = self._begun > 1 or (self._begun == 1 and not was_idle)
            self._earlier = self._header_bytes() if shared else self._earlier + len(data)
            if self._earlier > self._settings.max_header_bytes:
                self._refuse(self._too_large())
        answered = self.cycle is None or self.cycle.response_complete
        # uvicorn stops its own timer when bytes come, even those of a body that nobody reads.
        if answered and self.timeout_keep_alive_task is None:
            self._start_timer()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_headers = True
        self._begun += 1
        self._earlier = 0

    def on_headers_complete(self) -> None:
        """Hand the request on, unless its headers are too large or there are too many."""
        self._in_headers = False
        self._stop_timer()
        limit = self._settings.max_header_bytes
        # The exact sum is taken only where it matters: most requests come in one small read.
        if self._earlier + self._read > limit and self._header_bytes() > limit:
            self._refusal = self._too_large()
            raise self._refusal
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                self._refusal = MalformedRequest("This is no proxy: CONNECT leads nowhere.")
                raise self._refusal
            return  # It comes again, as a request like any other.
        crowded = len(self.connections) > self._settings.max_connections
        # An orchestrator that hears 503 from /livez would restart a server that is merely busy.
        refused = crowded and not self.url.startswith(PROBES)
        self.app = self._refuse_crowd if refused else self.config.loaded_app
        super().on_headers_complete()
        if self._state.draining:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """Close once what is under way, or may be, is answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(LINGER, self._close_if_idle)

    def _parse(self, data: bytes | memoryview) -> None:
        """Parse what came, where no request is one to upgrade the connection.

        Behind the headers of such a request the parser stops, and takes the body for the next
        request. So it is told of it again without the header, which may be ignored (RFC 9110, 7.8).
        """
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as stop:
                (size,) = stop.args
                data = memoryview(data)[size:]
                self.parser.feed_data(self._head_without_upgrade())
            else:
                return

    def _head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _should_upgrade(self) -> bool:
        # uvicorn asks this of requests to upgrade alone, and leaves them to whoever would do it.
        return True

    def _close_if_idle(self) -> None:
        if self.idle:
            self.transport.close()

    def _start_timer(self) -> None:
        if self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self._settings.header_timeout, self._out_of_time)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _out_of_time(self) -> None:
        self._timer = None
        if self._in_headers:
            seconds = self._settings.header_timeout
            self._refuse(HeadersTimeout(f"The headers took longer than {seconds:g} s, the limit."))
        else:
            self.transport.close()

    def _header_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _too_large(self) -> HeadersTooLarge:
        limit = self._settings.max_header_bytes
        return HeadersTooLarge(f"Path and headers have more than {limit} bytes, the limit.")

    def _refuse(self, error: FovealError) -> None:
        """Answer outside of the application, and close when the client has heard it."""
        self._refusal = error
        self._stop_timer()
        if self.transport.is_closing():
            return
        unanswered = self.cycle is not None and not self.cycle.response_complete
        if unanswered and (self.pipeline or not self.cycle.more_body):
            # Whole requests came before: they are answered, and the last answer says it is that.
            self.cycle.keep_alive = False
            return
        scope = {
            "method": self.parser.get_method().decode() if self.url else OTHER,
            "raw_path": self.url.partition(b"?")[0] or b"-",
            "client": self.client,
            "headers": self.headers,
        }
        name = request_id(scope)
        if unanswered:
            # Its application waits for a body that has gone wrong, and will tell of it itself.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        else:
            access_log = self._settings.access_log
            tell_of_refusal(scope, name, error.status, access_log=access_log)
        body = orjson.dumps(error.problem())
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
            f"content-type: {MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\n"
            f"x-request-id: {name}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        # Closed at once, a connection on which bytes arrive is reset and the answer may be lost.
        self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.close)


async def _refuse_crowd(scope: Scope, receive: Receive, send: Send) -> None:
    metrics.SHED.labels("connections").inc()
    error = Overloaded("Too many connections are open; reuse one or try another.", retry_after=1)
    answer = render(error, scope["path"])
    answer.headers["Connection"] = "close"
    await answer(scope, receive, send)
