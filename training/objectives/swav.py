"""SwAV: predict one view's code from another (equation 2).

Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments"
(2020).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from training.models.backbone import Backbone
from training.models.heads import DINOHead
from training.objectives.base import (
    GLOBAL_CROPS,
    Losses,
    Moment,
    Network,
    Objective,
)
from training.objectives.dino import distillation
from training.objectives.targets import SinkhornKnopp


class SwAV(Objective):
    """The student's own scores, shared out evenly, are its targets; there is no teacher.

    Args:
        backbone: The network.
        head: Embedding -> scores against K prototypes of unit length.
        temperature: Of the scores, tau.
        epsilon: Of the codes; lower is sharper.
    """

    def __init__(
        self, backbone: Backbone, head: DINOHead, temperature: float = 0.1, epsilon: float = 0.05
    ) -> None:
        super().__init__()
        self.student = Network(backbone, head)
        self.codes = SinkhornKnopp()
        self.temperature = temperature
        self.epsilon = epsilon
        self.outcomes = head.prototypes

    @property
    def backbone(self) -> Backbone:
        """The student's."""
        return self.student.backbone

    def last_layers(self) -> Iterator[nn.Parameter]:
        """The prototypes."""
        yield from self.student.head.last_layer.parameters()

    def forward(self, crops: list[Tensor], moment: Moment) -> Losses:
        """See `Objective`."""
        embeddings, scores = self.student(crops)
        log_codes = self.codes(scores[:GLOBAL_CROPS].detach().float(), self.epsilon)
        return distillation(scores, log_codes, self.temperature, embeddings[:GLOBAL_CROPS])
