"""Batches of crops: cut by worker processes, or all at once where the set is kept in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data import batched, single
from training.data.ahead import ahead
from training.data.crops import CropConfig
from training.data.distort import distort
from training.data.plan import Plan, readable, report
from training.data.sources import DataError, Source
from training.data.sources.picture import REDUCTIONS
from training.data.views import Numbers, boxes, distortions
from training.data.workers import Workers

ROOM = 0.5
"""Share of a device's memory that images may take; the network needs the rest."""

Pixels = NDArray[np.uint8]
Boxes = NDArray[np.int64]


def decoded(
    source: Source, config: CropConfig, uniform: Numbers, index: int
) -> tuple[Pixels, Boxes]:
    """An image, decoded no larger than its crops need, and their boxes, [crops, 4].

    Args:
        source: The images.
        config: Their crops.
        uniform: The random numbers of this image.
        index: Which one.
    """
    picture = source.picture(index)
    drawn = boxes(config, uniform[None], np.array([picture.size]))[0]
    pixels = picture.pixels(spare_reduction(drawn, config))
    return pixels, rescaled(drawn, picture.size, pixels)


def spare_reduction(drawn: Boxes, config: CropConfig) -> int:
    """By how much an image may be reduced so that none of its crops has to be enlarged for it."""
    spare = ((drawn[:, 2:] - drawn[:, :2]).min(axis=1) / config.sides).min()
    return next((reduction for reduction in REDUCTIONS if reduction <= spare), 1)


def rescaled(drawn: Boxes, size: tuple[int, ...], pixels: Pixels) -> Boxes:
    """Boxes of an image of `size` (width, height) in its reduced pixels."""
    factor = np.tile(pixels.shape[1::-1], 2) / np.tile(size, 2)
    reduced: Boxes = np.rint(drawn * factor).astype(np.int64)
    return reduced


def _resized_crops(
    source: Source, config: CropConfig, uniform: Numbers, index: int
) -> tuple[Tensor, Tensor]:
    """The global and the local crops of an image."""
    pixels, drawn = decoded(source, config, uniform, index)
    image = torch.from_numpy(pixels)
    large = single.resized_crops(image, drawn[:2], config.global_size)
    return large, single.resized_crops(image, drawn[2:], config.local_size)


def _batch(config: CropConfig, cut: list[tuple[Tensor, Tensor]], uniform: Numbers) -> list[Tensor]:
    """The distorted crops of a batch from the plain ones of its images."""
    large, small = (torch.stack(crops).flatten(0, 1) for crops in zip(*cut, strict=True))
    return finish(large, small, config, uniform)


def cut(images: Tensor, drawn: Boxes, config: CropConfig) -> tuple[Tensor, Tensor]:
    """The plain crops of images that are on the device.

    Args:
        images: uint8 [images, height, width, channels].
        drawn: The boxes, [images, crops, 4].
        config: The crops.

    Returns:
        The global and the local ones, uint8 [images * crops, channels, side, side].
    """
    large = batched.resized_crops(images, drawn[:, :2], config.global_size)
    return large, batched.resized_crops(images, drawn[:, 2:], config.local_size)


def finish(large: Tensor, small: Tensor, config: CropConfig, uniform: Numbers) -> list[Tensor]:
    """Distort the crops of a batch.

    Args:
        large: The global ones, uint8 [share * 2, channels, side, side].
        small: The local ones, likewise.
        config: The crops.
        uniform: The random numbers of the batch.

    Returns:
        One tensor a crop, uint8 [share, side, side, channels], the two global ones first.
    """
    drawn, share = distortions(config, uniform), len(uniform)
    distort(large, drawn[:, :2].flat())
    distort(small, drawn[:, 2:].flat())
    crops = [
        plain.permute(0, 2, 3, 1).unflatten(0, (share, count)).unbind(1)
        for plain, count in ((large, 2), (small, config.local_count))
    ]
    return [*crops[0], *crops[1]]


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
        self.steps = self.plan.steps
        self._workers = Workers(
            self.plan,
            partial(_resized_crops, source, config),
            partial(_batch, config),
            workers,
        )
        self.unreadable = self._workers.unreadable

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Tensor]]:
        """The batches of an epoch from `first_step` on.

        Yields:
            One tensor a crop, uint8 [share, side, side, channels], the two global ones first.

        Raises:
            DataError: Hardly an image is readable.
        """
        return self._workers.epoch(epoch, first_step)


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
        DataError: There are fewer images than one batch holds, no equal shares of it, hardly an
            image is readable, or they would take more than half of the device's memory.
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
        self.device = torch.device(device)
        self.unreadable: dict[str, str] = {}

        def load(index: int) -> tuple[NDArray[np.uint8], dict[str, str]]:
            return readable(source, index, (seed,), lambda other: source.picture(other).pixels())

        room, side = memory(self.device), np.zeros(2, np.int64)
        loaded = []
        with ThreadPoolExecutor() as pool:
            for pixels, faults in pool.map(load, range(len(source))):
                loaded.append(pixels)
                report(faults, self.unreadable)
                side = np.maximum(side, pixels.shape[:2])
                needed = len(source) * int(side.prod()) * source.channels
                if needed > ROOM * room:
                    raise DataError(
                        f"{source.name}: {len(source)} images, each padded to at least "
                        f"{side[1]} x {side[0]}, take {needed:,} bytes, and {self.device} has "
                        f"{room:,}, of which they may take half; set resident=false"
                    )
        self.sizes = np.array([pixels.shape[1::-1] for pixels in loaded])
        self.images = torch.zeros(
            len(loaded), *side.tolist(), source.channels, dtype=torch.uint8, device=device
        )
        for image, pixels in zip(self.images, loaded, strict=True):
            image[: pixels.shape[0], : pixels.shape[1]] = torch.from_numpy(pixels)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Tensor]]:
        """The batches of an epoch from `first_step` on.

        Yields:
            One tensor a crop, uint8 [share, side, side, channels] on the device, the two global
            ones first.
        """
        batches = self._batches(epoch, first_step)
        # A processor is busy enough with the step.
        return batches if self.device.type == "cpu" else ahead(batches, self.device)

    def _batches(self, epoch: int, first_step: int) -> Iterator[list[Tensor]]:
        config = self.plan.config
        order = self.plan.images(epoch)
        for step in range(first_step, self.steps):
            index, uniform = order[step], self.plan.numbers(epoch, step)
            images = self.images[torch.from_numpy(index).to(self.device)]
            drawn = boxes(config, uniform, self.sizes[index])
            yield finish(*cut(images, drawn, config), config, uniform)


def memory(device: torch.device) -> int:
    """Bytes that a GPU has free, or that the machine has at all."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
