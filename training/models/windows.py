"""Attention in windows: cutting maps into them, relative positions and the mask of a shift."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.layers import INIT_STD
from training.models.linear import Linear

MASKED = -100.0


class WindowAttention(nn.Module):
    """Multi-head self-attention within each window, biased by relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale: float = (dim // heads) ** -0.5
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
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


def multiples(side: int, of: int) -> int:
    """How many times `of` fits into a side, rounded up."""
    return (side + of - 1) // of


def pad(maps: Tensor, multiple: int) -> Tensor:
    """Zeros on the right and at the bottom of [batch, rows, columns, c], up to a multiple."""
    bottom, right = (multiples(side, multiple) * multiple - side for side in maps.shape[1:3])
    # A graph is traced at one size and used at others.
    if not torch.compiler.is_exporting() and bottom == right == 0:
        return maps
    return F.pad(maps, (0, 0, 0, right, 0, bottom))


def partition(maps: Tensor, window: int) -> Tensor:
    """[batch, rows, columns, c] -> [batch, windows, window * window, c]."""
    down, across = (multiples(side, window) for side in maps.shape[1:3])
    tiles: Tensor = maps.unflatten(2, (across, window)).unflatten(1, (down, window))
    return tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def unpartition(windows: Tensor, window: int, down: int, across: int) -> Tensor:
    """The inverse of `partition`, for `down` by `across` windows."""
    tiles: Tensor = windows.unflatten(2, (window, window)).unflatten(1, (down, across))
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
