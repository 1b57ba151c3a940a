"""The processes of one run: who they are, and what they compute together.

Every function also works in a run of one process, where it moves nothing. All processes must call
them in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from training.stopping import Stopped

# The others wait while the first process evaluates. One that ends is noticed by torchrun at once.
PATIENCE = timedelta(hours=12)


@contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """Join the other processes that `torchrun` has started, if it has."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    # Numbers that steer the run are on the CPU, where they keep no GPU waiting.
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield
    except Stopped:
        dist.destroy_process_group()
        raise
    # Not after an error: leaving takes all processes, and the others may know nothing of it. This
    # one ends as it is, and torchrun ends them.
    dist.destroy_process_group()


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def mean(values: Tensor) -> Tensor:
    """The mean over all processes, with gradients."""
    return total(values) / world()


def total(values: Tensor) -> Tensor:
    """The sum over all processes, with gradients."""
    if world() == 1:
        return values
    everywhere: Tensor = _Total.apply(values)  # type: ignore[no-untyped-call]
    return everywhere


class _Total(torch.autograd.Function):
    """Each process's loss depends on each one's share, so gradients are summed likewise."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient)


def largest(value: int) -> int:
    """The largest of all processes' numbers."""
    if world() == 1:
        return value
    values = torch.tensor(value)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return int(values)


def gather(rows: Tensor) -> Tensor:
    """Every process's rows in the order of the global batch, with gradients; [world * n, ...].

    A batch is dealt out one image at a time (`rows[rank::world]`), so this collects it likewise.
    """
    if world() == 1:
        return rows
    everywhere = rows.new_zeros(world() * len(rows), *rows.shape[1:])
    everywhere[rank() :: world()] = rows
    return total(everywhere)
