"""The two stages: consistency under masking, then telling simulated anomalies from the rest."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from training.anomaly.augment import paste_anomalies
from training.anomaly.consistency import MaskedDINO
from training.anomaly.detector import Detector, detection_loss
from training.anomaly.guidance import Guidance
from training.models.backbone import Backbone
from training.models.heads import DINOHead
from training.objectives.base import Moment
from training.schedules import cosine

Batches = Callable[[], Tensor]
"""Draws a batch of normalised normal images, [batch, channels, side, side]."""

# Few normal images: a small head, a teacher that follows soon, and the temperatures of DINO.
PROTOTYPES = 256
HIDDEN = 512
MOMENT = Moment(temperature=0.04, momentum=0.98, epoch=0, epoch_ends=False)
WEIGHT_DECAY = 0.04
CLIP = 1.0


def pretrain(
    backbone: Backbone,
    batches: Batches,
    guidance: Guidance,
    generator: Generator,
    *,
    steps: int,
    lr: float = 1e-4,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> Backbone:
    """Stage 1; returns the teacher's backbone and leaves the given one as it is."""
    head = DINOHead(backbone.dim, PROTOTYPES, hidden=HIDDEN, batch_norm=True)
    objective = MaskedDINO(copy.deepcopy(backbone), head, guidance, generator).train()

    def loss() -> Tensor:
        images = batches()
        crops = [random_view(images, generator) for _ in range(2)]
        with _autocast(images):
            return objective(crops, MOMENT).loss

    for step, value in _descend(objective.student, loss, steps, lr):
        objective.update(MOMENT)
        report(step, value)
    return objective.backbone


def finetune(
    backbone: Backbone,
    batches: Batches,
    guidance: Guidance,
    generator: Generator,
    *,
    steps: int,
    lr: float = 3e-4,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> Detector:
    """Stage 2; attention is that of the given backbone, which stays as it is."""
    detector = Detector(copy.deepcopy(backbone).requires_grad_(True)).train()

    def loss() -> Tensor:
        images = batches()
        with _autocast(images):
            with torch.no_grad():
                attention = backbone.features(images).attention.float()
            damaged = paste_anomalies(images, guidance(attention, generator), generator)
            return detection_loss(detector(damaged.images), damaged.mask)

    for step, value in _descend(detector, loss, steps, lr):
        report(step, value)
    return detector


def random_view(images: Tensor, generator: Generator, least: float = 0.4) -> Tensor:
    """A random square of each image at the images' size, flipped by halves, a little recoloured.

    Args:
        images: Normalised, [batch, channels, side, side].
        generator: Draws area (`least` to 1), place, flip, contrast (0.8 to 1.2) and brightness
            (-0.2 to 0.2).
        least: Share of the area.
    """
    draw = torch.rand(6, len(images), device=images.device, generator=generator)
    scale = (least + (1.0 - least) * draw[0]).sqrt()
    theta = images.new_zeros(len(images), 2, 3)
    theta[:, 0, 0] = scale * torch.where(draw[1] < 0.5, -1.0, 1.0)
    theta[:, 1, 1] = scale
    theta[:, :, 2] = ((1.0 - scale) * (2.0 * draw[2:4] - 1.0)).T
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    views = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    contrast, brightness = 0.8 + 0.4 * draw[4], 0.4 * draw[5] - 0.2
    return views * contrast.view(-1, 1, 1, 1) + brightness.view(-1, 1, 1, 1)


def _descend(
    network: nn.Module, loss: Callable[[], Tensor], steps: int, lr: float
) -> Iterator[tuple[int, float]]:
    """AdamW with a short warm-up and a cosine to 0; yields the number and loss of each step."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)
    for step, rate in enumerate(cosine(lr, 0.0, steps, warmup=steps // 10)):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        yield step, value.item()


def _autocast(images: Tensor) -> torch.autocast:
    return torch.autocast(images.device.type, torch.bfloat16)
