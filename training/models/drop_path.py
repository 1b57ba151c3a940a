"""Stochastic depth: a block is skipped for some of the samples while training.

Source: Huang et al., "Deep Networks with Stochastic Depth" (2016).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training import distributed


class DropPath(nn.Module):
    """Leaves the residual of some samples out and scales the others up, in training only.

    Numbers are drawn for the whole batch of all processes and each takes its own share, images
    rank, rank + world, ... of it: with the same generator state everywhere, a run draws the same
    numbers however many processes it has.

    Args:
        rate: Probability that a sample's residual is left out.

    Raises:
        ValueError: The rate is not in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop path {rate} is not in [0, 1)")
        self.rate = rate

    def forward(self, residual: Tensor) -> Tensor:
        """[batch, ...] -> the same shape."""
        if not self.training or self.rate == 0.0:
            return residual
        world = distributed.world()
        numbers = torch.rand(len(residual) * world, device=residual.device)
        numbers = numbers[distributed.rank() :: world]
        factors = (numbers >= self.rate).to(residual.dtype) / (1.0 - self.rate)
        return residual * factors.view(-1, *[1] * (residual.ndim - 1))

    def extra_repr(self) -> str:
        """The rate, where the model is printed."""
        return f"{self.rate:g}"


def growing_rates(last: float, depth: int) -> list[float]:
    """The rate of each block, from 0 at the first to `last`, in equal steps."""
    return [last * i / max(depth - 1, 1) for i in range(depth)]
