"""The one path from encoded bytes to outputs: bytes -> cache -> image -> batch -> outputs."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from concurrent.futures import Executor
from dataclasses import dataclass, field

from service.batching import Batcher, Image, within
from service.bundle import Bundle
from service.cache import MemoryCache
from service.engines.base import Engine, Outputs
from service.errors import DeadlineExceeded, InvalidOption, Overloaded
from service.images import Limits, View, prepare
from service.settings import MEGABYTE, Settings

PRECISION = "fp32"


@dataclass(eq=False, slots=True)
class _Flight:
    """One computation, and how many wait for it until when."""

    keys: dict[str, str]
    deadline: float
    waiters: int = 0
    task: asyncio.Task[Outputs] = field(init=False)


class Pipeline:
    """Turns photographs into the outputs of one model; every route uses it.

    The cache holds one entry for each output of an image, not one for each set of outputs: a
    photograph that was embedded and is then asked for its attention shares what is known already,
    and a large `patches` array can leave while the small `embedding` stays.

    Args:
        bundle: The model.
        engine: Runs it.
        settings: Limits, and the size of the queue.
        cache: Holds outputs computed before, of this model and of others.
        decoder: Threads that decode, for this model and for others.

    Attributes:
        batcher: Holds the images that are decoded and wait for the engine.
        requests: How many images were answered how: `hit`, `miss` or `coalesced`.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        settings: Settings,
        cache: MemoryCache,
        decoder: Executor,
    ) -> None:
        self.batcher = Batcher(engine, settings.max_queue)
        self.requests: Counter[str] = Counter()
        self._bundle = bundle
        self._engine = engine
        self._cache = cache
        self._decoder = decoder
        self._max_queue = settings.max_queue
        self._limits = Limits(
            bytes=settings.max_image_bytes,
            pixels=settings.max_pixels,
            patches=settings.max_patches,
        )
        self._open = False
        self._decoding: set[asyncio.Future[Image]] = set()
        self._flights: dict[str, _Flight] = {}
        self._tasks: set[asyncio.Task[Outputs]] = set()

    @property
    def ready(self) -> bool:
        """Whether a photograph would be accepted now."""
        return self._open and self._engine.ready

    async def start(self) -> None:
        """Warm the engine up, then accept photographs."""
        await self._engine.warm_up()
        self.batcher.start()
        self._open = True

    async def close(self) -> None:
        """Refuse new photographs, answer those accepted, and release the model."""
        self._open = False
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self.batcher.close()
        await self._engine.close()

    async def run(
        self, data: bytes, view: View, outputs: tuple[str, ...], deadline: float
    ) -> Outputs:
        """Compute the outputs of one encoded photograph, or recall them.

        Args:
            data: The encoded bytes.
            view: How the photograph is fitted to the model.
            outputs: Names of the bundle's outputs.
            deadline: When the answer is of no more use, in the event loop's time.

        Returns:
            The outputs asked for, read-only, without a batch axis.

        Raises:
            InvalidOption: An output or the view is not one that the model has.
            TooLarge: The photograph is over its limit in bytes.
            UnsupportedMediaType: The bytes are no image of an accepted type.
            UndecodableImage: The photograph is damaged or over its limit in pixels.
            Overloaded: Too many images wait, or the server is starting or draining.
            DeadlineExceeded: The answer was not there by `deadline`.
        """
        for name in outputs:
            if name not in self._bundle.manifest.outputs:
                known = ", ".join(self._bundle.manifest.outputs)
                raise InvalidOption(f"The model has no output {name!r}; it has {known}.")
        async with within(deadline):
            key = await self._key(data, view)
            keys = {name: f"{key}:{name}" for name in outputs}
            answer: Outputs = {}
            for output_key in keys.values():
                answer |= self._cache.get(output_key) or {}
            missing = {name: key for name, key in keys.items() if name not in answer}
            if missing:
                answer = await self._join(data, view, missing, deadline) | answer
            else:
                self.requests["hit"] += 1
            return {name: answer[name] for name in outputs}

    async def pixels(self, data: bytes, view: View) -> Image:
        """The fitted photograph, uint8 [height, width, 3], as the model sees it.

        Raises:
            FovealError: As `run` does for the photograph, the view and the load.
        """
        return await self._decode(data, view)

    async def _key(self, data: bytes, view: View) -> str:
        # Not in the decoding pool: a hit must not wait for the decoding of others.
        large = len(data) > MEGABYTE
        name = await asyncio.to_thread(_sha256, data) if large else _sha256(data)
        size = self._bundle.manifest.input.crop if view.size is None else view.size
        return f"{name}:{self._bundle.digest}:{PRECISION}:{view.fit}:{size}"

    async def _join(
        self, data: bytes, view: View, keys: dict[str, str], deadline: float
    ) -> Outputs:
        """Wait for the flight that computes all of `keys`, or for a new one.

        The flight goes on while anybody waits for it, and is cancelled when nobody does.
        """
        flights = {self._flights.get(key) for key in keys.values()}
        flight = flights.pop() if len(flights) == 1 else None
        if flight:
            self.requests["coalesced"] += 1
            flight.deadline = max(flight.deadline, deadline)
        else:
            flight = self._launch(data, view, keys, deadline)
            self.requests["miss"] += 1
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if not flight.waiters:
                flight.task.cancel()
                self._forget(flight)

    def _launch(self, data: bytes, view: View, keys: dict[str, str], deadline: float) -> _Flight:
        flight = _Flight(keys, deadline)
        flight.task = asyncio.create_task(self._compute(flight, self._decode(data, view)))
        self._tasks.add(flight.task)
        flight.task.add_done_callback(self._tasks.discard)
        self._flights |= dict.fromkeys(keys.values(), flight)
        return flight

    def _forget(self, flight: _Flight) -> None:
        for key in flight.keys.values():
            if self._flights.get(key) is flight:
                del self._flights[key]

    async def _compute(self, flight: _Flight, decoding: asyncio.Future[Image]) -> Outputs:
        try:
            image = await decoding
            answer = await self._submit(flight, image)
            for name, array in answer.items():
                array.setflags(write=False)
                self._cache.put(flight.keys[name], {name: array})
            return answer
        finally:
            self._forget(flight)

    async def _submit(self, flight: _Flight, image: Image) -> Outputs:
        while True:
            deadline = flight.deadline
            try:
                return await self.batcher.submit(image, tuple(flight.keys), deadline)
            except DeadlineExceeded:
                # Somebody with more time may have joined while the image waited.
                if flight.deadline <= deadline:
                    raise

    def _decode(self, data: bytes, view: View) -> asyncio.Future[Image]:
        """Decode and fit in the pool, if the queue has room for one more image."""
        if not self._open:
            raise Overloaded("The server is starting or draining; try another.", retry_after=1)
        # Counted before decoding: the pixels of a flood would fill the memory.
        if len(self._decoding) + self.batcher.depth >= self._max_queue:
            raise Overloaded(
                f"The queue is full: {self._max_queue} images wait; try again later.",
                retry_after=1,
            )
        image = asyncio.get_running_loop().run_in_executor(
            self._decoder, prepare, data, self._bundle.manifest.input, view, self._limits
        )
        self._decoding.add(image)
        image.add_done_callback(self._decoding.discard)
        return image


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
