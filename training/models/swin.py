"""The Swin transformer of EsViT: attention inside windows that shift from block to block.

Tokens travel as maps, [batch, rows, columns, dim]. Parameter names, window and shift rules are
those of the published EsViT checkpoints. Any image size is taken, by zeros on the right and at the
bottom: of the normalised image up to a multiple of the patch, of a map up to an even side before
patches merge, and of a block's normed map up to a multiple of its window. Zeros inside a window
are attended to like tokens, as in EsViT.

Source: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows"
(2021); Li et al., "Efficient Self-supervised Vision Transformers for Representation Learning"
(2022).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.models.backbone import Features, PooledBackbone
from training.models.drop_path import DropPath, growing_rates
from training.models.layers import EPS, MLP, PatchEmbed, init_linear
from training.models.linear import Linear
from training.models.windows import (
    WindowAttention,
    multiples,
    pad,
    partition,
    shift_mask,
    unpartition,
)

PATCH = 4


class NormedPatchEmbed(PatchEmbed):
    """Cuts an image of any size into patches and projects each to a normed token."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__(PATCH, channels, dim)
        self.norm = nn.LayerNorm(dim, eps=EPS)

    def forward(self, images: Tensor) -> Tensor:
        """[batch, channels, height, width] -> [batch, rows, columns, dim]."""
        padded = pad(images.permute(0, 2, 3, 1), PATCH).permute(0, 3, 1, 2)
        tokens: Tensor = self.norm(super().forward(padded))
        return tokens


class PatchMerging(nn.Module):
    """Halves both sides of a map: four neighbours become one token of twice the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=EPS)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, rows, columns, dim] -> [batch, rows / 2, columns / 2, 2 dim], rounded up."""
        tokens = pad(tokens, 2)
        order = ((0, 0), (1, 0), (0, 1), (1, 1))
        neighbours = [tokens[:, row::2, column::2] for row, column in order]
        merged: Tensor = self.reduction(self.norm(torch.cat(neighbours, dim=-1)))
        return merged


