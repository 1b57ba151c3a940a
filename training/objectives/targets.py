"""From a teacher's logits to target distributions that use all prototypes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training import distributed

SINKHORN_ROUNDS = 3


class Centering(nn.Module):
    """Subtracts a running mean of the logits and sharpens (Caron et al., 2021, equation 4).

    The mean moves in `update`, once a step, by all logits seen since the last one on all processes.

    Args:
        outcomes: Width K of the logits.
        momentum: m_C, the share of the centre that stays.
    """

    center: Tensor

    def __init__(self, outcomes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(outcomes))
        self._means: list[Tensor] = []

    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """[..., K] -> logarithms of the targets, [..., K]."""
        return (self.centered(logits) / temperature).log_softmax(dim=-1)

    def centered(self, logits: Tensor) -> Tensor:
        """[..., K] -> the logits less the centre, which will take them in."""
        self._means.append(logits.flatten(0, -2).mean(dim=0))
        return logits - self.center

    def update(self) -> None:
        """Move the centre."""
        batch = distributed.mean(torch.stack(self._means).mean(dim=0))
        self._means.clear()
        self.center.lerp_(batch, 1.0 - self.momentum)


class SinkhornKnopp(nn.Module):
    """Shares a view's images out evenly among the prototypes (Caron et al., 2020, equation 3)."""

    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """[views, batch, K] -> logarithms of the targets, [views, batch, K]."""
        return torch.stack([log_sinkhorn(view / temperature) for view in logits])

    def update(self) -> None:
        """Nothing is carried from step to step."""


def log_sinkhorn(scores: Tensor) -> Tensor:
    """Scale exp(scores) until every prototype has one share and every image sums to one.

    Three rounds over the images of all processes, in logarithms, so that no temperature overflows.

    Args:
        scores: Logits over temperature, [batch, K].
    """
    everywhere = distributed.gather(scores)
    for _ in range(SINKHORN_ROUNDS):
        everywhere = everywhere - everywhere.logsumexp(dim=0, keepdim=True)
        everywhere = everywhere - everywhere.logsumexp(dim=1, keepdim=True)
    return everywhere[distributed.rank() :: distributed.world()]
