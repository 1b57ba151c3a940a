"""The heads that a network is trained through and that are then thrown away."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import distributed
from training.models.layers import init_linear

# torch's default, of `batch_norm` too.
NORM_EPS = 1e-5


class Head(nn.Module):
    """Embedding [..., dim] -> projection [..., width].

    Attributes:
        predictor: What the student alone has in front of its output; the identity otherwise.
    """

    predictor: nn.Module


class Prototypes(nn.Module):
    """A weight-normed linear layer without bias: row k is weight_g[k] x unit(weight_v[k])."""

    def __init__(self, dim: int, count: int, train_norm: bool) -> None:
        super().__init__()
        # torch's own initialisation of a linear layer, as the published models start from.
        self.weight_v = nn.Parameter(nn.Linear(dim, count, bias=False).weight.detach())
        self.weight_g = nn.Parameter(torch.ones(count, 1), requires_grad=train_norm)

    def forward(self, features: Tensor) -> Tensor:
        """[..., dim] -> [..., count]."""
        # One kernel forward and one back: it is a sixth of a step where K = 65,536.
        weight = torch._weight_norm(self.weight_v, self.weight_g, 0)
        return F.linear(features, weight)


class DINOHead(Head):
    """Three linear layers, an L2 norm and the prototypes (Caron et al., 2021, section 3.1).

    Args:
        dim: Width of the backbone's embedding.
        prototypes: Number of outputs K.
        hidden: Width of the two hidden layers.
        bottleneck: Width of the normed features in front of the prototypes.
        norm_last_layer: Keep the prototypes at unit norm; steadier, a little worse for ViT-S.
        batch_norm: Normalise the hidden layers over the batch (the published code's
            `use_bn_in_head`): a short run leaves the uniform start sooner.
        predictor: Put BYOL's predictor between the last hidden layer and the norm. The paper
            (Table 7, row 6) does not say where; behind K = 65,536 outputs it would not fit.
    """

    def __init__(
        self,
        dim: int,
        prototypes: int,
        hidden: int = 2048,
        bottleneck: int = 256,
        norm_last_layer: bool = True,
        batch_norm: bool = False,
        predictor: bool = False,
    ) -> None:
        super().__init__()
        self.prototypes = prototypes
        layers: list[nn.Module] = []
        for width in (dim, hidden):
            layers.append(nn.Linear(width, hidden))
            if batch_norm:
                layers.append(BatchNorm(hidden))
            layers.append(nn.GELU())
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        self.mlp.apply(init_linear)
        self.predictor = two_layers(bottleneck, hidden, bottleneck) if predictor else nn.Identity()
        self.last_layer = Prototypes(bottleneck, prototypes, train_norm=not norm_last_layer)

    def forward(self, embedding: Tensor) -> Tensor:
        """[..., dim] -> logits [..., prototypes]."""
        bottleneck = self.predictor(self.mlp(embedding))
        logits: Tensor = self.last_layer(F.normalize(bottleneck, dim=-1))
        return logits


class ProjectionHead(Head):
    """Two linear layers, and two more in front of the output for a student that predicts.

    Source: Chen et al., "A Simple Framework for Contrastive Learning" (2020), section 2.1;
    Grill et al., "Bootstrap Your Own Latent" (2020), section 3.3.

    Args:
        dim: Width of the backbone's embedding.
        hidden: Width of the hidden layers.
        out: Width of the projection.
        batch_norm: Normalise the hidden layers over the batch; BYOL needs it.
        predictor: Whether the student has a predictor.
    """

    def __init__(
        self, dim: int, hidden: int, out: int, batch_norm: bool, predictor: bool = False
    ) -> None:
        super().__init__()
        self.projector = two_layers(dim, hidden, out, batch_norm)
        self.predictor = two_layers(out, hidden, out, batch_norm) if predictor else nn.Identity()

    def forward(self, embedding: Tensor) -> Tensor:
        """[..., dim] -> [..., out]."""
        projection: Tensor = self.predictor(self.projector(embedding))
        return projection


class BatchNorm(nn.Module):
    """Batch normalisation over all but the last axis, by the batch's own statistics always.

    The batch is that of all processes. A teacher's running statistics would lag behind.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, features: Tensor) -> Tensor:
        """[..., width] -> the same shape."""
        rows = features.flatten(0, -2)
        if distributed.world() == 1:
            normed = F.batch_norm(rows, None, None, self.weight, self.bias, training=True)
        else:
            centred = rows.float() - distributed.mean(rows.float().mean(dim=0))
            variance = distributed.mean(centred.square().mean(dim=0))
            normed = centred * (variance + NORM_EPS).rsqrt() * self.weight + self.bias
        return normed.to(features.dtype).view_as(features)


def two_layers(dim: int, hidden: int, out: int, batch_norm: bool = True) -> nn.Sequential:
    """A linear layer, batch normalisation, ReLU and a linear layer."""
    norm = BatchNorm(hidden) if batch_norm else nn.Identity()
    return nn.Sequential(nn.Linear(dim, hidden), norm, nn.ReLU(), nn.Linear(hidden, out))
