"""BYOL: predict what a momentum teacher says of the other view (Grill et al., 2020, equation 2)."""

from __future__ import annotations

from torch import Tensor

from training.models.backbone import Backbone
from training.models.heads import ProjectionHead
from training.objectives.base import (
    GLOBAL_CROPS,
    Losses,
    Moment,
    Network,
    deviation,
)
from training.objectives.dino import squared_distance
from training.objectives.teachers import Follows, Taught


class BYOL(Taught[Network[ProjectionHead]]):
    """The student's prediction approaches the teacher's projection, both at unit length.

    Args:
        backbone: With stochastic depth as the student wants it.
        head: Projection and predictor; the teacher goes without the latter.
        follows: How the teacher follows the student.
    """

    def __init__(
        self, backbone: Backbone, head: ProjectionHead, follows: Follows = Follows.MOMENTUM
    ) -> None:
        super().__init__(Network(backbone, head), follows)

    def forward(self, crops: list[Tensor], moment: Moment) -> Losses:
        """See `Objective`."""
        embeddings, targets = self.teacher(crops[:GLOBAL_CROPS])
        _, predictions = self.student(crops)
        loss = squared_distance(predictions.float(), targets.float())
        return Losses(loss, {"deviation": deviation(embeddings)})
