"""From a recipe to the networks that it starts from."""

from __future__ import annotations

import torch

from training.config import ModelConfig, Recipe
from training.models.backbone import Backbone
from training.models.heads import DINOHead, ProjectionHead
from training.models.resnet import resnet
from training.models.swin import swin
from training.models.vit import vit
from training.objectives.base import Objective
from training.objectives.byol import BYOL
from training.objectives.config import (
    BYOLConfig,
    DINOConfig,
    EsViTConfig,
    MoCoConfig,
    SimCLRConfig,
    SwAVConfig,
)
from training.objectives.dino import DINO, DINOWithMSE
from training.objectives.esvit import EsViT
from training.objectives.moco import MoCo
from training.objectives.simclr import SimCLR
from training.objectives.swav import SwAV
from training.objectives.targets import Centering, SinkhornKnopp


def build_backbone(model: ModelConfig, image_size: int, channels: int) -> Backbone:
    """The backbone alone, its weights drawn from torch's generator."""
    if model.architecture.startswith("vit"):
        return vit(model.architecture, model.patch_size, image_size, model.drop_path, channels)
    if model.architecture.startswith("swin"):
        return swin(model.architecture, model.window, image_size, model.drop_path, channels)
    return resnet(model.architecture, channels)


def build(recipe: Recipe) -> Objective:
    """The objective of a recipe that holds no `auto` any more, drawn by its seed."""
    torch.manual_seed(recipe.seed)
    backbone = build_backbone(recipe.model, recipe.crops.global_size, recipe.pixels.channels)
    follows = recipe.teacher.follows
    match recipe.objective:
        case DINOConfig(loss="mse") as config:
            head = _prototypes(recipe, backbone, config.predictor)
            return DINOWithMSE(backbone, head, _centering(recipe), follows)
        case DINOConfig() as config:
            head = _prototypes(recipe, backbone, config.predictor)
            targets = SinkhornKnopp() if config.targets == "sinkhorn" else _centering(recipe)
            return DINO(backbone, head, targets, follows, config.temperature)
        case EsViTConfig() as config:
            return EsViT(
                backbone,
                _prototypes(recipe, backbone),
                _prototypes(recipe, backbone),
                _centering(recipe),
                _centering(recipe),
                follows,
                config.temperature,
                config.view_epochs,
            )
        case BYOLConfig():
            return BYOL(backbone, _projection(recipe, backbone, predictor=True), follows)
        case MoCoConfig() as config:
            projection = _projection(recipe, backbone)
            width = recipe.head.bottleneck
            return MoCo(backbone, projection, width, config.queue, follows, config.temperature)
        case SwAVConfig() as config:
            head = _prototypes(recipe, backbone)
            return SwAV(backbone, head, config.temperature, config.epsilon)
        case SimCLRConfig() as config:
            return SimCLR(backbone, _projection(recipe, backbone), config.temperature)


def _prototypes(recipe: Recipe, backbone: Backbone, predictor: bool = False) -> DINOHead:
    return DINOHead(backbone.dim, **recipe.head.model_dump(), predictor=predictor)


def _projection(recipe: Recipe, backbone: Backbone, predictor: bool = False) -> ProjectionHead:
    head = recipe.head
    return ProjectionHead(
        backbone.dim, head.hidden, head.bottleneck, head.batch_norm, predictor=predictor
    )


def _centering(recipe: Recipe) -> Centering:
    assert isinstance(recipe.head.prototypes, int)
    return Centering(recipe.head.prototypes, recipe.teacher.center_momentum)
