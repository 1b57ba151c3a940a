"""Batches of crops: cut by worker processes, or all at once where the set is kept in memory."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.data import batched, single
from training.data.crops import CropConfig
from training.data.distort import distort
from training.data.plan import Plan, readable, report
from training.data.sources import DataError, Source
from training.data.sources.picture import REDUCTIONS
from training.data.views import Numbers, boxes, distortions


class _Batch(NamedTuple):
    """What a worker hands over: the crops of each size, and what it could not read."""

    large: Tensor
    small: Tensor
    faults: dict[str, str]


class _Steps(Dataset[_Batch | DataError]):
    """The batches of one epoch."""

    def __init__(self, plan: Plan, epoch: int) -> None:
        self.plan, self.epoch, self.images = plan, epoch, plan.images(epoch)

    def __getitem__(self, step: int) -> _Batch | DataError:
        # An error that is raised in a worker arrives as its traceback.
        try:
            return self._batch(step)
        except DataError as error:
            return error

    def _batch(self, step: int) -> _Batch:
        plan = self.plan
        uniform = plan.numbers(self.epoch, step)
        cut: list[tuple[Tensor, Tensor]] = []
        faults: dict[str, str] = {}
        for index, own in zip(self.images[step].tolist(), uniform, strict=True):
            load = partial(_resized_crops, plan.source, plan.config, own)
            crops, more = readable(plan.source, index, (plan.seed, self.epoch), load)
            cut.append(crops)
            faults |= more
        large, small = (torch.stack(crops).flatten(0, 1) for crops in zip(*cut, strict=True))
        return _Batch(*_finish(large, small, plan.config, uniform), faults)


def _resized_crops(
    source: Source, config: CropConfig, uniform: Numbers, index: int
) -> tuple[Tensor, Tensor]:
    """The global and the local crops of an image, which is decoded no larger than they need."""
    picture = source.picture(index)
    drawn = boxes(config, uniform[None], np.array([picture.size]))[0]
    spare = ((drawn[:, 2:] - drawn[:, :2]).min(axis=1) / config.sides).min()
    pixels = picture.pixels(next((reduction for reduction in REDUCTIONS if reduction <= spare), 1))
    reduced = np.tile(pixels.shape[1::-1], 2) / np.tile(picture.size, 2)
    drawn, image = np.rint(drawn * reduced).astype(np.int64), torch.from_numpy(pixels)
    large = single.resized_crops(image, drawn[:2], config.global_size)
    return large, single.resized_crops(image, drawn[2:], config.local_size)


def _finish(
    large: Tensor, small: Tensor, config: CropConfig, uniform: Numbers
) -> tuple[Tensor, Tensor]:
    """Distort the crops of a batch.

    Args:
        large: The global ones, uint8 [share * 2, channels, side, side].
        small: The local ones, likewise.
        config: The crops.
        uniform: The random numbers of the batch.

    Returns:
        The same, uint8 [share, crops, side, side, channels].
    """
    drawn, share = distortions(config, uniform), len(uniform)
    distort(large, drawn[:, :2].flat())
    distort(small, drawn[:, 2:].flat())
    return (
        large.permute(0, 2, 3, 1).unflatten(0, (share, 2)),
        small.permute(0, 2, 3, 1).unflatten(0, (share, config.local_count)),
    )


class CropLoader:
    """Shuffled batches of crops cut by worker processes, the last incomplete batch dropped.

    Images that cannot be read are logged once each, and others take their places.

    Args:
        source: The images.
        config: Their crops.
        batch_size: Images in a batch, of all processes together.
        seed: Seed of the order and of the crops.
        workers: Processes that cut crops; 0 cuts them in this one.
        rank: Number of this process, from 0.
        world: Number of processes; rank r takes the images r, r + world, ... of every batch.

    Attributes:
        steps: Batches of an epoch.
        unreadable: Why each image that turned up unreadable so far is so, by title.

    Raises:
        DataError: There are fewer images than one batch holds, or no equal shares of it.
    """

    def __init__(
        self,
        source: Source,
        config: CropConfig,
        batch_size: int,
        seed: int,
        workers: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.plan = Plan(source, config, batch_size, seed, rank, world)
        self.workers, self.steps = workers, self.plan.steps
        self.unreadable: dict[str, str] = {}

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Tensor]]:
        """The batches of an epoch from `first_step` on.

        Yields:
            One tensor a crop, uint8 [share, side, side, channels], the two global ones first.

        Raises:
            DataError: Hardly an image is readable.
        """
        loader = DataLoader(
            _Steps(self.plan, epoch),
            batch_size=None,
            sampler=range(first_step, self.steps),
            num_workers=self.workers,
            # Of its own: a loader that starts draws a number, which the resumed run's stochastic
            # depth would miss.
            generator=torch.Generator(),
        )
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            report(batch.faults, self.unreadable)
            yield [*batch.large.unbind(1), *batch.small.unbind(1)]


class ResidentLoader:
    """Shuffled batches of crops, all cut at once on the device that holds the images.

    For sets that fit there decoded, each image padded to the largest. The draws are `CropLoader`'s.

    Args:
        source: The images.
        config: Their crops.
        batch_size: Images in a batch, of all processes together.
        seed: Seed of the order and of the crops.
        device: Where the images are kept and the crops are cut.
        rank: Number of this process, from 0.
        world: Number of processes; rank r takes the images r, r + world, ... of every batch.

    Attributes:
        steps: Batches of an epoch.
        unreadable: Why each unreadable image is so, by title; another is kept in its place.

    Raises:
        DataError: There are fewer images than one batch holds, no equal shares of it, or hardly an
            image is readable.
    """

    def __init__(
        self,
        source: Source,
        config: CropConfig,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.plan = Plan(source, config, batch_size, seed, rank, world)
        self.steps = self.plan.steps
        self.unreadable: dict[str, str] = {}

        def load(index: int) -> tuple[NDArray[np.uint8], dict[str, str]]:
            return readable(source, index, (seed,), lambda other: source.picture(other).pixels())

        with ThreadPoolExecutor() as pool:
            loaded = list(pool.map(load, range(len(source))))
        self.sizes = np.array([pixels.shape[1::-1] for pixels, _ in loaded])
        width, height = self.sizes.max(axis=0)
        self.images = torch.zeros(
            len(loaded), height, width, source.channels, dtype=torch.uint8, device=device
        )
        for image, (pixels, faults) in zip(self.images, loaded, strict=True):
            image[: pixels.shape[0], : pixels.shape[1]] = torch.from_numpy(pixels)
            report(faults, self.unreadable)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Tensor]]:
        """The batches of an epoch from `first_step` on.

        Yields:
            One tensor a crop, uint8 [share, side, side, channels] on the device, the two global
            ones first.
        """
        config = self.plan.config
        order = self.plan.images(epoch)
        for step in range(first_step, self.steps):
            index, uniform = order[step], self.plan.numbers(epoch, step)
            drawn = boxes(config, uniform, self.sizes[index])
            images = self.images[torch.from_numpy(index).to(self.images.device)]
            large = batched.resized_crops(images, drawn[:, :2], config.global_size)
            small = batched.resized_crops(images, drawn[:, 2:], config.local_size)
            large, small = _finish(large, small, config, uniform)
            yield [*large.unbind(1), *small.unbind(1)]
