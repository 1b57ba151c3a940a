"""The batcher: images wait in one queue, and a free slot of the engine takes what waits.

There is no timer and no task of its own: `Batcher` is one structure that acts when an image arrives
and when a run ends. An idle server adds no delay, a busy one fills its batches.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np

from service.deadline import Deadline
from service.engines.base import Engine, Outputs
from service.errors import DeadlineExceeded, InvalidOption, Overloaded
from service.run_time import RunTime
from service.telemetry import metrics
from service.telemetry.record import note
from service.waiting import Image, Item, Waiting

# Runs slow down while a flood is read and refused beside them: what is accepted at the very edge
# would be too late.
CAUTION = 1.25
STUCK = 60.0  # seconds


class Batcher:
    """Feeds an engine from a bounded queue of images.

    Args:
        engine: Runs the batches; its `slots` and `max_batch` are read anew for each.
        max_queue: The most images that wait; runs in flight are not counted.

    Attributes:
        expected: How many images were admitted to be decoded, and are not submitted yet.
        batches: How many runs of each batch size were started.
        shed: How many images were refused, by reason: `closed`, `gone`, `full` or `late`.
    """

    def __init__(self, engine: Engine, max_queue: int) -> None:
        self.expected = 0
        self.batches: Counter[int] = Counter()
        self.shed: Counter[str] = Counter()
        self._engine = engine
        self._max_queue = max_queue
        self._open = False
        self._waiting = Waiting()
        # Until when somebody wants what each computes.
        self._runs: dict[asyncio.Task[None], float] = {}
        self._run_time = RunTime()

    @property
    def depth(self) -> int:
        """How many images wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many of the engine's slots are taken."""
        return len(self._runs)

    @property
    def stuck(self) -> bool:
        """Whether a run goes on for so long after anybody wanted it that it will never end."""
        now = asyncio.get_running_loop().time()
        return any(now > deadline + STUCK for deadline in self._runs.values())

    def start(self) -> None:
        """Accept images from now on."""
        self._open = True

    async def close(self) -> None:
        """Refuse new images and return when those accepted have their answers.

        And when the runs have ended, but for one that is stuck.
        """
        self._open = False
        self._dispatch()
        while self._runs and not self.stuck:
            await asyncio.wait(self._runs, timeout=1)

    @contextmanager
    def expecting(self, size: int, deadline: float) -> Iterator[None]:
        """Admit an image that will be submitted once it is decoded; it counts as one that waits.

        Args:
            size: What it will have, in bytes.
            deadline: When its answer is of no more use, in the event loop's time.

        Raises:
            Overloaded: As `admit` does.
        """
        self.admit(size, deadline, ahead=self.expected)
        self.expected += 1
        metrics.QUEUE_DEPTH.inc()
        try:
            yield
        finally:
            self.expected -= 1
            metrics.QUEUE_DEPTH.dec()

    async def submit(
        self,
        image: Image,
        outputs: tuple[str, ...],
        deadline: float,
        waited: float = 0.0,
    ) -> Outputs:
        """Run one image, uint8 [height, width, 3], in whatever batch it fits.

        Args:
            image: Stays unchanged until the answer is there.
            outputs: Names of the outputs wanted.
            deadline: When the answer is of no more use, in the event loop's time.
            waited: Seconds that it waited already for its turn to be decoded.

        Returns:
            The outputs asked for, without a batch axis.

        Raises:
            Overloaded: The queue is full, too slow for the deadline, or not open, or what runs
                the model is gone.
            DeadlineExceeded: The answer was not there by `deadline`.
            Exception: Whatever the engine raised for this image alone.
        """
        self.admit(image.size, deadline)
        item = Item(image, outputs, deadline)
        item.queued -= waited
        self._waiting.add(item)
        # Not at once: what arrives in the same turn of the loop may share the batch.
        asyncio.get_running_loop().call_soon(self._dispatch)
        try:
            async with Deadline(deadline):
                answer = await item.answer
            note("queue", item.queued, item.started)
            note("infer", item.started, time.perf_counter())
            return answer
        finally:
            self._waiting.discard(item)

    def admit(self, size: int, deadline: float, ahead: int = 0) -> None:
        """Refuse an image that would not be answered in time.

        Args:
            size: Of the image, in bytes.
            deadline: When its answer is of no more use, in the event loop's time.
            ahead: How many images of this size will be submitted before it.

        Raises:
            Overloaded: The queue is full, too slow for the deadline, or not open, or what runs
                the model is gone.
        """
        if not self._open:
            self._count_shed("closed")
            raise Overloaded("The server is starting or draining; try another.", retry_after=1)
        if not self._engine.ready:
            self._count_shed("gone")
            raise Overloaded("What runs the model is gone; try again.", retry_after=1)
        waiting = len(self._waiting) + ahead
        pixels = size * (ahead + 1) + self._waiting.pixels
        runs = math.ceil((waiting + 1) / self._engine.max_batch)
        seconds = max(self._run_time(pixels, runs) / self._engine.slots, self._run_time(size))
        if waiting >= self._max_queue:
            self._count_shed("full")
            raise Overloaded(
                f"The queue is full: {self._max_queue} images wait; try again later.",
                retry_after=math.ceil(seconds) or 1,
            )
        # The head of the queue is always tried: only further runs correct an estimate that is too
        # high, so one slow run must not shut the door for good.
        if waiting and asyncio.get_running_loop().time() + CAUTION * seconds > deadline:
            self._count_shed("late")
            raise Overloaded(
                f"{waiting} images wait, and this one would take about {seconds:.1f} s, "
                "which is past its deadline; try again later or allow more time.",
                retry_after=math.ceil(seconds) or 1,
            )

    def _count_shed(self, reason: str) -> None:
        self.shed[reason] += 1
        metrics.SHED.labels(reason).inc()

    def _dispatch(self) -> None:
        """Fill the free slots."""
        loop = asyncio.get_running_loop()
        while len(self._runs) < self._engine.slots:
            batch = self._waiting.take(self._engine.max_batch, loop.time())
            if not batch:
                return
            run = loop.create_task(self._run(batch))
            self._runs[run] = max(item.deadline for item in batch)
            run.add_done_callback(partial(self._finished, batch))

    def _finished(self, batch: list[Item], run: asyncio.Task[None]) -> None:
        del self._runs[run]
        if run.cancelled() or run.exception():
            for item in batch:
                item.fail(Overloaded("The run was stopped; try again.", retry_after=1))
        self._dispatch()

    async def _run(self, batch: list[Item]) -> None:
        """Answer each item of a batch; of one that fails, run each half, down to the guilty."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        batch = [item for item in batch if item.wanted(started)]
        if not batch:
            return
        self.batches[len(batch)] += 1
        metrics.BATCH_SIZE.observe(len(batch))
        try:
            images = (
                np.stack([item.image for item in batch]) if len(batch) > 1 else batch[0].image[None]
            )
            outputs = tuple(dict.fromkeys(name for item in batch for name in item.outputs))
            with metrics.INFERENCE_SECONDS.time():
                lone = not (self.expected or self._waiting or len(self._runs) > 1)
                left = max(item.deadline for item in batch) - loop.time()
                limit = left if math.isfinite(left) else None
                arrays = await self._engine.infer(images, outputs, lone=lone, limit=limit)
            answers = [
                {name: arrays[name][row] for name in item.outputs} for row, item in enumerate(batch)
            ]
        except (Overloaded, DeadlineExceeded, InvalidOption) as error:
            # No one image is at fault: the halves would fare no better.
            for item in batch:
                item.fail(error)
            return
        except Exception as error:
            if len(batch) == 1:
                batch[0].fail(error)
                return
            middle = len(batch) // 2
            await self._run(batch[:middle])
            await self._run(batch[middle:])
            return
        self._run_time.observe(images.size, loop.time() - started)
        for item, answer in zip(batch, answers, strict=True):
            item.succeed(answer)
