"""Parameters dealt out over the processes (FSDP2), for models that leave a GPU no room.

Each process keeps a share of every parameter, its gradient, its average in the teacher and its
moments in the optimiser, and collects a block's for as long as it computes with it. A checkpoint
holds them in one piece, as that of a run that is not sharded.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from training import distributed
from training.models import resnet, swin, vit
from training.models.backbone import Backbone

BLOCKS = (vit.Block, swin.Block, resnet.BasicBlock, resnet.Bottleneck)


def shard(objective: nn.Module, device: torch.device) -> None:
    """Deal out the parameters of student and teacher, whose shares then follow one another.

    Args:
        objective: On the device, the same on every process.
        device: Of this process.
    """
    # Nothing here writes into the views that networks return.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    mesh = init_device_mesh(device.type, (distributed.world(),))
    for network in list(objective.modules()):
        if not any(isinstance(child, Backbone) for child in network.children()):
            continue
        for block in list(network.modules()):
            if isinstance(block, BLOCKS):
                fully_shard(block, mesh=mesh)
            if isinstance(block, vit.Block):
                register_fsdp_forward_method(block, "cls_query")
        # A root would keep its parameters collected until a backward pass, which a teacher has not.
        fully_shard(network, mesh=mesh, reshard_after_forward=True)


def whole(state: Any) -> Any:
    """A state with its tensors in one piece, in the first process's memory; empty in the others."""

    def collect(shares: DTensor) -> Tensor:
        tensor: Tensor = shares.full_tensor()
        return tensor.cpu() if distributed.rank() == 0 else tensor.new_empty(0)

    return tree_map_only(DTensor, collect, state)


def load(objective: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over the `objective` and `optimizer` of a whole state, each process its share."""
    ours = objective.state_dict()
    objective.load_state_dict(
        {name: _share(value, ours.get(name)) for name, value in state["objective"].items()}
    )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        index: {name: _share(value, parameters[index]) for name, value in values.items()}
        for index, values in state["optimizer"]["state"].items()
    }
    optimizer.load_state_dict({**state["optimizer"], "state": moments})


def _share(value: Any, like: Tensor | None) -> Any:
    """A tensor sharded as the parameter that it belongs to is; anything else as it is."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    # Every process has read the whole checkpoint, so none need send it.
    return distribute_tensor(
        value.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )
