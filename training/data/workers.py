"""Worker processes that prepare batches, kept from epoch to epoch."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from threading import Thread
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from training.data.plan import Plan, readable, report
from training.data.sources import DataError
from training.data.views import Numbers

Image = TypeVar("Image")
Batch = TypeVar("Batch")

MOST = 16
"""Workers of a process, unless it is told otherwise: each keeps two batches in memory."""


def usual_count(device: torch.device) -> int:
    """How many workers keep a device busy.

    A CPU that trains has no cores to spare, so one works ahead there. A GPU's process leaves them
    all its cores but one; processes that `torchrun` starts on a machine share the cores out.
    """
    if device.type == "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(max(cores - 1, 1), MOST)


class Workers(Generic[Image, Batch]):
    """Prepares a process's shares of the batches ahead of time, in order.

    Args:
        plan: Which images they hold.
        image: What a worker makes of an image, given its random numbers and its place in the
            source; raises `Unreadable` where another image must stand in.
        batch: What it makes of these, given the batch's random numbers.
        count: Processes; 0 does it all in this one.
        pinned: Hand over tensors in memory that a GPU can copy from on its own.

    Attributes:
        unreadable: Why each image that turned up unreadable so far is so, by title.
    """

    def __init__(
        self,
        plan: Plan,
        image: Callable[[Numbers, int], Image],
        batch: Callable[[list[Image], Numbers], Batch],
        count: int,
        pinned: bool = False,
    ) -> None:
        self.unreadable: dict[str, str] = {}
        self._order = _Order(plan.steps)
        self._loader = DataLoader(
            _Steps(plan, image, batch),
            batch_size=None,
            sampler=self._order,
            num_workers=count,
            worker_init_fn=_end_by_the_parent_alone,
            persistent_workers=count > 0,
            pin_memory=pinned,
            # Of its own: a loader that starts draws a number, which the resumed run's stochastic
            # depth would miss.
            generator=torch.Generator(),
        )

    def epoch(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """The batches of an epoch from `first_step` on.

        Raises:
            DataError: Hardly an image is readable.
        """
        self._order.epoch, self._order.first = epoch, first_step
        # The workers start here and not where the first batch is wanted, in another thread maybe:
        # a process that a pool's thread has forked waits for that thread as it ends, and fails.
        return self._batches(iter(self._loader))

    def _batches(
        self, reading: Iterator[tuple[Batch, dict[str, str]] | DataError]
    ) -> Iterator[Batch]:
        for prepared in reading:
            if isinstance(prepared, DataError):
                raise prepared
            batch, faults = prepared
            report(faults, self.unreadable)
            yield batch


def _end_by_the_parent_alone(worker: int) -> None:
    """Leave a SIGTERM that all processes of a run are sent to the one that saves it.

    A worker that died of it would raise an error there, in the middle of a save maybe. One that
    ignored its parent's, too, would keep it from ending.
    """
    # macOS has no such call, and nothing that signals more than a process.
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_await_the_parents_signal, daemon=True).start()


def _await_the_parents_signal() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class _Order(Sampler[tuple[int, int]]):
    """The steps that are asked for next, each with its epoch, for workers know of none."""

    def __init__(self, steps: int) -> None:
        self.epoch, self.first, self.steps = 0, 0, steps

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        return ((epoch, step) for step in range(self.first, self.steps))


class _Steps(Dataset[tuple[Batch, dict[str, str]] | DataError], Generic[Image, Batch]):
    """A run's batches by epoch and step, with what could not be read."""

    def __init__(
        self,
        plan: Plan,
        image: Callable[[Numbers, int], Image],
        batch: Callable[[list[Image], Numbers], Batch],
    ) -> None:
        self.plan, self.image, self.batch = plan, image, batch
        self.epoch = -1

    def __getitem__(self, key: tuple[int, int]) -> tuple[Batch, dict[str, str]] | DataError:
        # An error that is raised in a worker arrives as its traceback.
        try:
            return self._prepare(*key)
        except DataError as error:
            return error

    def _prepare(self, epoch: int, step: int) -> tuple[Batch, dict[str, str]]:
        plan = self.plan
        if epoch != self.epoch:
            self.epoch, self.images = epoch, plan.images(epoch)
        uniform = plan.numbers(epoch, step)
        loaded: list[Image] = []
        faults: dict[str, str] = {}
        for index, own in zip(self.images[step].tolist(), uniform, strict=True):
            load = partial(self.image, own)
            image, more = readable(plan.source, index, (plan.seed, epoch), load)
            loaded.append(image)
            faults |= more
        return self.batch(loaded, uniform), faults
