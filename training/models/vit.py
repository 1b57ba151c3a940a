"""The vision transformer of DINO and DINOv2: pre-norm, one CLS token, learnt positions.

Parameter names are those of the published checkpoints. The last block runs for the CLS query
and for the patch queries apart: an embedding then costs no patch query of that block, and the CLS
attention is a row of its own instead of a slice of an N x N map.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021); Caron et al., "Emerging
Properties in Self-Supervised Vision Transformers" (2021), section 3.2; Oquab et al., "DINOv2:
Learning Robust Visual Features without Supervision" (2024); Darcet et al., "Vision Transformers
Need Registers" (2024).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.models.attention import Attention
from training.models.backbone import Backbone, Features
from training.models.drop_path import DropPath, growing_rates
from training.models.layers import EPS, INIT_STD, MLP, PatchEmbed, init_linear
from training.models.positions import antialiased_weights, bicubic_weights

INIT_LAYER_SCALE = 1e-5


class LayerScale(nn.Module):
    """A learnt factor for each channel of a residual (Touvron et al., 2021)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), INIT_LAYER_SCALE))

    def forward(self, residual: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        return residual * self.gamma


class Block(nn.Module):
    """A pre-norm transformer block with stochastic depth."""

    def __init__(
        self, dim: int, heads: int, mlp_ratio: float, drop_path: float, layer_scale: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = MLP(dim, int(dim * mlp_ratio))
        self.ls1 = LayerScale(dim) if layer_scale else nn.Identity()
        self.ls2 = LayerScale(dim) if layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def _finish(self, tokens: Tensor, attended: Tensor) -> Tensor:
        tokens = tokens + self.drop_path(self.ls1(attended))
        finished: Tensor = tokens + self.drop_path(self.ls2(self.mlp(self.norm2(tokens))))
        return finished

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, n, dim] -> [batch, n, dim]."""
        return self._finish(tokens, self.attn(self.norm1(tokens)))

    def cls_query(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The block for the first token alone.

        Returns:
            The token, [batch, 1, dim], and its attention to every token, [batch, heads, n].
        """
        normed = self.norm1(tokens)
        key, value = self.attn.keys_and_values(normed)
        weights = self.attn.weights(self.attn.queries(normed[:, :1]), key)
        cls = self._finish(tokens[:, :1], self.attn.merge(weights @ value))
        return cls, weights.squeeze(2)

    def patch_queries(self, tokens: Tensor, prefix: int) -> Tensor:
        """The block for every token after the prefix, [batch, n - prefix, dim]."""
        normed = self.norm1(tokens)
        key, value = self.attn.keys_and_values(normed)
        query = self.attn.queries(normed[:, prefix:])
        attended = self.attn.merge(self.attn.attend(query, key, value))
        return self._finish(tokens[:, prefix:], attended)


class VisionTransformer(Backbone):
    """A ViT for any image size that the patch divides.

    Args:
        patch_size: Side of a patch in pixels.
        dim: Width of a token.
        depth: Number of blocks.
        heads: Number of attention heads.
        image_size: Side of the square images at whose grid positions are learnt.
        mlp_ratio: Hidden width of the MLP over `dim`.
        drop_path: Stochastic depth of the last block; it grows linearly from 0 at the first.
        channels: Number of colour channels.
        layer_scale: Scale every residual by a learnt vector, as DINOv2 does.
        registers: Number of register tokens, which take part in attention and leave no output.
    """

    query = "cls"

    def __init__(
        self,
        patch_size: int,
        dim: int,
        depth: int,
        heads: int,
        image_size: int = 224,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        channels: int = 3,
        layer_scale: bool = False,
        registers: int = 0,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.dim = dim
        self.heads = heads
        self.depth = depth
        self.channels = channels
        self.prefix_tokens = 1 + registers
        self.grid = image_size // patch_size
        self.patch_embed = PatchEmbed(patch_size, channels, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, dim))
        rates = growing_rates(drop_path, depth)
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio, rate, layer_scale) for rate in rates
        )
        self.norm = nn.LayerNorm(dim, eps=EPS)
        nn.init.trunc_normal_(self.pos_embed, std=INIT_STD)
        nn.init.trunc_normal_(self.cls_token, std=INIT_STD)
        self.register_tokens = (
            nn.Parameter(INIT_STD * torch.randn(1, registers, dim)) if registers else None
        )
        self.apply(init_linear)

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Position embedding of the patches at a grid, [1, rows, columns, dim]."""
        native = self.pos_embed[0, 1:].unflatten(0, (self.grid, self.grid))
        row_index = torch.arange(rows, dtype=native.dtype, device=native.device)
        column_index = torch.arange(columns, dtype=native.dtype, device=native.device)
        # Tensors, not integers: an exported graph computes them from the shape it is given.
        if self.register_tokens is None:
            off_grid = (row_index[-1] + 1 != self.grid) | (column_index[-1] + 1 != self.grid)
            across = bicubic_weights(column_index, self.grid, off_grid)
            down = bicubic_weights(row_index, self.grid, off_grid)
        else:
            # The published models with registers are the ones that interpolate with a filter.
            across = antialiased_weights(column_index, self.grid)
            down = antialiased_weights(row_index, self.grid)
        return torch.einsum("rg,cw,gwd->rcd", down, across, native)[None]

    def _embed(self, images: Tensor) -> tuple[Tensor, int, int]:
        patches = self.patch_embed(images)
        rows, columns = patches.shape[1:3]
        patches = patches + self._positions(rows, columns)
        prefix = [self.cls_token + self.pos_embed[:, :1]]
        if self.register_tokens is not None:
            prefix.append(self.register_tokens)
        before = (tokens.expand(patches.shape[0], -1, -1) for tokens in prefix)
        return torch.cat([*before, patches.flatten(1, 2)], dim=1), rows, columns

    def _body(self, images: Tensor) -> tuple[Tensor, int, int]:
        """Everything but the last block."""
        tokens, rows, columns = self._embed(images)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        return tokens, rows, columns

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images, [batch, channels, height, width] -> embedding [batch, dim]."""
        tokens, _, _ = self._body(images)
        cls, _ = self._last.cls_query(tokens)
        embedding: Tensor = self.norm(cls.squeeze(1))
        return embedding

    def regions(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The normed CLS token, [batch, dim], and the normed patch tokens, [batch, n, dim]."""
        tokens, _, _ = self._embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        normed = self.norm(tokens)
        return normed[:, 0], normed[:, self.prefix_tokens :]

    def last_blocks(self, images: Tensor, count: int) -> Tensor:
        """The normed CLS tokens of the last blocks, which DINO's linear evaluation sees.

        Args:
            images: Normalised images, [batch, channels, height, width].
            count: Number of blocks; 4 for ViT-S.

        Returns:
            The tokens in the order of the blocks, [batch, count * dim].
        """
        tokens, _, _ = self._embed(images)
        seen = []
        for block in self.blocks:
            tokens = block(tokens)
            seen.append(self.norm(tokens[:, 0]))
        return torch.cat(seen[-count:], dim=1)

    def features(self, images: Tensor) -> Features:
        """Normalised images, [batch, channels, height, width] -> all that the model says."""
        tokens, rows, columns = self._body(images)
        cls, attention = self._last.cls_query(tokens)
        patches = self._last.patch_queries(tokens, self.prefix_tokens)
        return Features(
            embedding=self.norm(cls.squeeze(1)),
            patches=self.norm(patches).unflatten(1, (rows, columns)),
            attention=attention[:, :, self.prefix_tokens :].unflatten(2, (rows, columns)),
        )

    @property
    def _last(self) -> Block:
        block = self.blocks[-1]
        assert isinstance(block, Block)
        return block


SIZES = {
    "vit_nano": (64, 4, 2),
    "vit_micro": (128, 6, 4),
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
}


def vit(
    architecture: str,
    patch_size: int,
    image_size: int = 224,
    drop_path: float = 0.0,
    channels: int = 3,
) -> VisionTransformer:
    """Build a transformer of one of the `SIZES`.

    They are the papers', `vit_tiny` to `vit_large`, and `vit_micro` for images of some 32 pixels.
    """
    dim, depth, heads = SIZES[architecture]
    return VisionTransformer(
        patch_size, dim, depth, heads, image_size, drop_path=drop_path, channels=channels
    )
