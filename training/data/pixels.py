"""From decoded pixels to what a backbone takes in."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalise(images: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """uint8 [batch, height, width, channels] -> float32 [batch, channels, height, width].

    Values in [0, 1] lose the mean and are divided by the deviation; the defaults are ImageNet's.

    Args:
        images: The pixels.
        mean: Of each channel, or one for all.
        std: Deviation of each channel, or one for all.

    Raises:
        ValueError: The channels differ in number.
    """
    channels = images.shape[-1]
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ValueError(
                f"{name} has {len(values)} values and the images have {channels} channels; "
                "give one, or one for each"
            )
    centre, scale = (_levels(tuple(values), images.device) for values in (mean, std))
    return (images.permute(0, 3, 1, 2).float() - centre) / scale


@functools.cache
def _levels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Shares of 1 as levels of 255, [values, 1, 1]; made once, for a GPU waits for each copy."""
    return (255.0 * torch.tensor(values).view(-1, 1, 1)).to(device)
