"""Which model a set of weights fits, by the names and shapes of DINO's and EsViT's authors."""

from __future__ import annotations

import re
from collections.abc import Collection
from math import isqrt

from torch import Tensor

from training.models import swin, vit
from training.models.backbone import Backbone
from training.models.config_files import Config
from training.models.layers import EPS
from training.models.layouts import Weights
from training.models.resnet import BasicBlock, Bottleneck, ResNet
from training.models.swin import SwinTransformer
from training.models.vit import VisionTransformer

# Widths of published models whose heads are all 64 wide.
HEAD_DIM = 64
WIDTHS = frozenset({192, 384, 768, 1024, 1536})
# torch's own, and that of timm's Swin; with more the norms of small tokens differ.
MOST_EPS = 1e-5
# EsViT's windows, and the side of the images that it was trained with.
WINDOWS = frozenset({7, 14})
IMAGE_SIZE = 224
PATCHES = "patch_embed.proj.weight"
BIASES = "layers.{}.blocks.0.attn.relative_position_bias_table"
MASK = "layers.{}.blocks.1.attn_mask"


def fitting(named: Weights, config: Config) -> tuple[str, Backbone]:
    """The untrained model whose weights these can be, and the name of its architecture.

    Args:
        named: The weights.
        config: What is known of them beside their names and shapes.

    Raises:
        ValueError: They fit none, or do not tell which; the message says what is wanting.
    """
    if BIASES.format(0) in named:
        return _swin(named, config)
    if "layer1.0.conv1.weight" in named:
        return _resnet(named)
    return _vit(named, config)


def _vit(named: Weights, config: Config) -> tuple[str, VisionTransformer]:
    _need(named, "cls_token", "pos_embed", PATCHES, "blocks.0.mlp.fc1.weight")
    projection, positions = named[PATCHES], named["pos_embed"]
    _check_colours(projection)
    _check_parts(config)
    dim, _, patch_size, _ = projection.shape
    heads = _heads(dim, config)
    grid = isqrt(positions.shape[1] - 1) if positions.ndim == 3 else 0
    if positions.shape != (1, 1 + grid**2, dim):
        raise ValueError(f"pos_embed, {_shape(positions)}, is not of CLS and a square image")
    depth = _count(named, r"blocks\.(\d+)\.")
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


def _heads(dim: int, config: Config) -> int:
    if config.width not in (None, dim):
        raise ValueError(f"config.json is of a model of width {config.width}, not {dim}")
    if config.heads is None and dim not in WIDTHS:
        raise ValueError(
            f"its width {dim} does not say how many heads it has; name --heads, or put the model's "
            "config.json beside it"
        )
    heads = config.heads or dim // HEAD_DIM
    if dim % heads:
        raise ValueError(f"its width {dim} is no multiple of its heads, {heads}")
    return heads


def _swin(named: Weights, config: Config) -> tuple[str, SwinTransformer]:
    stages = range(_count(named, r"layers\.(\d+)\."))
    _need(named, PATCHES, *map(BIASES.format, stages))
    _check_colours(named[PATCHES])
    _check_parts(config)
    dim = len(named[PATCHES])
    depths = tuple(_count(named, rf"layers\.{i}\.blocks\.(\d+)\.") for i in stages)
    heads = tuple(named[BIASES.format(i)].shape[-1] for i in stages)
    # A window of side W has 2W - 1 relative positions each way.
    window = (isqrt(len(named[BIASES.format(0)])) + 1) // 2
    known = (name for name, size in swin.SIZES.items() if size == (dim, depths, heads))
    name = next(known, f"swin_{dim}x{sum(depths)}")
    image_size = _shifted_at(named, window) or config.image_size
    if image_size is None and window not in WINDOWS:
        raise ValueError(
            f"its windows of {window} do not say at what image size they shift; put the model's "
            "config.json beside it"
        )
    return name, SwinTransformer(dim, depths, heads, window, image_size or IMAGE_SIZE)


def _shifted_at(named: Weights, window: int) -> int | None:
    """The side of the images whose shifted windows a file has masks for; newer ones have none."""
    for stage in range(_count(named, r"layers\.(\d+)\.")):
        mask = named.get(MASK.format(stage))
        if mask is not None:
            side: int = swin.PATCH * 2**stage * window * isqrt(len(mask))
            return side
    return None


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


def _check_parts(config: Config) -> None:
    if config.activation not in (None, "gelu"):
        raise ValueError(f"config.json says {config.activation!r} between layers; here it is gelu")
    if config.epsilon is not None and config.epsilon > MOST_EPS:
        raise ValueError(f"config.json says norms of epsilon {config.epsilon}; here it is {EPS}")


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
