"""The cache of raw outputs: memory in front of a Redis that many gateways share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from service.cache.memory import Array, MemoryCache
from service.cache.redis import RedisCache
from service.settings import Settings


class Cache:
    """Maps keys to arrays; a hit equals what was put to the last bit and is read-only.

    Args:
        settings: The memory to take, and the Redis to share with others, if any.

    Attributes:
        memory: What this process holds.
        redis: What all gateways hold, or None.
    """

    def __init__(self, settings: Settings) -> None:
        self.memory = MemoryCache(settings.cache_bytes)
        self.redis: RedisCache | None = None
        if settings.redis_url is not None:
            self.redis = RedisCache(
                settings.redis_url.get_secret_value(),
                settings.cache_ttl,
                settings.cache_redis_timeout,
            )

    @property
    def shared(self) -> bool:
        """Whether what is not in memory may be had by `fetch`."""
        return self.redis is not None

    def recall(self, keys: Iterable[str]) -> dict[str, Array]:
        """What memory holds of `keys`."""
        held = ((key, self.memory.get(key)) for key in keys)
        return {key: array for key, array in held if array is not None}

    async def fetch(self, keys: Sequence[str]) -> dict[str, Array]:
        """What Redis holds of `keys`; nothing whenever it fails or is late."""
        if self.redis is None:
            return {}
        found = await self.redis.fetch(keys)
        for key, array in found.items():
            self.memory.put(key, array)
        return found

    def put(self, key: str, array: Array) -> None:
        """Keep a copy of `array`: in memory at once, in Redis when there is time."""
        # A copy, because one image's row would keep its whole batch in memory.
        kept = np.array(array)
        kept.setflags(write=False)
        self.memory.put(key, kept)
        if self.redis is not None:
            self.redis.put(key, kept)

    async def close(self) -> None:
        """Finish writing and hang up."""
        if self.redis is not None:
            await self.redis.close()