class Block(nn.Module):
    """A pre-norm block with stochastic depth; with a shift its windows cut the map elsewhere."""

    def __init__(
        self, dim: int, heads: int, window: int, shift: int, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.drop_path = DropPath(drop_path)
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = MLP(dim, int(dim * mlp_ratio))

    def _cut(self, maps: Tensor) -> Tensor:
        """[batch, rows, columns, c] -> [batch, windows, n, c], padded and shifted."""
        maps = pad(maps, self.window)
        if self.shift:
            maps = maps.roll((-self.shift, -self.shift), dims=(1, 2))
        return partition(maps, self.window)

    def _paste(self, windows: Tensor, rows: int, columns: int) -> Tensor:
        """The inverse of `_cut`, [batch, rows, columns, c]."""
        down, across = (multiples(side, self.window) for side in (rows, columns))
        maps = unpartition(windows, self.window, down, across)
        if self.shift:
            maps = maps.roll((self.shift, self.shift), dims=(1, 2))
        return maps[:, :rows, :columns]

    def _mask(self, tokens: Tensor) -> Tensor | None:
        if self.shift == 0:
            return None
        rows, columns = (multiples(side, self.window) for side in tokens.shape[1:3])
        # A tensor that is made while a graph is traced must not outlive the trace.
        make = shift_mask.__wrapped__ if torch.compiler.is_compiling() else shift_mask
        return make(rows, columns, self.window, self.shift, tokens.device)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, rows, columns, dim] -> the same shape."""
        attended = self.attn(self._cut(self.norm1(tokens)), self._mask(tokens))
        tokens = tokens + self.drop_path(self._paste(attended, *tokens.shape[1:3]))
        finished: Tensor = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return finished

    def attention(self, tokens: Tensor) -> Tensor:
        """The mean attention from every token of the map to each, [batch, heads, rows, columns].

        A token pays none to another window. What goes to or comes from padding is left out and
        each head scaled to sum to one.
        """
        rows, columns = tokens.shape[1:3]
        weights = self.attn.weights(self._cut(self.norm1(tokens)), self._mask(tokens))
        real = self._cut(weights.new_ones(1, rows, columns, 1))
        received = (weights * real.unsqueeze(2)).sum(dim=3)
        maps = self._paste(received.transpose(2, 3), rows, columns).permute(0, 3, 1, 2)
        return maps / maps.sum(dim=(2, 3), keepdim=True)


class Stage(nn.Module):
    """Blocks at one resolution, every second one shifted, and the step down to the next."""

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        shift: int,
        mlp_ratio: float,
        drop_path: list[float],
        downsample: bool,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(dim, heads, window, shift if i % 2 else 0, mlp_ratio, rate)
            for i, rate in enumerate(drop_path)
        )
        self.downsample = PatchMerging(dim) if downsample else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, rows, columns, dim] -> the next stage's tokens."""
        for block in self.blocks:
            tokens = block(tokens)
        smaller: Tensor = self.downsample(tokens)
        return smaller

    def with_attention(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """A last stage's tokens and the attention of its last block."""
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        return last(tokens), last.attention(tokens)


class SwinTransformer(PooledBackbone):
    """A Swin transformer for any image size.

    A stage's window is `window`, or the side of its map at `image_size` where that is smaller; a
    stage whose window spans that map never shifts, at other sizes neither.

    Args:
        dim: Width of a token in the first stage; it doubles from stage to stage.
        depths: Blocks of each stage.
        heads: Attention heads of each stage.
        window: Side of a window in tokens.
        image_size: Side of the images that decides windows and shifts.
        mlp_ratio: Hidden width of the MLP over that of a token.
        drop_path: Stochastic depth of the last block; it grows linearly from 0 at the first.
        channels: Number of colour channels.
    """

    def __init__(
        self,
        dim: int,
        depths: tuple[int, ...],
        heads: tuple[int, ...],
        window: int,
        image_size: int = 224,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        channels: int = 3,
    ) -> None:
        super().__init__()
        last = len(depths) - 1
        self.patch_size = PATCH * 2**last
        self.dim = dim * 2**last
        self.heads = heads[-1]
        self.depth = sum(depths)
        self.channels = channels
        self.patch_embed = NormedPatchEmbed(channels, dim)
        rates = growing_rates(drop_path, self.depth)
        self.layers = nn.ModuleList()
        for i, depth in enumerate(depths):
            side = -(-image_size // (PATCH * 2**i))
            stage = Stage(
                dim * 2**i,
                heads[i],
                window=min(window, side),
                shift=window // 2 if window < side else 0,
                mlp_ratio=mlp_ratio,
                drop_path=rates[sum(depths[:i]) :][:depth],
                downsample=i < last,
            )
            self.layers.append(stage)
        self.norm = nn.LayerNorm(self.dim, eps=EPS)
        self.apply(init_linear)

    def patches(self, images: Tensor) -> Tensor:
        """Normalised images, [batch, channels, height, width] -> the last stage's normed tokens.

        They are [batch, rows, columns, dim], a token for each 32 x 32 pixels or part of them.
        """
        tokens = self.patch_embed(images)
        for stage in self.layers:
            tokens = stage(tokens)
        normed: Tensor = self.norm(tokens)
        return normed

    def last_blocks(self, images: Tensor, count: int) -> Tensor:
        """The pooled tokens of the last blocks, which EsViT's linear evaluation sees.

        Args:
            images: Normalised images, [batch, channels, height, width].
            count: Number of blocks; 4 in EsViT.

        Returns:
            The mean token of each block, normed before the mean in the last stage only, in the
            order of the blocks; for the last 4 of Swin-T [batch, 2 * 384 + 2 * 768].
        """
        tokens = self.patch_embed(images)
        seen = []
        for stage in self.layers:
            assert isinstance(stage, Stage)
            for block in stage.blocks:
                tokens = block(tokens)
                seen.append(self.norm(tokens) if stage is self.layers[-1] else tokens)
            tokens = stage.downsample(tokens)
        return torch.cat([tokens.mean(dim=(1, 2)) for tokens in seen[-count:]], dim=1)

    def features(self, images: Tensor) -> Features:
        """Normalised images, [batch, channels, height, width] -> all that the model says.

        The embedding is the mean of the patches, and the attention that of the last block, the
        mean over its queries; it sums to one.
        """
        tokens = self.patch_embed(images)
        for stage in self.layers[:-1]:
            tokens = stage(tokens)
        last = self.layers[-1]
        assert isinstance(last, Stage)
        tokens, attention = last.with_attention(tokens)
        patches = self.norm(tokens)
        return Features(patches.mean(dim=(1, 2)), patches, attention)


SIZES = {
    "swin_tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin_small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin_base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
}


def swin(
    architecture: str,
    window: int = 7,
    image_size: int = 224,
    drop_path: float = 0.0,
    channels: int = 3,
) -> SwinTransformer:
    """Build one of EsViT's transformers, `swin_tiny`, `swin_small` or `swin_base`."""
    dim, depths, heads = SIZES[architecture]
    return SwinTransformer(
        dim, depths, heads, window, image_size, drop_path=drop_path, channels=channels
    )
