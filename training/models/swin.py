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

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.vit import EPS, INIT_STD, MLP, Features, PatchEmbed, init_linear

PATCH = 4
MASKED = -100.0


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
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, rows, columns, dim] -> [batch, rows / 2, columns / 2, 2 dim], rounded up."""
        tokens = pad(tokens, 2)
        order = ((0, 0), (1, 0), (0, 1), (1, 1))
        neighbours = [tokens[:, row::2, column::2] for row, column in order]
        merged: Tensor = self.reduction(self.norm(torch.cat(neighbours, dim=-1)))
        return merged


class WindowAttention(nn.Module):
    """Multi-head self-attention within each window, biased by relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale: float = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        table = torch.zeros((2 * window - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(table)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=INIT_STD)
        # Persistent although it follows from the window: the published checkpoints hold it.
        self.register_buffer("relative_position_index", relative_positions(window))

    def _split(self, windows: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value, each [batch, windows, heads, n, dim / heads]."""
        split: Tensor = self.qkv(windows).unflatten(3, (3, self.heads, -1))
        return split.permute(3, 0, 1, 4, 2, 5).unbind(0)

    def _weights(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        scores = (self.scale * query) @ key.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask is not None:
            bias = bias + mask
        scores = scores + bias.to(scores.dtype)
        return scores.softmax(dim=-1, dtype=scores.dtype)

    def weights(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """The attention itself, [batch, windows, heads, n, n], the queries before the keys."""
        query, key, _ = self._split(windows)
        return self._weights(query, key, mask)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Every token attends to every token of its window.

        Args:
            windows: Tokens, [batch, windows, n, dim].
            mask: Added to the scores, [windows, 1, n, n].
        """
        query, key, value = self._split(windows)
        attended = self._weights(query, key, mask) @ value
        merged: Tensor = self.proj(attended.transpose(2, 3).flatten(3))
        return merged


class Block(nn.Module):
    """A pre-norm block with stochastic depth; with a shift its windows cut the map elsewhere."""

    def __init__(
        self, dim: int, heads: int, window: int, shift: int, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = MLP(dim, int(dim * mlp_ratio))

    def _drop(self, residual: Tensor) -> Tensor:
        """Leave the residual of some samples out (Huang et al., 2016), scaling the others up."""
        if not self.training or self.drop_path == 0.0:
            return residual
        keep = 1.0 - self.drop_path
        kept = residual.new_empty(residual.shape[0], 1, 1, 1).bernoulli_(keep)
        return residual * kept / keep

    def _cut(self, maps: Tensor) -> Tensor:
        """[batch, rows, columns, c] -> [batch, windows, n, c], padded and shifted."""
        maps = pad(maps, self.window)
        if self.shift:
            maps = maps.roll((-self.shift, -self.shift), dims=(1, 2))
        return partition(maps, self.window)

    def _paste(self, windows: Tensor, rows: int, columns: int) -> Tensor:
        """The inverse of `_cut`, [batch, rows, columns, c]."""
        maps = unpartition(windows, self.window, -(-columns // self.window))
        if self.shift:
            maps = maps.roll((self.shift, self.shift), dims=(1, 2))
        return maps[:, :rows, :columns]

    def _mask(self, tokens: Tensor) -> Tensor | None:
        if self.shift == 0:
            return None
        rows, columns = (-(-side // self.window) for side in tokens.shape[1:3])
        # A tensor that is made while a graph is traced must not outlive the trace.
        make = shift_mask.__wrapped__ if torch.compiler.is_compiling() else shift_mask
        return make(rows, columns, self.window, self.shift, tokens.device)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, rows, columns, dim] -> the same shape."""
        attended = self.attn(self._cut(self.norm1(tokens)), self._mask(tokens))
        tokens = tokens + self._drop(self._paste(attended, *tokens.shape[1:3]))
        return tokens + self._drop(self.mlp(self.norm2(tokens)))

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


class SwinTransformer(nn.Module):
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

    Attributes:
        patch_size: Side in pixels of what one token of the last stage stands for.
        dim: Width of the embedding.
        heads: Attention heads of the last stage.
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
        self.patch_embed = NormedPatchEmbed(channels, dim)
        rates = [drop_path * i / (sum(depths) - 1) for i in range(sum(depths))]
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

    def _tokens(self, images: Tensor) -> Tensor:
        """The normed tokens of the last stage, [batch, rows, columns, dim]."""
        tokens = self.patch_embed(images)
        for stage in self.layers:
            tokens = stage(tokens)
        normed: Tensor = self.norm(tokens)
        return normed

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images, [batch, channels, height, width] -> embedding [batch, dim]."""
        return self._tokens(images).mean(dim=(1, 2))

    def regions(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What EsViT's two losses compare.

        Args:
            images: Normalised images, [batch, channels, height, width].

        Returns:
            The embedding, [batch, dim], and the tokens it is the mean of, [batch, n, dim].
        """
        tokens = self._tokens(images).flatten(1, 2)
        return tokens.mean(dim=1), tokens

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


def pad(maps: Tensor, multiple: int) -> Tensor:
    """Zeros on the right and at the bottom of [batch, rows, columns, c], up to a multiple."""
    bottom, right = (-side % multiple for side in maps.shape[1:3])
    if bottom == right == 0:
        return maps
    return F.pad(maps, (0, 0, 0, right, 0, bottom))


def partition(maps: Tensor, window: int) -> Tensor:
    """[batch, rows, columns, c] -> [batch, windows, window * window, c]."""
    tiles: Tensor = maps.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def unpartition(windows: Tensor, window: int, across: int) -> Tensor:
    """The inverse of `partition`, with `across` windows side by side."""
    tiles: Tensor = windows.unflatten(2, (window, window)).unflatten(1, (-1, across))
    return tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def relative_positions(window: int) -> Tensor:
    """The row of the bias table for each query and key of a window, [n, n]."""
    index = torch.arange(window * window)
    row, column = index // window, index % window
    down = row[:, None] - row + window - 1
    across = column[:, None] - column + window - 1
    return down * (2 * window - 1) + across


@functools.lru_cache(maxsize=64)
def shift_mask(down: int, across: int, window: int, shift: int, device: torch.device) -> Tensor:
    """What keeps tokens apart that a shift has brought together from opposite edges.

    Args:
        down: Windows below each other.
        across: Windows side by side.
        window: Side of a window.
        shift: Tokens that the map was rolled by, up and to the left.
        device: Where the mask is needed.

    Returns:
        0 or -100 for each window, query and key, [windows, 1, n, n].
    """
    rolled_rows = torch.arange(down * window, device=device) >= down * window - shift
    rolled_columns = torch.arange(across * window, device=device) >= across * window - shift
    origin = 2 * rolled_rows[:, None] + rolled_columns.long()
    origin = partition(origin[None, :, :, None], window).squeeze(0)
    apart = origin != origin.transpose(1, 2)
    return (MASKED * apart).unsqueeze(1)


SIZES = {
    "swin_tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin_small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin_base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
}


def swin(
    architecture: str, window: int = 7, image_size: int = 224, drop_path: float = 0.0
) -> SwinTransformer:
    """Build one of EsViT's transformers, `swin_tiny`, `swin_small` or `swin_base`."""
    dim, depths, heads = SIZES[architecture]
    return SwinTransformer(dim, depths, heads, window, image_size, drop_path=drop_path)
