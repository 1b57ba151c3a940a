"""The next batch is made while a step is done with this one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


def ahead(batches: Iterator[list[Tensor]], device: torch.device) -> Iterator[list[Tensor]]:
    """The same batches, each made while the one before it is used.

    They are made in a thread and, on a GPU, in a stream of their own: what waits for a copy there
    delays no step.

    Args:
        batches: Made on the device.
        device: Where.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def make() -> list[Tensor] | None:
        with torch.cuda.stream(stream):
            return next(batches, None)

    with ThreadPoolExecutor(1) as thread:
        batch = thread.submit(make).result()
        while batch is not None:
            if stream is not None:
                current = torch.cuda.current_stream(device)
                current.wait_stream(stream)
                for crop in batch:
                    crop.record_stream(current)
            coming = thread.submit(make)
            yield batch
            batch = coming.result()
