"""Encoded bytes -> the model's pixels, each photograph shortly before its turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager

from service.batching import Batcher
from service.bundle import Bundle
from service.engines.base import Engine
from service.images import Limits, View, prepare
from service.settings import Settings
from service.telemetry import metrics
from service.telemetry.record import note
from service.turns import Turns
from service.waiting import Image


class Decoding:
    """Decodes for one model, no further ahead of its engine than that never waits.

    The other photographs of a flood wait as the bytes that they came as, and those whose clients
    leave meanwhile cost nothing.

    Args:
        bundle: The model.
        settings: Limits, and how many threads the decoder has.
        batcher: Takes the pixels; it is told of those that are on their way.
        engine: Says how many images it takes at once.
        decoder: Threads that decode, for this model and for others.

    Attributes:
        limits: What is refused.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: Settings,
        batcher: Batcher,
        engine: Engine,
        decoder: Executor,
    ) -> None:
        self.limits = Limits(
            bytes=settings.max_image_bytes,
            pixels=settings.max_pixels,
            patches=settings.max_patches,
        )
        self._spec = bundle.manifest.input
        self._size = 3 * self._spec.crop**2
        self._batcher = batcher
        self._engine = engine
        self._decoder = decoder
        self._threads = settings.threads
        self._turns = Turns(self._ahead)

    def require_room(self, deadline: float) -> None:
        """Refuse a photograph that would not be answered in time, before anything is done for it.

        Raises:
            Overloaded: As the batcher says.
        """
        self._batcher.admit(self._size, deadline, ahead=self._batcher.expected)

    async def pixels(self, data: bytes, view: View, deadline: float) -> Image:
        """The fitted photograph, uint8 [height, width, 3], at once.

        Raises:
            FovealError: As `prepare` does for photograph and view, and the batcher for the load.
        """
        with self._expecting(deadline):
            return await self._decode(data, view)

    @asynccontextmanager
    async def in_turn(
        self, data: bytes, view: View, deadline: float
    ) -> AsyncIterator[tuple[Image, float]]:
        """Give the fitted photograph and the seconds that it waited; leave when it is answered.

        Raises:
            FovealError: As `pixels` does.
        """
        asked = time.perf_counter()
        async with AsyncExitStack() as turn:
            with self._expecting(deadline):
                await turn.enter_async_context(self._turns)
                started = time.perf_counter()
                image = await self._decode(data, view)
                ended = time.perf_counter()
            note("decode", started, ended)
            metrics.PREPROCESS_SECONDS.observe(ended - started)
            yield image, started - asked

    def _ahead(self) -> int:
        """How many photographs are decoded and not yet answered: enough that no run waits."""
        return 2 * self._engine.slots * self._engine.max_batch + self._threads

    def _expecting(self, deadline: float) -> AbstractContextManager[None]:
        # Asked before decoding: in a flood, the work for those who are refused would take the
        # processor from those who are served.
        return self._batcher.expecting(self._size, deadline)

    def _decode(self, data: bytes, view: View) -> asyncio.Future[Image]:
        return asyncio.get_running_loop().run_in_executor(
            self._decoder, prepare, data, self._spec, view, self.limits
        )
