"""Which images a batch holds and how they are drawn: the same for every loader.

That depends on the seed, the epoch and the step alone, on neither the number of workers or
processes nor on what ran before, so a resumed run sees the batches that the interrupted one would
have seen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from training.data.crops import CropConfig
from training.data.sources import DataError, Source, Unreadable
from training.data.views import numbers

TRIES = 100
"""Images that may stand in for an unreadable one, one after the other."""

log = logging.getLogger(__name__)
T = TypeVar("T")


class Plan:
    """Which images are in a process's share of each batch, and how their crops are drawn.

    Args:
        source: The images.
        config: Their crops.
        batch_size: Images in a batch, of all processes together.
        seed: Seed of the order and of the crops.
        rank: Number of this process, from 0.
        world: Number of processes; rank r takes the images r, r + world, ... of every batch.

    Raises:
        DataError: There are fewer images than one batch holds, or no equal shares of it.
    """

    def __init__(
        self, source: Source, config: CropConfig, batch_size: int, seed: int, rank: int, world: int
    ) -> None:
        self.source, self.config, self.batch_size, self.seed = source, config, batch_size, seed
        self.share = slice(rank, None, world)
        self.steps = len(source) // batch_size
        if self.steps == 0:
            raise DataError(
                f"{source.name} holds {len(source)} images, fewer than one batch of {batch_size}; "
                "lower batch_size"
            )
        if batch_size % world:
            raise DataError(
                f"batch_size is {batch_size}, no multiple of the {world} processes; change either"
            )

    def images(self, epoch: int) -> NDArray[np.int64]:
        """This process's images in the order of an epoch, [steps, share of a batch]."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.source))
        batches = order[: self.steps * self.batch_size].reshape(self.steps, self.batch_size)
        return batches[:, self.share]

    def numbers(self, epoch: int, step: int) -> NDArray[np.float64]:
        """This process's share of the random numbers of a step."""
        # From 1, because NumPy takes a seed that ends in 0 for the one without it: the order's.
        random = np.random.default_rng((self.seed, epoch, step + 1))
        return numbers(self.config, self.batch_size, random)[self.share]


def readable(
    source: Source, index: int, seed: tuple[int, ...], load: Callable[[int], T]
) -> tuple[T, dict[str, str]]:
    """Load an image or, where it cannot be read, another one that the seed decides.

    Returns:
        What `load` gives, and why each image that was tried before cannot be read.

    Raises:
        DataError: `TRIES` others cannot be read either.
    """
    faults: dict[str, str] = {}
    random = None
    for _ in range(1 + TRIES):
        try:
            return load(index), faults
        except Unreadable as error:
            faults[source.title(index)] = str(error)
            random = random or np.random.default_rng((*seed, index))
            index = int(random.integers(len(source)))
    title, fault = faults.popitem()
    raise DataError(
        f"{source.name} holds hardly a readable image: {1 + TRIES} drawn in a row are none, "
        f"the last being {title}: {fault}"
    )


def report(faults: dict[str, str], known: dict[str, str]) -> None:
    """Log what is not yet `known`, and add it."""
    for title, fault in faults.items():
        if title not in known:
            known[title] = fault
            log.warning(
                "%s: %s; another image takes its place (%d so far)", title, fault, len(known)
            )
