"""What the objectives, the evaluation and the export ask of a backbone, whatever its family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

from torch import Tensor, nn


class Features(NamedTuple):
    """What a backbone says about a batch of images.

    Attributes:
        embedding: One vector an image, [batch, dim]: the normed CLS token, or the mean of the
            patches where there is none.
        patches: The normed patch tokens, [batch, rows, columns, dim].
        attention: The last layer's attention to each patch, [batch, heads, rows, columns]. From
            CLS it would sum to one with CLS's attention to itself and to registers; where there
            is no CLS it sums to one.
    """

    embedding: Tensor
    patches: Tensor
    attention: Tensor


class Backbone(nn.Module, ABC):
    """A network that turns normalised images into an embedding, regions and attention.

    Attributes:
        patch_size: Side in pixels of what one region stands for.
        dim: Width of the embedding and of a region.
        heads: Number of attention maps.
        depth: Number of blocks; the attention is that of the last.
        channels: Number of colour channels.
        prefix_tokens: Number of tokens in front of the patches: CLS and registers.
        query: Whose attention the maps show: that of CLS, or the mean over the patches.
    """

    patch_size: int
    dim: int
    heads: int
    depth: int
    channels: int
    prefix_tokens: int
    query: Literal["cls", "mean"]

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Normalised images, [batch, channels, height, width] -> embedding [batch, dim]."""

    @abstractmethod
    def regions(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What EsViT's two losses compare.

        Args:
            images: Normalised images, [batch, channels, height, width].

        Returns:
            The embedding, [batch, dim], and the normed patch tokens, [batch, n, dim].
        """

    @abstractmethod
    def features(self, images: Tensor) -> Features:
        """Normalised images, [batch, channels, height, width] -> all that the model says."""


class PooledBackbone(Backbone):
    """A backbone without CLS: its embedding is the mean of its patches."""

    prefix_tokens = 0
    query = "mean"

    @abstractmethod
    def patches(self, images: Tensor) -> Tensor:
        """Normalised images, [batch, channels, height, width] -> [batch, rows, columns, dim]."""

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images, [batch, channels, height, width] -> embedding [batch, dim]."""
        return self.patches(images).mean(dim=(1, 2))

    def regions(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The embedding, [batch, dim], and the patches it is the mean of, [batch, n, dim]."""
        patches = self.patches(images).flatten(1, 2)
        return patches.mean(dim=1), patches
