"""From decoded pixels to what a backbone takes in."""

from __future__ import annotations

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
    centre, scale = (
        255.0 * torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (mean, std)
    )
    return (images.permute(0, 3, 1, 2).float() - centre) / scale
