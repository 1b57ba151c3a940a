"""One Triton server: looked at every second, and left alone while it is gone or fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import numpy as np
from tritonclient.grpc import InferenceServerException  # type: ignore[import-untyped]

from service.breaker import Breaker
from service.engines.base import Images, Outputs, ServerStatistics
from service.engines.triton.client import Client, Gone, Served
from service.errors import Overloaded

logger = logging.getLogger(__name__)

PAUSE = 1.0  # seconds between two looks
TRIAL_LIMIT = 30.0


class Server:
    """A server that is sent images once it has the bundle's model and has run one image.

    No longer, when a look or a run shows that it is gone, or when runs keep failing.

    Args:
        client: Speaks to it.
        agree: Raises EngineUnavailable where the server does not fit the others.

    Attributes:
        runs: How many runs it was sent.
        looked: Set once it was looked at.
    """

    def __init__(self, client: Client, agree: Callable[[Served], None]) -> None:
        self.runs = 0
        self.looked = asyncio.Event()
        self._problem: BaseException | None = None
        self._client = client
        self._address = client.address
        self._manifest = client.manifest
        self._agree = agree
        self._breaker = Breaker(f"Triton at {client.address}")
        self._served: Served | None = None
        self._missed = False
        self._doubt = asyncio.Event()
        self._calls: set[asyncio.Task[Outputs]] = set()
        self._watch = asyncio.create_task(self._watching())

    @property
    def served(self) -> Served | None:
        """What it serves, if it is to be sent images."""
        return None if self._breaker.open else self._served

    @property
    def in_flight(self) -> int:
        """How many runs it has not answered."""
        return len(self._calls)

    async def infer(self, images: Images, outputs: tuple[str, ...], limit: float | None) -> Outputs:
        """Run images and give the named outputs.

        Raises:
            Gone: The server did not answer, or is not to be sent images.
            Overloaded: Its queue is full.
            DeadlineExceeded: The answer was not there within `limit` seconds.
            InferenceServerException: The run failed.
        """
        if self.served is None:
            raise Gone
        try:
            answer = await self._run(self.served, images, outputs, limit)
        except Gone as error:
            self._breaker.failed(error)
            self._lose(error.__cause__ or error)
            raise
        self._breaker.succeeded()
        return answer

    def disproved(self, error: Exception) -> None:
        """A run that failed here was done by another server."""
        # Otherwise the images may be at fault. A server that fails quickly looks idle: it would be
        # sent more than all others.
        if not isinstance(error, Overloaded):
            self._breaker.failed(error)

    async def statistics(self) -> ServerStatistics:
        """What it has counted; one that does not tell within a second is not ready."""
        if self.served:
            with contextlib.suppress(InferenceServerException):
                return await self._client.statistics()
        return ServerStatistics(self._address, ready=False)

    async def leave(self) -> None:
        """Let go of the server when it has answered the runs in flight."""
        if self._calls:
            await asyncio.wait(self._calls)
        await self.close()

    async def close(self) -> None:
        """Let go of the server; the runs in flight are given up."""
        self._watch.cancel()
        await asyncio.wait({self._watch})
        self._give_up()
        await self._client.close()

    async def _watching(self) -> None:
        while True:
            if self.served or self._breaker.allows():
                await self._look()
                self.looked.set()
            self._doubt.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PAUSE):
                    await self._doubt.wait()

    async def _look(self) -> None:
        try:
            if self._served is None:
                await self._client.connect()
            served = await self._client.ask()
            if self.served is None:
                await self._try(served)
            self._agree(served)
        except Exception as error:  # whatever it is, the next look may be better
            late = _kind(error) == "StatusCode.DEADLINE_EXCEEDED"
            if late and self.served and not self._missed:
                self._missed = True  # once may be a hiccup of our own event loop
            else:
                self._lose(error.__cause__ or error)
        else:
            if self._served is None:
                logger.info("Triton at %s serves %s", self._address, self._manifest.name)
            self._missed, self._served, self._problem = False, served, None

    async def _try(self, served: Served) -> None:
        """Run one image: what cannot do that is sent none of others."""
        side = self._manifest.input.crop
        image = np.zeros((1, side, side, 3), np.uint8)
        try:
            await self._run(served, image, self._manifest.outputs, TRIAL_LIMIT)
        except Exception as error:
            self._breaker.failed(error)
            raise
        if self._breaker.open:
            self._breaker.succeeded()

    async def _run(
        self, served: Served, images: Images, outputs: tuple[str, ...], limit: float | None
    ) -> Outputs:
        call = asyncio.create_task(self._client.infer(served, images, outputs, limit))
        self._calls.add(call)
        self.runs += 1
        try:
            await asyncio.wait({call})
        finally:
            call.cancel()
            self._calls.discard(call)
        if call.cancelled():
            raise Gone
        return call.result()

    def _lose(self, error: BaseException) -> None:
        if self._served is not None or _kind(error) != _kind(self._problem):
            logger.warning("Triton at %s is not used: %s", self._address, error)
        self._missed, self._served, self._problem = False, None, error
        self._client.forget()
        self._doubt.set()
        self._give_up()

    def _give_up(self) -> None:
        for call in self._calls:
            call.cancel()


def _kind(error: BaseException | None) -> object:
    return error.status() if isinstance(error, InferenceServerException) else str(error)
