"""DINO: self-distillation with no labels (Caron et al., 2021, Algorithm 1).

for crops in loader:                     # 2 global crops first, then the local ones
t = teacher(crops[:2])               # [2, batch, K], no gradient
s = student(crops)                   # [views, batch, K]
p = softmax((t - C) / tau_t)
loss = mean over g, v != g of -sum_k p[g] log softmax(s[v] / tau_s)
update(student); teacher = m teacher + (1 - m) student
C = m_C C + (1 - m_C) mean(t)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from training.models.backbone import Backbone
from training.models.heads import DINOHead
from training.objectives.base import (
    GLOBAL_CROPS,
    Losses,
    Moment,
    Network,
    deviation,
)
from training.objectives.targets import Centering, SinkhornKnopp
from training.objectives.teachers import Follows, Taught


class DINO(Taught[Network[DINOHead]]):
    """Student and teacher give an image's views one distribution over prototypes.

    Args:
        backbone: With stochastic depth as the student wants it.
        head: Embedding -> logits over K prototypes.
        targets: What keeps the teacher from giving every image one answer.
        follows: How the teacher follows the student.
        temperature: The student's, tau_s.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: DINOHead,
        targets: Centering | SinkhornKnopp,
        follows: Follows = Follows.MOMENTUM,
        temperature: float = 0.1,
    ) -> None:
        super().__init__(Network(backbone, head), follows)
        self.targets = targets
        self.temperature = temperature
        self.outcomes = head.prototypes

    def last_layers(self) -> Iterator[nn.Parameter]:
        """The student's prototypes."""
        yield from self.student.head.last_layer.parameters()

    def forward(self, crops: list[Tensor], moment: Moment) -> Losses:
        """See `Objective`."""
        embeddings, logits = self.teacher(crops[:GLOBAL_CROPS])
        log_targets = self.targets(logits.float(), moment.temperature)
        _, student = self.student(crops)
        return distillation(student, log_targets, self.temperature, embeddings)

    def update(self, moment: Moment) -> None:
        """Move the teacher and the centre."""
        super().update(moment)
        self.targets.update()


class DINOWithMSE(DINO):
    """DINO with squared distance for cross-entropy (Table 7, row 5).

    Outputs are brought to unit length, without which it collapses; the teacher's are centred.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: DINOHead,
        targets: Centering,
        follows: Follows = Follows.MOMENTUM,
    ) -> None:
        super().__init__(backbone, head, targets, follows)
        self.outcomes = None

    def forward(self, crops: list[Tensor], moment: Moment) -> Losses:
        """See `Objective`."""
        assert isinstance(self.targets, Centering)
        embeddings, logits = self.teacher(crops[:GLOBAL_CROPS])
        targets = self.targets.centered(logits.float())
        _, student = self.student(crops)
        loss = squared_distance(student.float(), targets)
        return Losses(loss, {"deviation": deviation(embeddings)})


def distillation(
    student: Tensor, log_targets: Tensor, temperature: float, embeddings: Tensor
) -> Losses:
    """The student's cross-entropy to the targets, with all that is to be seen of it.

    Args:
        student: Logits [views, batch, K], the target views' own first.
        log_targets: Logarithms of the distributions to match, [targets, batch, K].
        temperature: tau_s.
        embeddings: What the targets were made of, [targets, batch, dim].
    """
    loss, entropy = cross_entropy(student.float(), log_targets, temperature)
    measures = {
        "entropy": entropy,
        "kl": loss.detach() - entropy,
        "deviation": deviation(embeddings),
    }
    return Losses(loss, measures)


def cross_entropy(
    student: Tensor, log_targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Between every target view and every other student view.

    Args:
        student: Logits [views, batch, K], the target views' own first.
        log_targets: Logarithms of the distributions to match, [targets, batch, K].
        temperature: tau_s.

    Returns:
        The mean over pairs and batch, and the targets' mean entropy without a gradient, in nats.
    """
    targets = log_targets.exp()
    views, batch = student.shape[:2]
    log_student = (student / temperature).log_softmax(dim=-1)
    # A target meets the sum of all student views but its own: one product instead of one a pair.
    others = log_student.sum(dim=0) - log_student[: len(targets)]
    pairs = len(targets) * (views - 1)
    loss = -(targets * others).sum() / (pairs * batch)
    entropy = -(targets * log_targets).sum() / (len(targets) * batch)
    return loss, entropy


def squared_distance(student: Tensor, targets: Tensor) -> Tensor:
    """Between unit-length targets and every other student view, 2 - 2 cosine.

    Args:
        student: [views, batch, width], the target views' own first.
        targets: [targets, batch, width].

    Returns:
        The mean over pairs and batch.
    """
    student, targets = F.normalize(student, dim=-1), F.normalize(targets, dim=-1)
    others = student.sum(dim=0) - student[: len(targets)]
    cosine = (targets * others).sum(dim=-1) / (len(student) - 1)
    return 2.0 - 2.0 * cosine.mean()
