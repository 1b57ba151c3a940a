"""Anomaly maps: how far each patch is from all normal ones, or what a detector says of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


class PatchDensity:
    """Distance of a patch to its nearest neighbours among normal patches.

    The cosine distance, averaged over the neighbours: the memory bank of PatchCore (Roth et al.,
    2022) with a random sample in the place of its core set.

    Args:
        normal: Patch features of normal images, [n, dim].
        generator: Draws the sample; on the device of `normal`.
        size: Number of patches kept.
        neighbours: Number of neighbours.
    """

    def __init__(
        self, normal: Tensor, generator: Generator, size: int = 8000, neighbours: int = 3
    ) -> None:
        order = torch.randperm(len(normal), generator=generator, device=normal.device)
        self.bank = F.normalize(normal[order[:size]], dim=1)
        self.neighbours = min(neighbours, len(self.bank))

    def __call__(self, patches: Tensor) -> Tensor:
        """[batch, rows, columns, dim] -> distances [batch, rows, columns], 0 to 2."""
        similarity = F.normalize(patches, dim=-1).flatten(0, -2) @ self.bank.T
        nearest = similarity.topk(self.neighbours, dim=1).values.mean(dim=1)
        return 1.0 - nearest.view(patches.shape[:-1])


def windowed(
    score: Callable[[Tensor], Tensor], images: Tensor, side: int, patch: int, overlap: int
) -> Tensor:
    """The map of images larger than the ones that a network was trained on.

    Windows of the training size slide over the image; where they overlap, maps are averaged.

    Args:
        score: Images [n, channels, side, side] -> maps [n, side / patch, side / patch].
        images: [batch, channels, height, width], both sides a multiple of the patch.
        side: Of a window, in pixels, a multiple of the patch.
        patch: Side of a patch in pixels.
        overlap: Least overlap of neighbouring windows, in pixels, a multiple of the patch.

    Returns:
        [batch, height / patch, width / patch].

    Raises:
        ValueError: An image is smaller than a window, or no multiple of the patch.
    """
    batch, _, height, width = images.shape
    if min(height, width) < side or height % patch or width % patch:
        raise ValueError(
            f"images are {height} x {width} pixels; both sides must be multiples of {patch} and "
            f"at least {side}: resize them"
        )
    total = images.new_zeros(batch, height // patch, width // patch)
    count = torch.zeros_like(total)
    step = side - overlap
    for y, x in itertools.product(starts(height, side, step), starts(width, side, step)):
        rows = slice(y // patch, (y + side) // patch)
        columns = slice(x // patch, (x + side) // patch)
        total[:, rows, columns] += score(images[:, :, y : y + side, x : x + side])
        count[:, rows, columns] += 1
    return total / count


def starts(length: int, side: int, step: int) -> list[int]:
    """Where windows begin: every `step`, and one that ends at the edge."""
    return [*range(0, length - side, step), length - side]


def image_scores(maps: Tensor, share: float = 0.02) -> Tensor:
    """One score an image: the mean of the greatest `share` of its map, at least one patch.

    Args:
        maps: [batch, rows, columns].
        share: Of the patches.
    """
    patches = maps.flatten(1)
    return patches.topk(max(1, round(share * patches.shape[1])), dim=1).values.mean(dim=1)
