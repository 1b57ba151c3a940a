"""How an engine whose library blocks is fed: from threads, with a few images at a time."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from service.bundle import Bundle
from service.engines.base import Images, Outputs, ServerStatistics

Run = Callable[[Images, tuple[str, ...]], Outputs]

RUNS = 5  # that a median is taken of
NEARLY = 1.02  # a larger batch saves turns of the event loop, worth this much of the model's time
QUICKER = 0.8


class ThreadedEngine:
    """Runs a graph in a pool of threads.

    A processor is fed with one single-threaded run a core, which gives more images a second than
    one run over all cores; but a lone run gets all cores, so that it is answered soonest. That
    takes the graph twice, and is given up where all cores are no quicker: a small graph takes
    longer to share than to run.

    Args:
        name: Of the engine.
        precision: Of the matrix products.
        bundle: The model.
        beside: Runs images while others run.
        alone: Runs them while nothing else wants the machine.
        threads: How many runs go on at once. One more is in flight, so that a thread that has ended
            a run finds the next.
        batches: Sizes to choose `max_batch` among, ascending.
    """

    def __init__(
        self,
        name: str,
        precision: str,
        bundle: Bundle,
        *,
        beside: Run,
        alone: Run,
        threads: int,
        batches: Sequence[int],
    ) -> None:
        self.name = name
        self.precision = precision
        self.slots = threads + 1
        self._threads = threads
        self.max_batch = 1
        self._bundle = bundle
        self._beside = beside
        self._alone = alone
        self._batches = batches
        self._ready = False
        self._pool = ThreadPoolExecutor(threads, name)

    @property
    def ready(self) -> bool:
        """Whether the model is warm and not closed."""
        return self._ready

    async def infer(
        self,
        images: Images,
        outputs: tuple[str, ...],
        *,
        lone: bool = False,
        limit: float | None = None,
    ) -> Outputs:
        """Run images of one shape, uint8 [batch, height, width, 3], and give the named outputs."""
        run = self._alone if lone else self._beside
        return await asyncio.get_running_loop().run_in_executor(self._pool, run, images, outputs)

    async def warm_up(self) -> None:
        """Choose `max_batch` and run each batch size up to it once; ready afterwards."""
        self.max_batch = await best_batch(self._seconds_an_image, self._batches)
        await asyncio.get_running_loop().run_in_executor(self._pool, self._warm_up)
        self._ready = True

    async def statistics(self) -> list[ServerStatistics]:
        """None: no server runs the model."""
        return []

    async def close(self) -> None:
        """Finish the runs in flight and release the model."""
        self._ready = False
        await asyncio.to_thread(self._pool.shutdown)

    def _warm_up(self) -> None:
        if self._median(self._alone) > QUICKER * self._median(self._beside):
            self._alone = self._beside
        for run in (self._beside, self._alone):
            for size in buckets(self.max_batch):
                self._time(run, size)

    async def _seconds_an_image(self, size: int) -> float:
        """Time a run on every thread: runs that share the cores' caches slow each other."""
        loop = asyncio.get_running_loop()
        started = time.perf_counter()
        runs = (
            loop.run_in_executor(self._pool, self._time, self._beside, size)
            for _ in range(self._threads)
        )
        await asyncio.gather(*runs)
        return (time.perf_counter() - started) / (size * self._threads)

    def _median(self, run: Run) -> float:
        self._time(run, 1)  # The first run of a shape also allocates.
        return statistics.median(self._time(run, 1) for _ in range(RUNS))

    def _time(self, run: Run, size: int) -> float:
        side = self._bundle.manifest.input.crop
        images = np.zeros((size, side, side, 3), np.uint8)
        started = time.perf_counter()
        run(images, self._bundle.manifest.outputs)
        return time.perf_counter() - started


async def best_batch(
    seconds_an_image: Callable[[int], Awaitable[float]], sizes: Sequence[int]
) -> int:
    """The largest size that takes hardly longer an image than the quickest.

    Sizes are tried upwards until one is slower: on a processor, larger ones are slower still.

    Args:
        seconds_an_image: Runs batches of the given size.
        sizes: To choose among, ascending.
    """
    best, quickest = sizes[0], math.inf
    if len(sizes) == 1:
        return best
    for size in sizes:
        await seconds_an_image(size)  # The first run of a shape also allocates.
        each = statistics.median([await seconds_an_image(size) for _ in range(RUNS)])
        if each > NEARLY * quickest:
            break
        best, quickest = size, min(each, quickest)
    return best


def buckets(most: int) -> list[int]:
    """The powers of two up to `most`, itself one: the batch sizes that a graph is made ready for.

    >>> buckets(8)
    [1, 2, 4, 8]
    """
    return [1 << power for power in range(most.bit_length())]
