"""The names of weights in transformers 5 beside those of DINO's and EsViT's authors.

Each of the authors' names stands for one of transformers' or for several, of which it is the
concatenation.
"""

import torch

Names = dict[str, tuple[str, ...]]
Weights = dict[str, torch.Tensor]

NORMS = ("layernorm_before", "layernorm_after")


def to_transformers(weights: Weights, names: Names) -> Weights:
    return {
        their: part
        for our, theirs in names.items()
        for their, part in zip(theirs, weights[our].chunk(len(theirs)), strict=True)
    }


def to_authors(weights: Weights, names: Names) -> Weights:
    """What the names say of the weights that are there."""
    return {
        our: torch.cat([weights[their] for their in theirs])
        for our, theirs in names.items()
        if weights.keys() >= set(theirs)
    }


def vit_names(blocks: list[str], norms: tuple[str, str] = NORMS) -> Names:
    """A ViT's names; `blocks` are those of transformers' blocks."""
    names = {
        "cls_token": ("embeddings.cls_token",),
        "pos_embed": ("embeddings.position_embeddings",),
    }
    names |= _layer("patch_embed.proj", "embeddings.patch_embeddings.projection")
    names |= _layer("norm", "layernorm")
    for i, block in enumerate(blocks):
        names |= _block(f"blocks.{i}", block, norms)
    return names


def dinov2_names(blocks: list[str]) -> Names:
    names = vit_names(blocks, norms=("norm1", "norm2")) | {
        "mask_token": ("embeddings.mask_token",),
        "register_tokens": ("embeddings.register_tokens",),
    }
    for i, block in enumerate(blocks):
        names |= {f"blocks.{i}.ls{k}.gamma": (f"{block}.layer_scale{k}.lambda1",) for k in (1, 2)}
    return names


def swin_names(depths: tuple[int, ...]) -> Names:
    names = _layer("patch_embed.proj", "embeddings.patch_embeddings.projection")
    names |= _layer("patch_embed.norm", "embeddings.norm")
    names |= _layer("norm", "layernorm")
    table = "relative_position_bias_table"
    for i, depth in enumerate(depths):
        for j in range(depth):
            our, their = f"layers.{i}.blocks.{j}", f"encoder.layers.{i}.blocks.{j}"
            names |= _block(our, their, NORMS)
            their_table = f"{their}.attention.relative_position_bias.{table}"
            names[f"{our}.attn.{table}"] = (their_table,)
        if i < len(depths) - 1:
            our, their = f"layers.{i}.downsample", f"encoder.layers.{i}.downsample"
            names |= _layer(f"{our}.norm", f"{their}.norm")
            names[f"{our}.reduction.weight"] = (f"{their}.reduction.weight",)
    return names


def _layer(our: str, *theirs: str) -> Names:
    return {
        f"{our}.{kind}": tuple(f"{their}.{kind}" for their in theirs) for kind in ("weight", "bias")
    }


def _block(our: str, their: str, norms: tuple[str, str]) -> Names:
    return (
        _layer(f"{our}.norm1", f"{their}.{norms[0]}")
        | _layer(f"{our}.norm2", f"{their}.{norms[1]}")
        | _layer(f"{our}.attn.qkv", *(f"{their}.attention.{part}_proj" for part in "qkv"))
        | _layer(f"{our}.attn.proj", f"{their}.attention.o_proj")
        | _layer(f"{our}.mlp.fc1", f"{their}.mlp.fc1")
        | _layer(f"{our}.mlp.fc2", f"{their}.mlp.fc2")
    )
