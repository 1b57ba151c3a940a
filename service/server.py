"""One process that serves: warm up, listen, and on SIGTERM answer what was accepted."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import math
import os
import resource
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.bundle import BundleError
from service.engines.base import EngineUnavailable
from service.guards.keys import KeysError
from service.index.base import IndexUnavailable
from service.protocol import Config, Protocol, State
from service.routes.gateway import Gateway
from service.settings import Settings
from service.stalled import reset_stalled
from service.telemetry import codecs
from service.telemetry.traces import TracesUnavailable

# What a person who starts the server is told in one line.
FAILURES = (BundleError, EngineUnavailable, IndexUnavailable, KeysError, TracesUnavailable)
BACKLOG = 2048
OWN_FILES = 512
STUCK_TICKS = 100

logger = logging.getLogger(__name__)


def run(settings: Settings, listener: socket.socket, started: Callable[[str], None]) -> None:
    """Serve on `listener` until SIGTERM or SIGINT, then answer what was accepted and return.

    Where a run of the model never ends, what was accepted is answered too; then the process ends
    with status 70, for a container's or a worker's keeper to start another.

    Args:
        settings: All of them.
        listener: Bound to its address.
        started: Called with the default model's name once requests are taken.

    Raises:
        Exception: One of `FAILURES`, if the server cannot start.
    """
    _allow_files(settings.max_connections + OWN_FILES)
    codecs.silence()
    app = create_app(settings)
    config = Config(
        settings,
        app=app,
        loop="uvloop",
        http=Protocol,
        ws="none",
        lifespan="off",
        backlog=BACKLOG,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(
            settings.header_timeout + settings.body_timeout + settings.request_timeout
        ),
    )
    server = Server(config, app, started)
    server.run([listener])
    if server.stuck:
        logging.shutdown()
        # Any other end would wait for the thread that is stuck.
        os._exit(os.EX_SOFTWARE)


class Server(uvicorn.Server):
    """uvicorn's, which drains without dropping anything.

    Attributes:
        stuck: Whether it ends because a run of the model does not.
    """

    def __init__(self, config: Config, app: FastAPI, started: Callable[[str], None]) -> None:
        super().__init__(config)
        self.server_state = self._state = State()
        self._app = app
        self._gateway: Gateway = app.state.gateway
        self._started = started
        self.stuck = False
        self._stuck_ticks = 0

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve between the application's start and its end."""
        # Not by uvicorn's lifespan, which tells of a failure by a traceback.
        async with self._app.router.lifespan_context(self._app):
            resetting = asyncio.create_task(
                reset_stalled(self._state.connections, self._gateway.settings.write_timeout)
            )
            await super().serve(sockets)
            resetting.cancel()
        if not self.stuck and self._gateway.models.stuck:
            self._tell_stuck()

    async def on_tick(self, counter: int) -> bool:
        """Whether to end, asked ten times a second."""
        # Ten seconds on end: a process that was frozen gets time to finish its runs.
        self._stuck_ticks = self._stuck_ticks + 1 if self._gateway.models.stuck else 0
        if self._stuck_ticks > STUCK_TICKS:
            self._tell_stuck()
        return await super().on_tick(counter) or self.stuck

    def _tell_stuck(self) -> None:
        self.stuck = True
        logger.critical(
            "A run of the model goes on although its answer has long been of no use: this process "
            "ends, and another should be started. What its threads do:"
        )
        faulthandler.dump_traceback()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._started(self._gateway.models.default)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop being ready, take in what has connected, answer everything, then close."""
        self._gateway.draining.set()
        self._state.draining = True
        listeners = [listener.dup() for listener in sockets or []]
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for connection in [found for listener in listeners for found in _accept_rest(listener)]:
            await loop.connect_accepted_socket(self._protocol, connection)
        await super().shutdown(sockets)

    def _protocol(self) -> Protocol:
        assert isinstance(self.config, Config)
        return Protocol(self.config, self._state, self.lifespan.state)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take a signal as the wish to end, and not raise it again after a clean end."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()


def _accept_rest(listener: socket.socket) -> list[socket.socket]:
    """Close the listener and give the connections that waited there, which would be reset."""
    connections = []
    listener.setblocking(False)
    # Without a pause: clients that ask in turn would connect as fast as they are taken in.
    with listener, contextlib.suppress(BlockingIOError):
        while True:
            connections.append(listener.accept()[0])
    return connections


def _allow_files(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
