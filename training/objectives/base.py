"""What every objective is to the loop: a loss over crops, and an update after each step."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from training import distributed
from training.models.backbone import Backbone
from training.models.heads import Head

GLOBAL_CROPS = 2


class Moment(NamedTuple):
    """What the schedules say of one step.

    Attributes:
        temperature: The teacher's, tau_t.
        momentum: Of the teacher's average.
        epoch: Of the step, from 0.
        epoch_ends: Whether the step is the last of its epoch.
    """

    temperature: float
    momentum: float
    epoch: int
    epoch_ends: bool


class Losses(NamedTuple):
    """The loss, which has a gradient, and what else a person wants to see of a step.

    Attributes:
        loss: In nats, or in squared distance.
        measures: Numbers without a gradient. `deviation`: see `deviation`. Where targets are
            distributions also `entropy`, theirs, and `kl`, from the student to them, in nats.
    """

    loss: Tensor
    measures: dict[str, Tensor]


HeadType = TypeVar("HeadType", bound=Head)


class Network(nn.Module, Generic[HeadType]):
    """A backbone and the head that the loss is taken behind."""

    backbone: Backbone
    head: HeadType

    def __init__(self, backbone: Backbone, head: HeadType) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, crops: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Batches of crops -> embeddings [crops, batch, dim] and projections [crops, batch, K].

        Neighbours of one size run as one batch.
        """
        embeddings = torch.cat([self.backbone(torch.cat(group)) for group in same_size(crops)])
        projections = self.head(embeddings)
        views = (len(crops), -1)
        return embeddings.unflatten(0, views), projections.unflatten(0, views)


class Objective(nn.Module, ABC):
    """A student, what it learns from, and the loss between them.

    Attributes:
        outcomes: Number K of outcomes where targets are distributions.
    """

    outcomes: int | None = None

    @property
    @abstractmethod
    def backbone(self) -> Backbone:
        """The network that is evaluated and kept."""

    @abstractmethod
    def forward(self, crops: list[Tensor], moment: Moment) -> Losses:
        """One pass over the crops of a batch.

        Args:
            crops: Normalised crops, each [batch, channels, side, side], the two global ones first.
            moment: What the schedules say.
        """

    def update(self, moment: Moment) -> None:
        """Move what is not trained by gradients; once a step, after the optimiser."""

    def last_layers(self) -> Iterator[nn.Parameter]:
        """Parameters that rest in the first epochs."""
        return iter(())

    def __call__(self, *args: Any, **kwargs: Any) -> Losses:
        """`forward`, typed."""
        losses: Losses = super().__call__(*args, **kwargs)
        return losses


def same_size(crops: list[Tensor]) -> list[list[Tensor]]:
    """Neighbours of one shape together, in order."""
    return [list(group) for _, group in itertools.groupby(crops, key=lambda crop: crop.shape)]


@torch.no_grad()
def deviation(embeddings: Tensor) -> Tensor:
    """How much embeddings differ from image to image: near 1 if evenly spread, 0 if all alike.

    The standard deviation of each dimension of unit-length embeddings, averaged and multiplied by
    the root of the width (Chen & He, "Exploring Simple Siamese Representation Learning", 2021,
    section 4.1). The batch is that of all processes.

    Args:
        embeddings: [..., batch, dim].
    """
    unit = nn.functional.normalize(embeddings.float(), dim=-1)
    centred = unit - distributed.mean(unit.mean(dim=-2, keepdim=True))
    variance = distributed.mean(centred.square().mean(dim=-2))
    spread: Tensor = variance.sqrt().mean() * unit.shape[-1] ** 0.5
    return spread
