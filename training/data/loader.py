"""Batches of crops whose content depends on the seed, the epoch and the image alone.

An image's crops never depend on the number of workers or on what ran before, so a resumed run sees
the batches that the interrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.data.crops import CropConfig, multi_crop
from training.data.sources import DataError, ImageFolder

Batch = tuple[Tensor, Tensor]


class _Crops(Dataset[Batch]):
    """The crops of every image as one epoch shows them."""

    def __init__(self, source: ImageFolder, config: CropConfig, seed: int, epoch: int) -> None:
        self.source, self.config, self.seed, self.epoch = source, config, seed, epoch

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Batch:
        random = np.random.default_rng((self.seed, self.epoch, index))
        large, small = multi_crop(self.source.image(index), self.config, random)
        return torch.from_numpy(large), torch.from_numpy(small)


class CropLoader:
    """Shuffled batches of crops, the last incomplete one dropped.

    Args:
        source: The images.
        config: Their crops.
        batch_size: Images in a batch.
        seed: Seed of the order and of the crops.
        workers: Processes that cut crops; 0 cuts them in this one.

    Raises:
        DataError: There are fewer images than one batch holds.
    """

    def __init__(
        self, source: ImageFolder, config: CropConfig, batch_size: int, seed: int, workers: int
    ) -> None:
        self.source, self.config, self.batch_size = source, config, batch_size
        self.seed, self.workers = seed, workers
        self.steps = len(source) // batch_size
        if self.steps == 0:
            raise DataError(
                f"{source.root} holds {len(source)} images, fewer than one batch of {batch_size}; "
                "lower batch_size"
            )

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Tensor]]:
        """The batches of an epoch from `first_step` on.

        Yields:
            One tensor a crop, uint8 [batch, side, side, 3], the two global ones first.
        """
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.source))
        batches = order[: self.steps * self.batch_size].reshape(self.steps, -1)[first_step:]
        loader = DataLoader(
            _Crops(self.source, self.config, self.seed, epoch),
            batch_sampler=batches.tolist(),
            num_workers=self.workers,
            # Of its own: a loader that starts draws a number, which the resumed run's stochastic
            # depth would miss.
            generator=torch.Generator(),
        )
        for large, small in loader:
            yield [*large.unbind(1), *small.unbind(1)]
