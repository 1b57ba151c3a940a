"""The parts that the transformers share, and how their weights start."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from training.models.linear import Linear

EPS = 1e-6
INIT_STD = 0.02


class PatchEmbed(nn.Module):
    """Cuts an image into patches and projects each to a token."""

    def __init__(self, patch_size: int, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """[batch, channels, height, width] -> [batch, rows, columns, dim]."""
        tokens: Tensor = self.proj(images)
        return tokens.permute(0, 2, 3, 1)


class MLP(nn.Module):
    """The block's second half: two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return out


def init_linear(module: nn.Module) -> None:
    """DINO's initialisation: linear weights N(0, 0.02), biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
