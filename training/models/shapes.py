"""Which model a set of weights fits, by the names and shapes of DINO's and EsViT's authors."""

from __future__ import annotations

import re
from collections.abc import Collection
from math import isqrt

from torch import Tensor

from training.models import swin, vit
from training.models.backbone import Backbone
from training.models.layouts import Weights
from training.models.resnet import BasicBlock, Bottleneck, ResNet
from training.models.swin import SwinTransformer
from training.models.vit import VisionTransformer

HEAD_DIM = 64
PATCHES = "patch_embed.proj.weight"
BIASES = "layers.{}.blocks.0.attn.relative_position_bias_table"


def fitting(named: Weights) -> tuple[str, Backbone]:
    """The untrained model whose weights these can be, and the name of its architecture.

    Raises:
        ValueError: They fit none; the message says what is wanting.
    """
    if BIASES.format(0) in named:
        return _swin(named)
    if "layer1.0.conv1.weight" in named:
        return _resnet(named)
    return _vit(named)


def _vit(named: Weights) -> tuple[str, VisionTransformer]:
    _need(named, "cls_token", "pos_embed", PATCHES, "blocks.0.mlp.fc1.weight")
    projection, positions = named[PATCHES], named["pos_embed"]
    _check_colours(projection)
    dim, _, patch_size, _ = projection.shape
    if dim % HEAD_DIM:
        raise ValueError(f"its width {dim} is no multiple of {HEAD_DIM}, the width of a head")
    grid = isqrt(positions.shape[1] - 1) if positions.ndim == 3 else 0
    if positions.shape != (1, 1 + grid**2, dim):
        raise ValueError(f"pos_embed, {_shape(positions)}, is not of CLS and a square image")
    depth, heads = _count(named, r"blocks\.(\d+)\."), dim // HEAD_DIM
    registers = named.get("register_tokens")
    model = VisionTransformer(
        patch_size,
        dim,
        depth,
        heads,
        image_size=grid * patch_size,
        mlp_ratio=len(named["blocks.0.mlp.fc1.weight"]) / dim,
        layer_scale="blocks.0.ls1.gamma" in named,
        registers=0 if registers is None else registers.shape[1],
    )
    sizes = vit.SIZES.items()
    known = (name for name, size in sizes if size == (dim, depth, heads))
    return next(known, f"vit_{dim}x{depth}"), model


def _swin(named: Weights) -> tuple[str, SwinTransformer]:
    stages = range(_count(named, r"layers\.(\d+)\."))
    _need(named, PATCHES, *map(BIASES.format, stages))
    _check_colours(named[PATCHES])
    dim = len(named[PATCHES])
    depths = tuple(_count(named, rf"layers\.{i}\.blocks\.(\d+)\.") for i in stages)
    heads = tuple(named[BIASES.format(i)].shape[-1] for i in stages)
    # A window of side W has 2W - 1 relative positions each way.
    window = (isqrt(len(named[BIASES.format(0)])) + 1) // 2
    known = (name for name, size in swin.SIZES.items() if size == (dim, depths, heads))
    name = next(known, f"swin_{dim}x{sum(depths)}")
    return name, SwinTransformer(dim, depths, heads, window)


def _resnet(named: Weights) -> tuple[str, ResNet]:
    _need(named, "conv1.weight")
    block = Bottleneck if "layer1.0.conv3.weight" in named else BasicBlock
    a, b, c, d = (_count(named, rf"layer{i}\.(\d+)\.") for i in range(1, 5))
    stem = named["conv1.weight"]
    _check_colours(stem)
    layers = 2 + (a + b + c + d) * (3 if block is Bottleneck else 2)
    return f"resnet{layers}", ResNet(block, (a, b, c, d), cifar_stem=stem.shape[2] == 3)


def _need(named: Weights, *names: str) -> None:
    missing = [name for name in names if name not in named]
    if missing:
        raise ValueError(f"it lacks {some(missing)} and holds {some(named)}")


def _count(named: Weights, pattern: str) -> int:
    return len({found[1] for name in named if (found := re.match(pattern, name))})


def _check_colours(kernel: Tensor) -> None:
    if kernel.ndim != 4 or kernel.shape[1] != 3 or kernel.shape[2] != kernel.shape[3]:
        raise ValueError(f"a first layer of {_shape(kernel)} is not of square patches of RGB")


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def some(names: Collection[str]) -> str:
    """The first few names and the count of the rest, for a message."""
    first = list(names)[:4]
    rest = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
    return (", ".join(first) or "nothing") + rest
