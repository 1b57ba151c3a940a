"""The seam between the batcher and whatever runs the model."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Outputs = dict[str, NDArray[np.float32]]


class EngineUnavailable(Exception):
    """The engine or precision asked for cannot run here; the message says why and what can."""


class Engine(Protocol):
    """Runs the graph of one bundle.

    Attributes:
        name: `onnx`, `openvino` and so on.
        precision: Of the matrix products: `fp32`, `bf16` or `int8`.
        max_batch: The most images that one run takes.
        slots: How many runs may be in flight at once.
    """

    name: str
    precision: str
    max_batch: int
    slots: int

    async def infer(
        self, images: Images, outputs: tuple[str, ...], *, lone: bool = False
    ) -> Outputs:
        """Run images of one shape, uint8 [batch, height, width, 3], and give the named outputs.

        Args:
            images: The batch.
            outputs: Names; the arrays keep their batch axis.
            lone: Nothing else wants the machine meanwhile: the answer should be there soonest,
                whatever it takes of it.
        """
        ...

    async def warm_up(self) -> None:
        """Run the default size once at each batch bucket; ready afterwards."""
        ...

    @property
    def ready(self) -> bool:
        """Whether a request can be answered now."""
        ...

    async def close(self) -> None:
        """Finish the runs in flight and release the model."""
        ...
