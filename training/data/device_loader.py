"""Batches of crops that a GPU cuts itself, while worker processes do no more than decode."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from training.data.ahead import ahead
from training.data.crops import CropConfig
from training.data.loader import (
    Boxes,
    Pixels,
    cut,
    decoded,
    finish,
    rescaled,
    spare_reduction,
)
from training.data.plan import Plan
from training.data.sources import Source
from training.data.views import Numbers
from training.data.workers import Workers

TOGETHER = 2**27
"""Values of the images that are padded to one size and cut together; this takes 2 GB or so."""


class Decoded(NamedTuple):
    """A batch as the workers hand it over.

    Attributes:
        pixels: Of all images one after the other, uint8, none padded.
        sizes: Width and height of each, [share, 2].
        boxes: Of the crops, [share, crops, 4].
        uniform: The random numbers, [share, crops, 36].
    """

    pixels: Tensor
    sizes: Tensor
    boxes: Tensor
    uniform: Tensor


class DeviceLoader:
    """Shuffled batches of crops, cut on the device of what worker processes decode.

    The draws are `CropLoader`'s, and so is what happens to images that cannot be read. A batch is
    copied and cut while the step before it is done.

    Args:
        source: The images.
        config: Their crops.
        batch_size: Images in a batch, of all processes together.
        seed: Seed of the order and of the crops.
        workers: Processes that decode; 0 decodes in this one.
        device: Where the crops are cut.
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
        device: torch.device | str,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.plan = Plan(source, config, batch_size, seed, rank, world)
        self.steps, self.device = self.plan.steps, torch.device(device)
        self._workers = Workers(
            self.plan,
            partial(_small_enough, source, config),
            _flat,
            workers,
            pinned=self.device.type == "cuda",
        )
        self.unreadable = self._workers.unreadable

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Tensor]]:
        """The batches of an epoch from `first_step` on.

        Yields:
            One tensor a crop, uint8 [share, side, side, channels] on the device, the two global
            ones first.

        Raises:
            DataError: Hardly an image is readable.
        """
        batches = self._workers.epoch(epoch, first_step)
        return ahead(map(self._crops, batches), self.device)

    def _crops(self, batch: Decoded) -> list[Tensor]:
        config, channels = self.plan.config, self.plan.source.channels
        pixels = batch.pixels.to(self.device, non_blocking=True)
        sizes, boxes, uniform = batch.sizes.numpy(), batch.boxes.numpy(), batch.uniform.numpy()
        images = [
            flat.view(height, width, channels)
            for flat, (width, height) in zip(
                pixels.split((sizes.prod(axis=1) * channels).tolist()), sizes.tolist(), strict=True
            )
        ]
        share, large, small = len(sizes), config.global_size, config.local_size
        crops = (
            pixels.new_empty(share, 2, channels, large, large),
            pixels.new_empty(share, config.local_count, channels, small, small),
        )
        for part in together(sizes, TOGETHER // channels):
            width, height = sizes[part].max(axis=0).tolist()
            padded = pixels.new_zeros(len(part), height, width, channels)
            for place, row in zip(padded, part, strict=True):
                place[: sizes[row, 1], : sizes[row, 0]] = images[row]
            for kind, some in zip(crops, cut(padded, boxes[part], config), strict=True):
                kind[part] = some.view(len(part), *kind.shape[1:])
        return finish(crops[0].flatten(0, 1), crops[1].flatten(0, 1), config, uniform)


def _small_enough(
    source: Source, config: CropConfig, uniform: Numbers, index: int
) -> tuple[Pixels, Boxes]:
    """An image that is no larger than its crops need, whatever its format, and their boxes."""
    pixels, drawn = decoded(source, config, uniform, index)
    by = spare_reduction(drawn, config)
    if by == 1:
        return pixels, drawn
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    smaller = F.interpolate(planes, scale_factor=1 / by, mode="bilinear", antialias=True)[0]
    reduced = smaller.permute(1, 2, 0).contiguous().numpy()
    return reduced, rescaled(drawn, pixels.shape[1::-1], reduced)


def _flat(images: list[tuple[Pixels, Boxes]], uniform: Numbers) -> Decoded:
    return Decoded(
        torch.from_numpy(np.concatenate([pixels.ravel() for pixels, _ in images])),
        torch.tensor([pixels.shape[1::-1] for pixels, _ in images]),
        torch.from_numpy(np.stack([boxes for _, boxes in images])),
        torch.from_numpy(uniform),
    )


def together(sizes: NDArray[np.int64], most: int) -> list[list[int]]:
    """Which images to pad to one size, like heights together.

    Args:
        sizes: Width and height of each image, [images, 2].
        most: Pixels that they may have together when padded; a larger image is alone.

    Returns:
        The rows of `sizes` in groups.
    """
    groups: list[list[int]] = []
    side = sizes[:0].max(axis=0, initial=0)
    for row in sizes[:, 1].argsort(kind="stable").tolist():
        larger = np.maximum(side, sizes[row])
        if not groups or (len(groups[-1]) + 1) * larger.prod() > most:
            groups.append([])
            larger = sizes[row]
        groups[-1].append(row)
        side = larger
    return groups
