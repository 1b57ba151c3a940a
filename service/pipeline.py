"""The one path from encoded bytes to outputs: bytes -> cache -> image -> batch -> outputs."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Coroutine
from concurrent.futures import Executor
from functools import partial

from service.batching import Batcher
from service.bundle import Bundle
from service.cache import Cache
from service.deadline import Deadline
from service.decoding import Decoding
from service.engines.base import Engine, Outputs, ServerStatistics
from service.errors import DeadlineExceeded, InvalidOption, Overloaded
from service.flights import Flight, Flights
from service.images import View
from service.settings import MEGABYTE, Settings
from service.telemetry import metrics
from service.telemetry.record import count_image, note
from service.waiting import Image

# Looked up once: a hit must cost next to nothing.
CACHE_COUNTERS = {result: metrics.CACHE.labels(result) for result in ("hit", "miss", "coalesced")}


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
        cache: Cache,
        decoder: Executor,
    ) -> None:
        self.batcher = Batcher(engine, settings.max_queue)
        self.requests: Counter[str] = Counter()
        self._bundle = bundle
        self._engine = engine
        self._cache = cache
        self._decoding = Decoding(bundle, settings, self.batcher, engine, decoder)
        self._open = False
        self._flights = Flights()

    @property
    def ready(self) -> bool:
        """Whether a photograph would be accepted now."""
        return self._open and self._engine.ready

    async def statistics(self) -> list[ServerStatistics]:
        """What each server that runs the model has counted; none where it runs in this process."""
        return await self._engine.statistics()

    async def start(self) -> None:
        """Warm the engine up, then accept photographs."""
        await self._engine.warm_up()
        self.batcher.start()
        self._open = True

    async def close(self) -> None:
        """Refuse new photographs, answer those accepted, and release the model."""
        self._open = False
        await self._flights.landed()
        await self.batcher.close()
        # An engine that is stuck would never close.
        if not self.batcher.stuck:
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
        found = self.begin(data, view, outputs, deadline)
        return found if isinstance(found, dict) else await found

    def begin(
        self, data: bytes, view: View, outputs: tuple[str, ...], deadline: float
    ) -> Outputs | Coroutine[None, None, Outputs]:
        """Recall the outputs at once, or give what to await for them: a hit needs no task.

        Raises:
            InvalidOption: An output is not one that the model has.
        """
        self._require_outputs(outputs)
        count_image()
        if len(data) > MEGABYTE:
            return self._recall_large(data, view, outputs, deadline)
        return self._recall(_sha256(data), data, view, outputs, deadline)

    async def infer(self, image: Image, outputs: tuple[str, ...], deadline: float) -> Outputs:
        """Compute the outputs of one photograph that is fitted already; nothing is cached.

        Args:
            image: uint8 [height, width, 3], RGB; stays unchanged until the answer is there.
            outputs: Names of the bundle's outputs.
            deadline: When the answer is of no more use, in the event loop's time.

        Returns:
            The outputs asked for, without a batch axis.

        Raises:
            InvalidOption: The model has no such output, or does not take this size.
            Overloaded: Too many images wait, or the server is starting or draining.
            DeadlineExceeded: The answer was not there by `deadline`.
        """
        self._require_outputs(outputs)
        count_image()
        multiple = self._bundle.manifest.input.multiple
        height, width = image.shape[:2]
        if height % multiple or width % multiple:
            raise InvalidOption(
                f"{height} x {width} pixels: both sides must be multiples of {multiple}."
            )
        if (patches := height * width // multiple**2) > self._decoding.limits.patches:
            raise InvalidOption(
                f"{height} x {width} pixels are {patches} patches; the limit is "
                f"{self._decoding.limits.patches}. Send a smaller one."
            )
        return await self.batcher.submit(image, outputs, deadline)

    async def pixels(self, data: bytes, view: View, deadline: float) -> Image:
        """The fitted photograph, uint8 [height, width, 3], as the model sees it.

        Raises:
            FovealError: As `run` does for the photograph, the view and the load.
        """
        self._require_open()
        return await self._decoding.pixels(data, view, deadline)

    def _recall(
        self, name: str, data: bytes, view: View, outputs: tuple[str, ...], deadline: float
    ) -> Outputs | Coroutine[None, None, Outputs]:
        size = self._bundle.manifest.input.crop if view.size is None else view.size
        # Two engines differ in the last digits, and a hit is to be what its miss would have been.
        numbers = f"{self._bundle.digest}:{self._engine.name}:{self._engine.precision}"
        key = f"{name}:{numbers}:{view.fit}:{size}"
        keys = {output: f"{key}:{output}" for output in outputs}
        held = self._cache.recall(keys.values())
        known = {output: held[key] for output, key in keys.items() if key in held}
        if len(known) == len(keys):
            self._count("hit")
            return known
        missing = {output: key for output, key in keys.items() if output not in known}
        if not self._cache.shared and not self._flights.covering(missing.values()):
            # What nobody else may have is refused before anything is begun for it: in a flood that
            # is most of the work.
            self._decoding.require_room(deadline)
        return self._complete(known, missing, data, view, deadline)

    async def _recall_large(
        self, data: bytes, view: View, outputs: tuple[str, ...], deadline: float
    ) -> Outputs:
        async with Deadline(deadline):
            # Not in the decoding pool: a hit must not wait for the decoding of others.
            name = await asyncio.to_thread(_sha256, data)
        found = self._recall(name, data, view, outputs, deadline)
        return found if isinstance(found, dict) else await found

    async def _complete(
        self, known: Outputs, missing: dict[str, str], data: bytes, view: View, deadline: float
    ) -> Outputs:
        async with Deadline(deadline):
            answer = await self._join(data, view, missing, deadline)
        return {output: answer[output] for output in missing} | known

    async def _join(
        self, data: bytes, view: View, keys: dict[str, str], deadline: float
    ) -> Outputs:
        """Wait for the flight that computes all of `keys`, or for a new one."""
        flight = self._flights.covering(keys.values())
        if flight:
            self._count("coalesced")
        else:
            self._require_open()
            compute = partial(self._compute, data, view, keys)
            flight = self._flights.launch(keys.values(), deadline, compute)
        return await self._flights.join(flight, deadline)

    async def _compute(
        self, data: bytes, view: View, keys: dict[str, str], flight: Flight
    ) -> Outputs:
        answer = await self._fetch(keys)
        missing = tuple(name for name in keys if name not in answer)
        self._count("miss" if missing else "hit")
        if missing:
            async with self._decoding.in_turn(data, view, flight.deadline) as (image, waited):
                computed = await self._submit(flight, image, missing, waited)
            for name, array in computed.items():
                array.setflags(write=False)
                self._cache.put(keys[name], array)
            answer |= computed
        return answer

    async def _fetch(self, keys: dict[str, str]) -> Outputs:
        if not self._cache.shared:
            return {}
        started = time.perf_counter()
        held = await self._cache.fetch(tuple(keys.values()))
        note("cache", started, time.perf_counter())
        return {name: held[key] for name, key in keys.items() if key in held}

    async def _submit(
        self, flight: Flight, image: Image, outputs: tuple[str, ...], waited: float
    ) -> Outputs:
        while True:
            deadline = flight.deadline
            try:
                return await self.batcher.submit(image, outputs, deadline, waited)
            except DeadlineExceeded:
                # Somebody with more time may have joined while the image waited.
                if flight.deadline <= deadline:
                    raise

    def _count(self, result: str) -> None:
        self.requests[result] += 1
        CACHE_COUNTERS[result].inc()

    def _require_outputs(self, outputs: tuple[str, ...]) -> None:
        for name in outputs:
            if name not in self._bundle.manifest.outputs:
                known = ", ".join(self._bundle.manifest.outputs)
                raise InvalidOption(f"The model has no output {name!r}; it has {known}.")

    def _require_open(self) -> None:
        if not self._open:
            metrics.SHED.labels("closed").inc()
            raise Overloaded("The server is starting or draining; try another.", retry_after=1)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
