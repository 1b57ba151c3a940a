"""EsViT: DINO's loss between views, and another between matching regions (Li et al., 2022).

for each teacher view g and student view v != g (equations 2 and 3):
view   = -sum_k p[g] log softmax(s[v] / tau_s)
j*(i)  = argmax_j cosine(z_s[v][i], z_t[g][j])      # on the backbone's tokens
region = mean over i of -sum_k p[g][j*(i)] log softmax(s[v][i] / tau_s)
loss = mean over the pairs of (view + region) / 2
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.backbone import Backbone
from training.models.heads import DINOHead
from training.objectives.base import (
    GLOBAL_CROPS,
    Losses,
    Moment,
    same_size,
)
from training.objectives.dino import distillation
from training.objectives.targets import Centering
from training.objectives.teachers import Follows, Taught


class Views(NamedTuple):
    """What a network says of crops.

    Attributes:
        embeddings: [crops, batch, dim].
        logits: [crops, batch, K].
        tokens: Of each crop, [batch, n, dim]; n differs with a crop's size.
        region_logits: Of each crop's tokens, [batch, n, K].
    """

    embeddings: Tensor
    logits: Tensor
    tokens: list[Tensor]
    region_logits: list[Tensor]


class RegionNetwork(nn.Module):
    """A backbone with one head behind the embedding and one behind every token."""

    def __init__(self, backbone: Backbone, head: DINOHead, region_head: DINOHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.region_head = region_head

    def forward(self, crops: list[Tensor], regions: bool) -> Views:
        """What the two losses compare; without `regions` only what the first one does."""
        embeddings: list[Tensor] = []
        tokens: list[Tensor] = []
        for group in same_size(crops):
            embedding, token = self.backbone.regions(torch.cat(group))
            embeddings.extend(embedding.chunk(len(group)))
            tokens.extend(token.chunk(len(group)))
        stacked = torch.stack(embeddings)
        region_logits = [self.region_head(token) for token in tokens] if regions else []
        return Views(stacked, self.head(stacked), tokens, region_logits)


class EsViT(Taught[RegionNetwork]):
    """Student and teacher agree on views and on the regions that match best.

    Args:
        backbone: With stochastic depth as the student wants it.
        head: Embedding -> logits over K prototypes.
        region_head: Token -> logits over K prototypes.
        centering: Of the views' targets.
        region_centering: Of the regions' targets.
        follows: How the teacher follows the student.
        temperature: The student's, tau_s.
        view_epochs: Epochs before the regions join in.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: DINOHead,
        region_head: DINOHead,
        centering: Centering,
        region_centering: Centering,
        follows: Follows = Follows.MOMENTUM,
        temperature: float = 0.1,
        view_epochs: int = 0,
    ) -> None:
        super().__init__(RegionNetwork(backbone, head, region_head), follows)
        self.centering = centering
        self.region_centering = region_centering
        self.temperature = temperature
        self.view_epochs = view_epochs
        self.outcomes = head.prototypes

    def last_layers(self) -> Iterator[nn.Parameter]:
        """The prototypes of both of the student's heads."""
        for head in (self.student.head, self.student.region_head):
            yield from head.last_layer.parameters()

    def forward(self, crops: list[Tensor], moment: Moment) -> Losses:
        """See `Objective`."""
        regions = moment.epoch >= self.view_epochs
        teacher: Views = self.teacher(crops[:GLOBAL_CROPS], regions)
        student: Views = self.student(crops, regions)
        log_targets = self.centering(teacher.logits.float(), moment.temperature)
        loss, measures = distillation(
            student.logits, log_targets, self.temperature, teacher.embeddings
        )
        if regions:
            logits = torch.stack(teacher.region_logits).float()
            log_regions = self.region_centering(logits, moment.temperature)
            region = region_loss(
                student, torch.stack(teacher.tokens), log_regions, self.temperature
            )
            measures["region_loss"] = region.detach()
            loss = 0.5 * loss + 0.5 * region
        return Losses(loss, measures)

    def update(self, moment: Moment) -> None:
        """Move the teacher and both centres."""
        super().update(moment)
        self.centering.update()
        if moment.epoch >= self.view_epochs:
            self.region_centering.update()


def region_loss(
    student: Views, teacher_tokens: Tensor, log_targets: Tensor, temperature: float
) -> Tensor:
    """Cross-entropy between each student region and the teacher's region most like it.

    Args:
        student: What the student says of all crops, the teacher's first.
        teacher_tokens: Of the teacher's views, [views, batch, m, dim].
        log_targets: Logarithms of its regions' distributions, [views, batch, m, K].
        temperature: tau_s.

    Returns:
        The mean over pairs, batch and student regions, in nats.
    """
    targets = log_targets.exp()
    losses = []
    for v, (tokens, logits) in enumerate(zip(student.tokens, student.region_logits, strict=True)):
        log_student = (logits.float() / temperature).log_softmax(dim=-1)
        for g, (theirs, target) in enumerate(zip(teacher_tokens, targets, strict=True)):
            if g != v:
                match = best_match(tokens, theirs).unsqueeze(-1).expand(-1, -1, target.shape[-1])
                losses.append(-(target.gather(1, match) * log_student).sum(dim=-1).mean())
    return torch.stack(losses).mean()


@torch.no_grad()
def best_match(tokens: Tensor, others: Tensor) -> Tensor:
    """j*, the index of the most similar of the others by cosine.

    Args:
        tokens: [batch, n, dim].
        others: [batch, m, dim].

    Returns:
        [batch, n].
    """
    similarity = F.normalize(tokens.float(), dim=-1) @ F.normalize(others.float(), dim=-1).mT
    return similarity.argmax(dim=-1)
