"""SimCLR: tell an image's two views from all others of the batch (Chen et al., 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training import distributed
from training.models.backbone import Backbone
from training.models.heads import ProjectionHead
from training.objectives.base import (
    GLOBAL_CROPS,
    Losses,
    Moment,
    Network,
    Objective,
    deviation,
)


class SimCLR(Objective):
    """The two global crops of an image attract, those of different images repel each other.

    Args:
        backbone: The network.
        head: Embedding -> projection.
        temperature: Of the contrast, tau.
    """

    def __init__(self, backbone: Backbone, head: ProjectionHead, temperature: float = 0.1) -> None:
        super().__init__()
        self.student = Network(backbone, head)
        self.temperature = temperature

    @property
    def backbone(self) -> Backbone:
        """The student's."""
        return self.student.backbone

    def forward(self, crops: list[Tensor], moment: Moment) -> Losses:
        """See `Objective`."""
        embeddings, projections = self.student(crops[:GLOBAL_CROPS])
        first, second = F.normalize(projections.float(), dim=-1)
        loss = nt_xent(distributed.gather(first), distributed.gather(second), self.temperature)
        return Losses(loss, {"deviation": deviation(embeddings.detach())})


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy (equation 1), in nats.

    Args:
        first: One view of each image, of unit length, [batch, width].
        second: The other view, [batch, width].
        temperature: tau.
    """
    views = torch.cat([first, second])
    scores = views @ views.T / temperature
    scores.fill_diagonal_(-torch.inf)
    partner = torch.arange(len(views), device=views.device).roll(len(first))
    return F.cross_entropy(scores, partner)
