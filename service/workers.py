"""Several processes that serve on one port, and the one that looks after them.

All accept from one socket, so that a worker that is busy leaves connections to the others, and one
that dies takes none of those that wait with it. The first must start before the others are tried:
what is wrong is then told once.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from prometheus_client.multiprocess import mark_process_dead

from service.settings import Settings
from service.telemetry import logs
from service.telemetry.metrics import MULTIPROCESS

FIRST_PAUSE = 0.5  # seconds
LONGEST_PAUSE = 30.0
STABLE = 60.0  # seconds after which a death is no longer one of a series

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Worker:
    """One place for a process.

    Attributes:
        pause: Seconds before the next one is started.
        due: When that is, if there is none.
    """

    process: SpawnProcess | None = None
    pipe: Connection | None = None
    since: float = 0.0
    pause: float = FIRST_PAUSE
    due: float = 0.0


class Workers:
    """Starts the workers, restarts those that die, and drains all on SIGTERM.

    Args:
        settings: `workers` says how many.
        listener: Bound to the address of all.
        started: Called with the default model's name once the first worker takes requests.
    """

    def __init__(
        self, settings: Settings, listener: socket.socket, started: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._started = started
        self._workers = [_Worker() for _ in range(settings.workers)]
        self._wake, self._signals = os.pipe()

    def run(self) -> int:
        """Look after the workers until SIGTERM or SIGINT; gives the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: os.write(self._signals, b"."))
        folder = tempfile.mkdtemp(prefix="foveal-metrics-")
        os.environ[MULTIPROCESS] = folder
        try:
            return self._run()
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self) -> int:
        first = self._workers[0]
        self._start(first)
        assert first.process
        assert first.pipe
        ready = wait([first.pipe, first.process.sentinel, self._wake])
        if self._wake not in ready:
            try:
                self._started(first.pipe.recv())
            except EOFError:
                first.process.join()
                return first.process.exitcode or 1
            self._look_after()
        self._drain()
        return 0

    def _look_after(self) -> None:
        while True:
            now = time.monotonic()
            for worker in self._workers:
                if worker.process is None and worker.due <= now:
                    self._start(worker)
            dues = [worker.due for worker in self._workers if worker.process is None]
            sentinels = [w.process.sentinel for w in self._workers if w.process]
            ready = wait([*sentinels, self._wake], min(dues) - now if dues else None)
            if self._wake in ready:
                return
            for worker in self._workers:
                if worker.process and worker.process.sentinel in ready:
                    self._bury(worker)

    def _start(self, worker: _Worker) -> None:
        worker.pipe, theirs = multiprocessing.Pipe()
        worker.process = multiprocessing.get_context("spawn").Process(
            target=_work, args=(self._settings, self._listener, theirs)
        )
        worker.process.start()
        worker.since = time.monotonic()
        theirs.close()

    def _bury(self, worker: _Worker) -> None:
        assert worker.process
        assert worker.pipe
        worker.process.join()
        mark_process_dead(worker.process.pid)  # type: ignore[no-untyped-call]
        worker.pipe.close()
        now = time.monotonic()
        series = now - worker.since < STABLE
        worker.pause = min(2 * worker.pause, LONGEST_PAUSE) if series else FIRST_PAUSE
        worker.due = now + worker.pause
        logger.error(
            "Worker %d died with status %s; another starts in %g s",
            worker.process.pid,
            worker.process.exitcode,
            worker.pause,
        )
        worker.process = None

    def _drain(self) -> None:
        # The last holder of the socket keeps its port open, and nobody would answer there.
        self._listener.close()
        running = [worker.process for worker in self._workers if worker.process]
        for process in running:
            process.terminate()
        for process in running:
            process.join()


def _work(settings: Settings, listener: socket.socket, pipe: Connection) -> None:
    """Be a worker."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logs.configure(settings.log_format, settings.log_level)
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    from service.server import FAILURES, run

    try:
        run(settings, listener, pipe.send)
    except FAILURES as error:
        print(f"foveal: {error}", file=sys.stderr)
        sys.exit(1)


def _end_with_parent(pipe: Connection) -> None:
    """Nothing is ever sent: what ends the wait is the end of the parent, however it came."""
    try:
        pipe.recv()
    except (EOFError, OSError):  # the latter where the parent had not read what was sent to it
        os.kill(os.getpid(), signal.SIGTERM)
