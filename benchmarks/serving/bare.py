"""No server at all: what the cores can do when nothing stands between images and model.

    python -m benchmarks.serving.bare BUNDLE BATCH SECONDS

One thread a core, each with a single-threaded session, decodes, preprocesses and runs batches.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.serving import images
from benchmarks.serving.load import read
from service.bundle import Bundle
from service.images import Limits, View, prepare

BATCHES = (1, 2, 8)
CORES = len(os.sched_getaffinity(0))
LIMITS = Limits(bytes=2**24, pixels=2**24, patches=2**12)


@dataclass(frozen=True)
class Speed:
    """Images a second, and seconds of processor time an image."""

    rate: float
    cpu: float


def measure(bundle: Bundle, batch: int, seconds: float) -> Speed:
    """Run the loop in a process of its own, as the servers run in theirs."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving.bare", bundle.path, str(batch), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    return Speed(**json.loads(done.stdout))


def best_batch(bundle: Bundle, seconds: float) -> tuple[int, dict[int, float]]:
    """The quickest of `BATCHES`, and images a second at each."""
    rates = {batch: round(measure(bundle, batch, seconds).rate, 2) for batch in BATCHES}
    return max(rates, key=lambda batch: rates[batch]), rates


class Loop:
    """Threads that work until told to stop, and count."""

    def __init__(self, bundle: Bundle, batch: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._sessions = [
            ort.InferenceSession(bundle.graph, options, providers=["CPUExecutionProvider"])
            for _ in range(CORES)
        ]
        self._spec = bundle.manifest.input
        self._batch = batch
        self._images = read(images.written())
        self._done = [0] * CORES
        self._stopped = False

    @property
    def done(self) -> int:
        """Images so far."""
        return sum(self._done)

    def run(self, seconds: float) -> Speed:
        """Work for a second to warm up, then for `seconds` that count."""
        threads = [threading.Thread(target=self._work, args=(core,)) for core in range(CORES)]
        for thread in threads:
            thread.start()
        time.sleep(min(1.0, seconds))
        started, cpu, done = time.perf_counter(), time.process_time(), self.done
        time.sleep(seconds)
        elapsed = time.perf_counter() - started
        done, cpu = self.done - done, time.process_time() - cpu
        self._stopped = True
        for thread in threads:
            thread.join()
        return Speed(done / elapsed, cpu / done)

    def _work(self, core: int) -> None:
        number = core
        while not self._stopped:
            pixels = []
            for _ in range(self._batch):
                data = self._images[number % len(self._images)]
                pixels.append(prepare(data, self._spec, View(), LIMITS))
                number += CORES
            self._sessions[core].run(["embedding"], {"images": np.stack(pixels)})
            self._done[core] += self._batch


def main() -> None:
    path, batch, seconds = sys.argv[1:]
    speed = Loop(Bundle.load(Path(path)), int(batch)).run(float(seconds))
    json.dump({"rate": speed.rate, "cpu": speed.cpu}, sys.stdout)


if __name__ == "__main__":
    main()
