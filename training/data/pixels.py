"""From decoded pixels to what a backbone takes in."""

from __future__ import annotations

import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalise(images: Tensor) -> Tensor:
    """uint8 [batch, height, width, 3] -> float32 [batch, 3, height, width].

    Values in [0, 1] lose ImageNet's mean and are divided by its deviation.
    """
    mean = 255.0 * torch.tensor(MEAN, device=images.device).view(3, 1, 1)
    std = 255.0 * torch.tensor(STD, device=images.device).view(3, 1, 1)
    return (images.permute(0, 3, 1, 2).float() - mean) / std
