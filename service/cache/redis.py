"""The cache that many gateways share: Redis, which may be slow, full, frozen or gone at any time.

A read takes no longer than the time-out and a write delays nobody. While Redis fails, breakers
keep requests away from it. A full Redis refuses writes and still answers reads, so each has a
breaker of its own.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Mapping, Sequence

from service.breaker import Breaker
from service.cache.memory import Array
from service.cache.values import decode, encode
from service.redis import connect
from service.telemetry import metrics

PREFIX = "foveal:cache:"
QUEUE_BYTES = 64_000_000
BATCH_BYTES = 1_000_000
WRITE_TIMEOUT = 1.0  # seconds; nobody waits for a write, but one that hangs holds up the rest


class RedisCache:
    """Maps keys to arrays in Redis; forgets each after a while.

    Args:
        url: Where Redis listens.
        ttl: Seconds after which an entry is forgotten.
        timeout: Seconds that a read may take.

    Attributes:
        reads: How many keys were a `hit`, a `miss`, an `error` or, with the breaker open,
            `skipped`.
        writes: How many entries were `stored`, `dropped` or an `error`.
        reading: The breaker before reads.
        writing: The breaker before writes.
    """

    def __init__(self, url: str, ttl: float, timeout: float) -> None:
        self.reads: Counter[str] = Counter()
        self.writes: Counter[str] = Counter()
        self.reading = Breaker("The cache in Redis")
        self.writing = Breaker("Writing to the cache in Redis")
        self._redis = connect(url)
        self._ttl = round(1000 * ttl)
        self._timeout = timeout
        self._asked: dict[str, None] = {}
        self._asking: asyncio.Task[dict[str, Array]] | None = None
        self._queue: deque[tuple[str, Array]] = deque()
        self._queued = 0
        self._writer: asyncio.Task[None] | None = None

    async def fetch(self, keys: Sequence[str]) -> dict[str, Array]:
        """What Redis holds of `keys`, read-only; nothing whenever it does not answer in time.

        All keys asked for in one turn of the event loop go in one MGET.
        """
        if self._asking is None:
            if not self.reading.allows():
                self.reads["skipped"] += len(keys)
                return {}
            self._asking = asyncio.create_task(self._ask())
        self._asked |= dict.fromkeys(keys)
        # Shielded: of those who wait for one answer, some may give up.
        found = await asyncio.shield(self._asking)
        return {key: found[key] for key in keys if key in found}

    def put(self, key: str, array: Array) -> None:
        """Send `array`, which nobody may change any more, when there is time; or drop it."""
        if self.reading.open or self._queued + array.nbytes > QUEUE_BYTES:
            self.writes["dropped"] += 1
            return
        self._queue.append((key, array))
        self._queued += array.nbytes
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all())

    async def close(self) -> None:
        """Write what is queued, if Redis takes it, and hang up."""
        if self._writer:
            await self._writer
        await self._redis.aclose()

    async def _ask(self) -> dict[str, Array]:
        keys, self._asked, self._asking = list(self._asked), {}, None
        try:
            async with asyncio.timeout(self._timeout):
                values = await self._redis.mget([PREFIX + key for key in keys])
            answers = dict(zip(keys, values, strict=True))
        # Not only Redis's own errors: a broken server makes the client raise whatever it likes.
        except Exception as error:
            self._failed(len(keys))
            self.reading.failed(error)
            return {}
        self.reading.succeeded()
        return self._decode(answers)

    def _decode(self, answers: Mapping[str, object]) -> dict[str, Array]:
        found = {}
        for key, value in answers.items():
            try:
                if value is not None:
                    found[key] = decode(key, value)
                self.reads["miss" if value is None else "hit"] += 1
            except ValueError:
                self._failed(1)
        return found

    def _failed(self, keys: int) -> None:
        self.reads["error"] += keys
        metrics.CACHE.labels("error").inc(keys)

    async def _write_all(self) -> None:
        while self._queue:
            batch = self._take()
            if self.reading.open or not self.writing.allows():
                self.writes["dropped"] += len(batch)
            else:
                await self._write(batch)
        self._writer = None

    def _take(self) -> list[tuple[str, Array]]:
        batch, taken = [], 0
        while self._queue and taken < BATCH_BYTES:
            key, array = self._queue.popleft()
            batch.append((key, array))
            taken += array.nbytes
        self._queued -= taken
        return batch

    async def _write(self, batch: list[tuple[str, Array]]) -> None:
        try:
            async with asyncio.timeout(WRITE_TIMEOUT):
                commands = self._redis.pipeline(transaction=False)
                for key, array in batch:
                    commands.set(PREFIX + key, encode(key, array), px=self._ttl)
                await commands.execute()
        except Exception as error:  # as in `_ask`
            self.writes["error"] += len(batch)
            self.writing.failed(error)
        else:
            self.writes["stored"] += len(batch)
            self.writing.succeeded()
