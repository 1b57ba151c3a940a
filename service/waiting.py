"""The images that wait for a run of the model, and those who wait for their answers."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.engines.base import Outputs
from service.telemetry import metrics

Image = NDArray[np.uint8]


@dataclass(eq=False, slots=True)
class Item:
    """An image in the queue or in a run, and the future that its waiter awaits.

    Attributes:
        image: uint8 [height, width, 3].
        outputs: Names of the outputs wanted.
        deadline: When the answer is of no more use, in the event loop's time.
        answer: Gets it.
        queued: When it came.
        started: When its run began.
    """

    image: Image
    outputs: tuple[str, ...]
    deadline: float
    answer: asyncio.Future[Outputs] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    # By the finer clock: uvloop's own counts in milliseconds.
    queued: float = field(default_factory=time.perf_counter)
    started: float = 0.0

    def wanted(self, now: float) -> bool:
        """Whether anybody still waits for the answer."""
        return not self.answer.done() and now < self.deadline

    def succeed(self, answer: Outputs) -> None:
        """Answer, if anybody still waits."""
        if not self.answer.done():
            self.answer.set_result(answer)

    def fail(self, error: Exception) -> None:
        """Answer with an error, if anybody still waits."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Waiting:
    """A queue that an item also leaves in the middle, when nobody waits for it any more.

    Attributes:
        pixels: Of all images, times 3. Kept, and not summed each time: a full queue must not make
            the next refusal slower.
    """

    def __init__(self) -> None:
        self.pixels = 0
        self._items: dict[Item, None] = {}

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: Item) -> None:
        """Put an item at the end."""
        self._items[item] = None
        self.pixels += item.image.size
        metrics.QUEUE_DEPTH.inc()

    def discard(self, item: Item) -> None:
        """Take an item out, if it is there."""
        if item in self._items:
            del self._items[item]
            self.pixels -= item.image.size
            metrics.QUEUE_DEPTH.dec()

    def take(self, most: int, now: float) -> list[Item]:
        """Take out what waits of the head's shape, in order of arrival, without what nobody wants.

        Args:
            most: The most items that are taken.
            now: In the event loop's time.
        """
        batch: list[Item] = []
        unwanted: list[Item] = []
        for item in self._items:
            if len(batch) == most:
                break
            if not item.wanted(now):
                unwanted.append(item)
            elif not batch or item.image.shape == batch[0].image.shape:
                batch.append(item)
        for item in (*unwanted, *batch):
            self.discard(item)
        started = time.perf_counter()
        for item in batch:
            item.started = started
            metrics.QUEUE_SECONDS.observe(started - item.queued)
        return batch
