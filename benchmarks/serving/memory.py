"""How much memory a server takes over time."""

from __future__ import annotations

import threading
import time

import numpy as np

from benchmarks.serving.process import Process

MEGABYTE = 1e6
HOUR = 3600


class Memory:
    """Resident megabytes over time, once a second, while the block lasts.

    Attributes:
        series: Pairs of seconds and megabytes.
    """

    def __init__(self, process: Process) -> None:
        self.series: list[tuple[float, float]] = []
        self._process = process
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        started = time.monotonic()
        while not self._ended.wait(1):
            seconds = time.monotonic() - started
            megabytes = self._process.memory() / MEGABYTE
            self.series.append((round(seconds, 1), round(megabytes, 1)))

    def slope(self) -> float:
        """Megabytes an hour by least squares, without the first third, in which caches fill."""
        seconds, megabytes = np.array(self.series[len(self.series) // 3 :]).T
        return float(np.polyfit(seconds, megabytes, 1)[0] * HOUR)
