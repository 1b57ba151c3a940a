"""What moves the parameters: groups, gradient clipping and the optimiser."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from training import distributed
from training.config import OptimizerConfig

SGD_MOMENTUM = 0.9


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser over all that a gradient reaches; learning rate and decay come each step."""
    groups = parameter_groups(model)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=SGD_MOMENTUM, foreach=True)
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Weight decay for all but biases and one-dimensional parameters."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = name.endswith(".bias") or parameter.ndim == 1
            (free if exempt else decayed).append(parameter)
    return [{"params": decayed}, {"params": free, "weight_decay": 0.0}]


@torch.no_grad()
def clip_each(parameters: Iterable[nn.Parameter], limit: float) -> None:
    """Scale each gradient on its own to at most the norm `limit`, whole or sharded."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    shares = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    norms = torch.stack(torch._foreach_norm(shares))
    if any(isinstance(g, DTensor) for g in gradients):
        norms = distributed.total(norms.square()).sqrt()
    factors = (limit / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(shares, list(factors.unbind()))
