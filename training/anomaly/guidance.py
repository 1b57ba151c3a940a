"""Where the augmentations are told to look: the attention itself, or chance for comparison."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Generator, Tensor


class Guidance(StrEnum):
    """What stands in the place of the attention map.

    Chance is the control: the same augmentations with the same probabilities anywhere.
    """

    ATTENTION = "attention"
    CHANCE = "chance"

    def __call__(self, attention: Tensor, generator: Generator) -> Tensor:
        """[batch, heads, rows, columns] -> a map of the same shape."""
        if self is Guidance.ATTENTION:
            return attention
        shape, device = attention.shape, attention.device
        return torch.rand(shape, device=device, generator=generator).to(attention.dtype)
