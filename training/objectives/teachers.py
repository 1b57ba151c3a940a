"""The networks that a student may learn from (Caron et al., 2021, Figure 6)."""

from __future__ import annotations

import copy
from enum import StrEnum
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from training.models.backbone import Backbone
from training.models.drop_path import DropPath
from training.models.heads import Head
from training.objectives.base import Moment, Objective


class Follows(StrEnum):
    """How a teacher follows its student."""

    MOMENTUM = "momentum"
    PREVIOUS_ITERATION = "previous_iteration"
    PREVIOUS_EPOCH = "previous_epoch"
    STUDENT_COPY = "student_copy"


class Teacher(nn.Module):
    """A copy of the student that no gradient reaches.

    It stays in training mode with its student, so that batch normalisation sees the batch as the
    student's does, but never drops a path and has no predictor. Parameters follow; buffers are
    its own.
    """

    def __init__(self, student: nn.Module, follows: Follows) -> None:
        super().__init__()
        self.follows = follows
        self.network = copy.deepcopy(student).requires_grad_(False)
        for module in self.network.modules():
            if isinstance(module, DropPath):
                module.rate = 0.0
            if isinstance(module, Head):
                module.predictor = nn.Identity()
        # What the student was before the step that `update` comes after.
        self.earlier = (
            copy.deepcopy(self.network) if follows is Follows.PREVIOUS_ITERATION else None
        )

    @property
    def backbone(self) -> Backbone:
        """The network's."""
        backbone = self.network.backbone
        assert isinstance(backbone, Backbone)
        return backbone

    @torch.no_grad()
    def forward(self, *args: Any) -> Any:
        """What the network says of the crops."""
        return self.network(*args)

    @torch.no_grad()
    def update(self, student: nn.Module, moment: Moment) -> None:
        """Follow the student, whose step has just been done."""
        match self.follows:
            case Follows.MOMENTUM:
                follow(self.network, student, moment.momentum)
            case Follows.STUDENT_COPY:
                follow(self.network, student, 0.0)
            case Follows.PREVIOUS_EPOCH if moment.epoch_ends:
                follow(self.network, student, 0.0)
            case Follows.PREVIOUS_ITERATION:
                assert self.earlier is not None
                follow(self.network, self.earlier, 0.0)
                follow(self.earlier, student, 0.0)


StudentType = TypeVar("StudentType", bound=nn.Module)


class Taught(Objective, Generic[StudentType]):
    """A student that learns from a teacher, which follows it and is kept.

    Args:
        student: With stochastic depth and a predictor as it wants them.
        follows: How the teacher follows.
    """

    student: StudentType

    def __init__(self, student: StudentType, follows: Follows) -> None:
        super().__init__()
        self.student = student
        self.teacher = Teacher(student, follows)

    @property
    def backbone(self) -> Backbone:
        """The teacher's."""
        return self.teacher.backbone

    def update(self, moment: Moment) -> None:
        """Move the teacher."""
        self.teacher.update(self.student, moment)


def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """theta_t = m theta_t + (1 - m) theta_s, all parameters in a few fused operations."""
    leading = dict(student.named_parameters())
    pairs = [(parameter, leading[name]) for name, parameter in teacher.named_parameters()]
    ours, theirs = map(list, zip(*pairs, strict=True))
    get_ema_multi_avg_fn(momentum)(ours, theirs, 0)
