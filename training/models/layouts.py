"""The names under which backbones are published, brought to those of DINO's and EsViT's authors.

| layout | a name in it |
|---|---|
| DINO, DINOv2, timm | `blocks.0.attn.qkv.weight` |
| full training checkpoint | `module.backbone.blocks.0.attn.qkv.weight`, beside `head.…` |
| Hugging Face | `encoder.layer.0.attention.attention.query.weight` |
| Hugging Face, in memory from transformers 5 on | `layers.0.attention.q_proj.weight` |

Hugging Face's names may stand behind the model's own, `vit.`, `dinov2.` and so on. timm's Swin
keeps the step down between two stages in the later one, its authors in the earlier one.
"""

from __future__ import annotations

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]

PREFIXES = r"^(?:(?:module|backbone|vit|dinov2|dinov2_with_registers)\.)+"
RENAMES = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^reg_token$", "register_tokens"),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.(?!blocks|downsample)", r"blocks.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:attention\.)?(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)


def official(weights: Weights) -> Weights:
    """The same weights under the names of their authors.

    A name that belongs to no layout stays as it is.
    """
    renamed = {_rename(name): tensor for name, tensor in weights.items()}
    return _steps_down_earlier(_positions_with_cls(_fused(renamed)))


def _rename(name: str) -> str:
    name = re.sub(PREFIXES, "", name)
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _fused(weights: Weights) -> Weights:
    """Stack each block's query, key and value projections to the one that the authors keep."""
    fused = dict(weights)
    for query in [name for name in weights if ".attn.query." in name]:
        parts = [query.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in weights for part in parts):
            stacked = torch.cat([fused.pop(part) for part in parts])
            fused[query.replace(".query.", ".qkv.")] = stacked
    return fused


def _positions_with_cls(weights: Weights) -> Weights:
    """Give CLS a position of zero where its position is already inside the token.

    timm keeps DINOv2 with registers so: its `pos_embed` is of the patches alone.
    """
    positions = weights.get("pos_embed")
    if positions is None or positions.ndim != 3 or not _square(positions.shape[1]):
        return weights
    return weights | {"pos_embed": F.pad(positions, (0, 0, 1, 0))}


def _square(count: int) -> bool:
    return math.isqrt(count) ** 2 == count


def _steps_down_earlier(weights: Weights) -> Weights:
    """Number timm's steps down from 0; they start at 1, as the first stage has none before it."""
    if "layers.0.downsample.reduction.weight" in weights:
        return weights
    step = re.compile(r"^layers\.(\d+)\.downsample\.")
    return {
        step.sub(lambda found: f"layers.{int(found[1]) - 1}.downsample.", name): tensor
        for name, tensor in weights.items()
    }
