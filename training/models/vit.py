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

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6
INIT_STD = 0.02
INIT_LAYER_SCALE = 1e-5
SHORT_SEQUENCE = 256


class Features(NamedTuple):
    """What a backbone says about a batch of images.

    Attributes:
        embedding: The normed CLS token, [batch, dim].
        patches: The normed patch tokens, [batch, rows, columns, dim].
        attention: The last layer's attention from CLS to each patch,
            [batch, heads, rows, columns]; with CLS's attention to itself it would sum to one.
    """

    embedding: Tensor
    patches: Tensor
    attention: Tensor


class PatchEmbed(nn.Module):
    """Cuts an image into patches and projects each to a token."""

    def __init__(self, patch_size: int, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """[batch, channels, height, width] -> [batch, rows, columns, dim]."""
        tokens: Tensor = self.proj(images)
        return tokens.permute(0, 2, 3, 1)


class Attention(nn.Module):
    """Multi-head self-attention whose queries may be some of the tokens only."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale: float = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def _split(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[batch, n, parts * dim] -> parts of [batch, heads, n, dim / heads]."""
        split: Tensor = projected.unflatten(2, (parts, self.heads, -1))
        return split.permute(2, 0, 3, 1, 4).unbind(0)

    def merge(self, attended: Tensor) -> Tensor:
        """[batch, heads, n, dim / heads] -> [batch, n, dim]."""
        merged: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return merged

    def forward(self, tokens: Tensor) -> Tensor:
        """Every token attends to every token."""
        query, key, value = self._split(self.qkv(tokens), 3)
        return self.merge(self.attend(query, key, value))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention-weighted values, [batch, heads, queries, dim / heads]."""
        # On a CPU the backward pass of torch's fused attention takes five times as long as that
        # of two plain products at the short sequences of small crops.
        if key.is_cpu and key.requires_grad and key.shape[2] <= SHORT_SEQUENCE:
            return self.weights(query, key) @ value
        return F.scaled_dot_product_attention(query, key, value)

    def keys_and_values(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Project the tokens that are attended to."""
        dim = tokens.shape[-1]
        return self._split(F.linear(tokens, self.qkv.weight[dim:], self.qkv.bias[dim:]), 2)

    def queries(self, tokens: Tensor) -> Tensor:
        """Project the tokens that attend."""
        dim = tokens.shape[-1]
        return self._split(F.linear(tokens, self.qkv.weight[:dim], self.qkv.bias[:dim]), 1)[0]

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        """The attention itself, [batch, heads, queries, tokens]; meant for few of either."""
        scores = (self.scale * query) @ key.transpose(-2, -1)
        return scores.softmax(dim=-1, dtype=scores.dtype)


class MLP(nn.Module):
    """The block's second half: two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return out


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
        self.drop_path = drop_path

    def _drop(self, residual: Tensor) -> Tensor:
        """Leave the residual of some samples out (Huang et al., 2016), scaling the others up."""
        if not self.training or self.drop_path == 0.0:
            return residual
        keep = 1.0 - self.drop_path
        kept = residual.new_empty(residual.shape[0], 1, 1).bernoulli_(keep)
        return residual * kept / keep

    def _finish(self, tokens: Tensor, attended: Tensor) -> Tensor:
        tokens = tokens + self._drop(self.ls1(attended))
        return tokens + self._drop(self.ls2(self.mlp(self.norm2(tokens))))

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


class VisionTransformer(nn.Module):
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

    Attributes:
        prefix_tokens: Number of tokens in front of the patches: CLS and the registers.
    """

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
        self.prefix_tokens = 1 + registers
        self.grid = image_size // patch_size
        self.patch_embed = PatchEmbed(patch_size, channels, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, dim))
        rates = torch.linspace(0.0, drop_path, depth).tolist()
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


def bicubic_weights(index: Tensor, source: int, off_grid: Tensor) -> Tensor:
    """Bicubic interpolation from `source` points as a matrix, [len(index), source].

    The kernel is Keys' with a = -0.75, edges are clamped, and the scale is (n + 0.1) / source,
    the form DINO was trained with and DINOv2 without registers. On the native grid the scale is 1
    and the matrix the identity.

    Args:
        index: The points to interpolate at, 0 .. n - 1.
        source: Number of points that there are.
        off_grid: Whether the grid is not the native one (a boolean scalar).
    """
    scale = (index[-1] + 1 + 0.1 * off_grid) / source
    position = (index + 0.5) / scale - 0.5
    base = position.floor()
    near = position - base
    taps = torch.arange(-1, 3, dtype=index.dtype, device=index.device)
    weights = bicubic_kernel((near[:, None] - taps).abs(), a=-0.75)
    columns = (base[:, None] + taps).clamp(0, source - 1)
    targets = torch.arange(source, dtype=index.dtype, device=index.device)
    return (weights[:, :, None] * (columns[:, :, None] == targets)).sum(dim=1)


def antialiased_weights(index: Tensor, source: int) -> Tensor:
    """Bicubic interpolation that filters when it shrinks, as a matrix [len(index), source].

    Keys' kernel with a = -0.5 is stretched by the reduction, points beyond an edge are left out,
    and the scale is n / source: the form DINOv2 with registers was published with. On the native
    grid the matrix is the identity.

    Args:
        index: The points to interpolate at, 0 .. n - 1.
        source: Number of points that there are.
    """
    reduction = source / (index[-1] + 1)
    points = torch.arange(source, dtype=index.dtype, device=index.device)
    distance = (points + 0.5 - (index[:, None] + 0.5) * reduction).abs()
    weights = bicubic_kernel((distance / reduction.clamp(min=1)).clamp(max=2), a=-0.5)
    return weights / weights.sum(dim=1, keepdim=True)


def bicubic_kernel(distance: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel (1981) for distances from 0 to 2, where it ends at 0."""
    inner = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    outer = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return torch.where(distance <= 1, inner, outer)


def init_linear(module: nn.Module) -> None:
    """DINO's initialisation: linear weights N(0, 0.02), biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


SIZES = {
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
}


def vit(
    architecture: str, patch_size: int, image_size: int = 224, drop_path: float = 0.0
) -> VisionTransformer:
    """Build a transformer of one of the `SIZES`, from `vit_tiny` to `vit_large`."""
    dim, depth, heads = SIZES[architecture]
    return VisionTransformer(patch_size, dim, depth, heads, image_size, drop_path=drop_path)
