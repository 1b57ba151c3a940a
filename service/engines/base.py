"""The seam between the batcher and whatever runs the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Outputs = dict[str, NDArray[np.float32]]


class EngineUnavailable(Exception):
    """The engine or precision asked for cannot run here; the message says why and what can."""


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """What a server that runs the model has counted since it started.

    Attributes:
        server: Its address.
        ready: Whether it is sent images; the counts are empty if not.
        images: Images that it has run.
        batches: How many runs there were of each batch size.
        failed: Requests that it has refused or that failed.
        queue_seconds: Time that requests waited for a run, summed.
        compute_seconds: Time of the runs as each request saw it, summed.
    """

    server: str
    ready: bool
    images: int = 0
    batches: Mapping[int, int] = field(default_factory=dict)
    failed: int = 0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0


class Engine(Protocol):
    """Runs the graph of one bundle."""

    @property
    def name(self) -> str:
        """`onnx`, `openvino` and so on."""
        ...

    @property
    def precision(self) -> str:
        """Of the matrix products: `fp32`, `bf16`, `fp16` or `int8`."""
        ...

    @property
    def max_batch(self) -> int:
        """The most images that one run takes."""
        ...

    @property
    def slots(self) -> int:
        """How many runs may be in flight at once."""
        ...

    async def infer(
        self,
        images: Images,
        outputs: tuple[str, ...],
        *,
        lone: bool = False,
        limit: float | None = None,
    ) -> Outputs:
        """Run images of one shape, uint8 [batch, height, width, 3], and give the named outputs.

        Args:
            images: The batch.
            outputs: Names; the arrays keep their batch axis.
            lone: Nothing else wants the machine meanwhile: the answer should be there soonest,
                whatever it takes of it.
            limit: Seconds after which nobody wants the answer. A run in this process cannot be
                stopped and goes on; one elsewhere is given up.

        Raises:
            Overloaded: What runs the model takes no more, or is gone.
            DeadlineExceeded: The run was given up.
        """
        ...

    async def warm_up(self) -> None:
        """Run the default size once at each batch bucket; ready afterwards.

        Where servers run the model and none has it yet, ready as soon as one does.
        """
        ...

    @property
    def ready(self) -> bool:
        """Whether a request can be answered now."""
        ...

    async def statistics(self) -> list[ServerStatistics]:
        """What each server that runs the model has counted; none where it runs in this process."""
        ...

    async def close(self) -> None:
        """Finish the runs in flight and release the model."""
        ...
