"""MoCo-v2: tell an image's other view from a queue of other images (Chen et al., 2020).

The loss is taken in both directions between the global crops, as MoCo-v3 does.
"""

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
    deviation,
)
from training.objectives.teachers import Follows, Taught


class MoCo(Taught[Network[ProjectionHead]]):
    """Queries of the student find their key of the teacher among the queue's.

    Args:
        backbone: With stochastic depth as the student wants it.
        head: Embedding -> projection [batch, width].
        width: Of the projection.
        queue: Number of keys that are kept as negatives.
        follows: How the teacher follows the student.
        temperature: Of the contrast.
    """

    queue: Tensor

    def __init__(
        self,
        backbone: Backbone,
        head: ProjectionHead,
        width: int,
        queue: int = 65536,
        follows: Follows = Follows.MOMENTUM,
        temperature: float = 0.2,
    ) -> None:
        super().__init__(Network(backbone, head), follows)
        self.temperature = temperature
        self.register_buffer("queue", F.normalize(torch.randn(queue, width), dim=1))
        self._keys: list[Tensor] = []

    def forward(self, crops: list[Tensor], moment: Moment) -> Losses:
        """See `Objective`."""
        embeddings, projections = self.teacher(crops[:GLOBAL_CROPS])
        keys = F.normalize(projections.float(), dim=-1)
        _, projections = self.student(crops)
        queries = F.normalize(projections.float(), dim=-1)
        self._keys.append(keys)
        pairs = [
            contrast(query, key, self.queue, self.temperature)
            for g, key in enumerate(keys)
            for v, query in enumerate(queries)
            if v != g
        ]
        return Losses(torch.stack(pairs).mean(), {"deviation": deviation(embeddings)})

    def update(self, moment: Moment) -> None:
        """Move the teacher; the newest keys take the oldest ones' places."""
        super().update(moment)
        keys = torch.cat(self._keys, dim=1)
        self._keys.clear()
        newest = torch.cat([distributed.gather(view) for view in keys])
        self.queue.copy_(torch.cat([newest, self.queue])[: len(self.queue)])


def contrast(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """InfoNCE (He et al., "Momentum Contrast", 2020, equation 1), in nats.

    Args:
        queries: Of unit length, [batch, width].
        keys: Of the same images, of unit length, [batch, width].
        negatives: Keys of other images, of unit length, [queue, width].
        temperature: tau.
    """
    positive = (queries * keys).sum(dim=1, keepdim=True)
    scores = torch.cat([positive, queries @ negatives.T], dim=1) / temperature
    first = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
    return F.cross_entropy(scores, first)
