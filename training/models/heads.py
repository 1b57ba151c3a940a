"""The projection head that DINO trains through and throws away."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.vit import init_linear


class Prototypes(nn.Module):
    """A weight-normed linear layer without bias: row k is weight_g[k] x unit(weight_v[k])."""

    def __init__(self, dim: int, count: int, train_norm: bool) -> None:
        super().__init__()
        # torch's own initialisation of a linear layer, as the published models start from.
        self.weight_v = nn.Parameter(nn.Linear(dim, count, bias=False).weight.detach())
        self.weight_g = nn.Parameter(torch.ones(count, 1), requires_grad=train_norm)

    def forward(self, features: Tensor) -> Tensor:
        """[batch, dim] -> [batch, count]."""
        return F.linear(features, self.weight_g * F.normalize(self.weight_v, dim=1))


class DINOHead(nn.Module):
    """Three linear layers, an L2 norm and the prototypes (the paper's section 3.1).

    Args:
        dim: Width of the backbone's embedding.
        prototypes: Number of outputs K.
        hidden: Width of the two hidden layers.
        bottleneck: Width of the normed features in front of the prototypes.
        norm_last_layer: Keep the prototypes at unit norm; steadier, a little worse for ViT-S.
        batch_norm: Normalise the hidden layers over the batch (the published code's
            `use_bn_in_head`): a short run leaves the uniform start sooner.
    """

    def __init__(
        self,
        dim: int,
        prototypes: int,
        hidden: int = 2048,
        bottleneck: int = 256,
        norm_last_layer: bool = True,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.prototypes = prototypes
        layers: list[nn.Module] = []
        for width in (dim, hidden):
            layers.append(nn.Linear(width, hidden))
            if batch_norm:
                # The batch's own statistics always: a teacher's running ones would lag behind.
                layers.append(nn.BatchNorm1d(hidden, track_running_stats=False))
            layers.append(nn.GELU())
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        self.mlp.apply(init_linear)
        self.last_layer = Prototypes(bottleneck, prototypes, train_norm=not norm_last_layer)

    def forward(self, embedding: Tensor) -> Tensor:
        """[batch, dim] -> logits [batch, prototypes]."""
        logits: Tensor = self.last_layer(F.normalize(self.mlp(embedding), dim=-1))
        return logits
