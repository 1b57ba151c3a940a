"""Multi-head self-attention, whole or for some of the queries only.

Source: Vaswani et al., "Attention Is All You Need" (2017), section 3.2.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from training.models.linear import Linear, linear

SHORT_SEQUENCE = 256


class Attention(nn.Module):
    """Multi-head self-attention whose queries may be some of the tokens only."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale: float = (dim // heads) ** -0.5
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

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
        if key.is_cpu and self.training and key.shape[2] <= SHORT_SEQUENCE:
            return self.weights(query, key) @ value
        return F.scaled_dot_product_attention(query, key, value)

    def keys_and_values(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Project the tokens that are attended to."""
        dim = tokens.shape[-1]
        return self._split(linear(tokens, self.qkv.weight[dim:], self.qkv.bias[dim:]), 2)

    def queries(self, tokens: Tensor) -> Tensor:
        """Project the tokens that attend."""
        dim = tokens.shape[-1]
        return self._split(linear(tokens, self.qkv.weight[:dim], self.qkv.bias[:dim]), 1)[0]

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        """The attention itself, [batch, heads, queries, tokens]; meant for few of either."""
        scores = (self.scale * query) @ key.transpose(-2, -1)
        return scores.softmax(dim=-1, dtype=scores.dtype)
