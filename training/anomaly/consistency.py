"""DINO whose student sees masked views: the paper's pre-training.

a, t = teacher(views)                    # attention over each view, and logits
s = student(mask_patches(views, a))
loss = mean over g != v of -sum_k softmax((t[g] - C) / tau_t) log softmax(s[v] / tau_s)

Source: Bozorgtabar & Mahapatra (AAAI 2023), figure 2.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from training.anomaly.augment import mask_patches
from training.anomaly.guidance import Guidance
from training.models.backbone import Backbone
from training.models.heads import DINOHead
from training.objectives.base import GLOBAL_CROPS, Losses, Moment
from training.objectives.dino import DINO, distillation
from training.objectives.targets import Centering


class MaskedDINO(DINO):
    """A student that sees the salient patches agrees with a teacher that sees them all.

    Takes two views of each image; there are no local crops.

    Args:
        backbone: The network to go on training.
        head: Embedding -> logits over K prototypes.
        guidance: Which patches are hidden.
        generator: Draws how many are; on the device of the views.
    """

    def __init__(
        self, backbone: Backbone, head: DINOHead, guidance: Guidance, generator: Generator
    ) -> None:
        super().__init__(backbone, head, Centering(head.prototypes))
        self.guidance = guidance
        self.generator = generator

    def forward(self, crops: list[Tensor], moment: Moment) -> Losses:
        """See `Objective`; the crops are two views, each [batch, channels, side, side]."""
        views = torch.cat(crops)
        head = self.teacher.network.head
        assert isinstance(head, DINOHead)
        with torch.no_grad():
            seen = self.backbone.features(views)
            logits = head(seen.embedding).unflatten(0, (GLOBAL_CROPS, -1))
            guide = self.guidance(seen.attention, self.generator)
            masked = mask_patches(views, guide, self.generator).images
        log_targets = self.targets(logits.float(), moment.temperature)
        _, student = self.student(list(masked.chunk(GLOBAL_CROPS)))
        embeddings = seen.embedding.unflatten(0, (GLOBAL_CROPS, -1))
        return distillation(student, log_targets, self.temperature, embeddings)
