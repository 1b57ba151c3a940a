"""Which patches were damaged: the network that the paper's second stage trains."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from training.models.backbone import Backbone


class Detector(nn.Module):
    """A backbone and one linear unit on each of its patches.

    Args:
        backbone: Trained further along with the unit.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.unit = nn.Linear(backbone.dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [batch, channels, height, width] -> logits [batch, rows, columns]."""
        logits: Tensor = self.unit(self.backbone.features(images).patches)
        return logits.squeeze(-1)


def detection_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy with the damaged share of each patch, both [batch, rows, columns]."""
    return F.binary_cross_entropy_with_logits(logits.float(), mask.float())
