"""What is said to one Triton server, by gRPC: which model it has, runs, statistics."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tritonclient.grpc import (  # type: ignore[import-untyped]
    InferenceServerException,
    InferInput,
    InferRequestedOutput,
)

from service.bundle import Bundle, BundleError
from service.engines.base import EngineUnavailable, Images, Outputs, ServerStatistics
from service.engines.signature import Node, check_signature
from service.engines.triton.connection import Connection
from service.engines.triton.memory import Region, Regions
from service.errors import DeadlineExceeded, InvalidOption, Overloaded

ASK_LIMIT = 2.0  # seconds
STATISTICS_LIMIT = 1.0
NANOSECONDS = 1e9
DTYPES = {"UINT8": "uint8", "FP32": "float32"}
# In Triton's own words: the codes that go with them stand for other things as well.
FULL = "Exceeds maximum queue size"
LATE = "Request timeout expired"
UNKNOWN_REGION = "Unable to find shared memory region"


class Gone(Overloaded):
    """The server did not answer a run, or no longer has the model."""

    def __init__(self) -> None:
        super().__init__("The model server is gone; try again.", retry_after=1)


@dataclass(frozen=True, slots=True)
class Served:
    """What a server says of the model.

    Attributes:
        version: Under which it has the bundle's graph.
        precision: Of its matrix products.
        max_batch: The most images of a request.
        instances: How many runs go on at once.
        size: The height and width that it takes alone; None where any will do.
    """

    version: str
    precision: str
    max_batch: int
    instances: int
    size: tuple[int | None, ...]


class Client:
    """Speaks to one server about one model.

    Args:
        connection: Leads to it.
        bundle: The model.
        regions: Memory that it shares with this process.

    Attributes:
        address: The server's.
        manifest: The model's.
    """

    def __init__(self, connection: Connection, bundle: Bundle, regions: Regions | None) -> None:
        self.address = connection.address
        self.manifest = bundle.manifest
        self._connection = connection
        self._bundle = bundle
        self._name = bundle.manifest.name
        self._regions = regions
        self._registered: set[str] = set()

    async def connect(self) -> None:
        """Connect, before all else and whenever the server was lost.

        Raises:
            EngineUnavailable: A certificate or key cannot be used.
        """
        await self._connection.open()

    async def ask(self) -> Served:
        """What the server has of the model.

        Raises:
            EngineUnavailable: Another model.
            TlsMismatch: The two sides disagree about TLS.
            InferenceServerException: It does not answer, or has no such model yet.
        """
        try:
            metadata = await self._grpc.get_model_metadata(self._name, client_timeout=ASK_LIMIT)
        except InferenceServerException as error:
            raise self._connection.meaning(error) from None
        version = max(metadata.versions, key=int)
        answer = await self._grpc.get_model_config(self._name, version, client_timeout=ASK_LIMIT)
        parameters = {key: value.string_value for key, value in answer.config.parameters.items()}
        if (digest := parameters.get("digest")) != self._bundle.digest:
            raise EngineUnavailable(
                f"Triton at {self.address} has the model {self._name} with the digest {digest}; "
                f"that of {self._bundle.path} is {self._bundle.digest}. Export this bundle to its "
                "repository with `foveal-train export --triton`, or serve the one that is there"
            )
        inputs, outputs = _nodes(metadata.inputs), _nodes(metadata.outputs)
        where = f"{self._name} of Triton at {self.address}"
        try:
            check_signature(self._bundle, inputs, outputs, where)
        except BundleError as error:
            raise EngineUnavailable(str(error)) from None
        groups = answer.config.instance_group
        return Served(
            version,
            parameters.get("precision", "fp32"),
            answer.config.max_batch_size,
            sum(group.count * max(1, len(group.gpus)) for group in groups) or 1,
            inputs[0].shape[1:3],
        )

    async def infer(
        self, served: Served, images: Images, outputs: tuple[str, ...], limit: float | None
    ) -> Outputs:
        """Run images and give the named outputs.

        Raises:
            Gone: The server did not answer.
            Overloaded: Its queue is full.
            DeadlineExceeded: The answer was not there within `limit` seconds.
            InvalidOption: It takes images of one size alone, and these have another.
            InferenceServerException: The run failed.
        """
        if any(
            size not in (None, s) for size, s in zip(served.size, images.shape[1:], strict=False)
        ):
            height, width = served.size
            raise InvalidOption(
                f"{images.shape[1]} x {images.shape[2]} pixels: the model server takes {height} x "
                f"{width} alone. Send crops of that size, or have it serve the model at every size."
            )
        region = None
        if self._regions:
            usual = 3 * self.manifest.input.crop**2
            region = self._regions.take(images.nbytes, served.max_batch * usual)
        started = asyncio.get_running_loop().time()
        try:
            result = await self._send(served.version, images, outputs, limit, region)
        except InferenceServerException as error:
            waited = asyncio.get_running_loop().time() - started
            raise _meaning(error, late=limit is not None and waited >= limit) from error
        finally:
            if self._regions and region:
                self._regions.give(region)
        return {name: _array(result, name, len(images)) for name in outputs}

    async def statistics(self) -> ServerStatistics:
        """What the server has counted.

        Raises:
            InferenceServerException: It does not tell within a second.
        """
        told = await self._grpc.get_inference_statistics(
            self._name, client_timeout=STATISTICS_LIMIT
        )
        models = told.model_stats  # one of each version
        totals = [model.inference_stats for model in models]
        batches = Counter[int]()
        for batch in (batch for model in models for batch in model.batch_stats):
            batches[batch.batch_size] += batch.compute_infer.count
        return ServerStatistics(
            self.address,
            ready=True,
            images=sum(model.inference_count for model in models),
            batches=batches,
            failed=sum(total.fail.count for total in totals),
            queue_seconds=sum(total.queue.ns for total in totals) / NANOSECONDS,
            compute_seconds=sum(total.compute_infer.ns for total in totals) / NANOSECONDS,
        )

    def forget(self) -> None:
        """Take the server for a new one, which knows of no shared memory."""
        self._registered.clear()

    async def close(self) -> None:
        """Take the shared memory back, if the server listens, and close the connection."""
        with contextlib.suppress(InferenceServerException):
            for name in self._registered:
                await self._grpc.unregister_system_shared_memory(name, client_timeout=ASK_LIMIT)
        await self._connection.close()

    @property
    def _grpc(self) -> Any:
        return self._connection.grpc

    async def _send(
        self,
        version: str,
        images: Images,
        outputs: tuple[str, ...],
        limit: float | None,
        region: Region | None,
    ) -> Any:
        pixels = InferInput("images", images.shape, "UINT8")
        if region is None:
            pixels.set_data_from_numpy(images)
        else:
            region.write(images)
            await self._register(region)
            pixels.set_shared_memory(region.name, images.nbytes)
        infer = partial(
            self._grpc.infer,
            self._name,
            [pixels],
            version,
            [InferRequestedOutput(name) for name in outputs],
            timeout=None if limit is None else max(1, round(1e6 * limit)),
            client_timeout=limit,
        )
        try:
            return await infer()
        except InferenceServerException as error:
            if region is None or UNKNOWN_REGION not in error.message():
                raise
        # It was started anew a moment ago.
        self.forget()
        await self._register(region)
        return await infer()

    async def _register(self, region: Region) -> None:
        if region.name in self._registered:
            return
        try:
            await self._grpc.register_system_shared_memory(
                region.name, region.key, region.size, client_timeout=ASK_LIMIT
            )
        except InferenceServerException as error:
            if error.status() == "StatusCode.INTERNAL":
                raise EngineUnavailable(
                    f"Triton at {self.address} cannot share memory with this process "
                    f"({error.message()}): run both on one machine, as one user and with one "
                    "/dev/shm, or set triton_shared_memory to false"  # noqa: S108 - a message
                ) from error
            if error.status() != "StatusCode.ALREADY_EXISTS":
                raise
        self._registered.add(region.name)


def _meaning(error: Any, *, late: bool) -> Any:
    """What a run's failure means to who waits for it."""
    status, message = error.status(), error.message()
    if status == "StatusCode.DEADLINE_EXCEEDED" or (LATE in message and late):
        return DeadlineExceeded("The model server did not answer before the deadline.")
    if FULL in message or LATE in message:
        return Overloaded("The queue of the model server is full; try again.", retry_after=1)
    if status in ("StatusCode.UNAVAILABLE", "StatusCode.NOT_FOUND", "StatusCode.CANCELLED"):
        return Gone()
    return error


def _array(result: Any, name: str, count: int) -> Any:
    array = result.as_numpy(name)
    if array is None or array.dtype != np.float32 or len(array) != count:
        raise InferenceServerException(f"the answer has no {name} of {count} images")
    return array


def _nodes(tensors: Any) -> list[Node]:
    return [
        Node(
            tensor.name,
            DTYPES.get(tensor.datatype, tensor.datatype),
            tuple(None if size < 0 else size for size in tensor.shape),
        )
        for tensor in tensors
    ]
