"""DINO: self-distillation with no labels (Caron et al., 2021, Algorithm 1).

for crops in loader:                     # 2 global crops first, then the local ones
t = teacher(crops[:2])               # [2, batch, K], no gradient
s = student(crops)                   # [views, batch, K]
p = softmax((t - C) / tau_t)
loss = mean over g, v != g of -sum_k p[g] log softmax(s[v] / tau_s)
C = m_C C + (1 - m_C) mean(t)
update(student); teacher = m teacher + (1 - m) student
"""

from __future__ import annotations

import copy
import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.models.heads import DINOHead

GLOBAL_CROPS = 2


class Losses(NamedTuple):
    """The loss, which has a gradient, and the teacher's mean entropy in nats, which tells collapse.

    An entropy near ln K means a uniform teacher, near 0 one that gives every image one answer.
    """

    loss: Tensor
    teacher_entropy: Tensor


class Network(nn.Module):
    """A backbone and its head."""

    def __init__(self, backbone: nn.Module, head: DINOHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, crops: list[Tensor]) -> Tensor:
        """Batches of crops -> logits [crops, batch, K]; neighbours of one size run as one batch."""
        groups = itertools.groupby(crops, key=lambda crop: crop.shape)
        embeddings = [self.backbone(torch.cat(list(group))) for _, group in groups]
        logits: Tensor = self.head(torch.cat(embeddings)).unflatten(0, (len(crops), -1))
        return logits


class DINO(nn.Module):
    """Student, teacher and centre.

    Args:
        backbone: Images -> embedding [batch, dim], with stochastic depth as the student wants it.
        head: Embedding -> logits [batch, K].
        student_temperature: tau_s.
        center_momentum: m_C.
    """

    center: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: DINOHead,
        student_temperature: float = 0.1,
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.student = Network(backbone, head)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.student_temperature = student_temperature
        self.center_momentum = center_momentum
        self.register_buffer("center", torch.zeros(head.prototypes))

    def train(self, mode: bool = True) -> DINO:
        """The teacher never drops a path, whatever the student does."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, crops: list[Tensor], teacher_temperature: float) -> Losses:
        """One pass over the crops of a batch; moves the centre after the loss.

        Args:
            crops: Normalised crops, each [batch, 3, side, side], the two global ones first.
            teacher_temperature: tau_t of this step.
        """
        with torch.no_grad():
            teacher = self.teacher(crops[:GLOBAL_CROPS]).float()
        student = self.student(crops).float()
        losses = dino_loss(
            student, teacher, self.center, self.student_temperature, teacher_temperature
        )
        self.center.lerp_(teacher.mean(dim=(0, 1)), 1.0 - self.center_momentum)
        return losses

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Move the teacher's parameters towards the student's; buffers are not averaged."""
        pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
        for teacher, student in pairs:
            teacher.lerp_(student, 1.0 - momentum)


def dino_loss(
    student: Tensor,
    teacher: Tensor,
    center: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> Losses:
    """Cross-entropy between every teacher view and every other student view.

    Args:
        student: Logits [views, batch, K], the two global views first.
        teacher: Logits [2, batch, K].
        center: Centre of the teacher's logits, [K].
        student_temperature: tau_s.
        teacher_temperature: tau_t.
    """
    log_student = (student / student_temperature).log_softmax(dim=-1)
    log_target = ((teacher - center) / teacher_temperature).log_softmax(dim=-1)
    target = log_target.exp()
    views, batch = student.shape[:2]
    # A target meets the sum of all student views but its own: one product instead of one a pair.
    others = log_student.sum(dim=0) - log_student[:GLOBAL_CROPS]
    pairs = GLOBAL_CROPS * (views - 1)
    loss = -(target * others).sum() / (pairs * batch)
    entropy = -(target * log_target).sum() / (GLOBAL_CROPS * batch)
    return Losses(loss, entropy)
