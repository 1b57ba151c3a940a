"""Where the buckets of rate limits are kept: in this process, or in Redis for all gateways.

The algorithm is GCRA (ITU-T I.371): of each bucket only the time is kept at which it is full again.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from service.breaker import Breaker
from service.guards.rates import Bucket, Rate
from service.redis import connect
from service.settings import Settings

CALLERS = 65_536
PREFIX = "foveal:rate:"
# Redis' own clock, so that gateways whose clocks differ agree.
SCRIPT = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local cost, room = tonumber(ARGV[1]), tonumber(ARGV[2])
local full = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
local allowed = full - now <= room
if allowed then
    full = full + cost
    local expiry = math.ceil((full - now) * 1000) + 1
    redis.call('SET', KEYS[1], string.format('%.6f', full), 'PX', expiry)
end
return {allowed and 1 or 0, string.format('%.6f', full - now)}
"""


class Limiter(Protocol):
    """Keeps the buckets.

    Attributes:
        rate: How large they are and how fast they fill.
    """

    rate: Rate

    async def take(self, caller: str, images: int, *, debt: bool = False) -> Bucket:
        """Take images out of the caller's bucket if it holds one, or in any case for `debt`."""
        ...

    async def close(self) -> None:
        """Hang up."""
        ...


class LocalLimiter:
    """Keeps the buckets of this process.

    Args:
        rate: How large they are and how fast they fill.
        clock: Seconds that never go backwards.
    """

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    async def take(self, caller: str, images: int, *, debt: bool = False) -> Bucket:
        """Take images out of the caller's bucket if it holds one, or in any case for `debt`."""
        now = self._clock()
        full_at = max(self._full_at.get(caller, now), now)
        allowed = debt or full_at - now <= self.rate.seconds - self.rate.each + 1e-9
        if allowed:
            full_at += images * self.rate.each
            self._full_at[caller] = full_at
            self._full_at.move_to_end(caller)
            # A caller not seen for longest has the fullest bucket: forgetting it gives away least.
            while len(self._full_at) > CALLERS:
                self._full_at.popitem(last=False)
        return Bucket(allowed, full_at - now)

    async def close(self) -> None:
        """There is nothing to hang up."""


class SharedLimiter:
    """Keeps the buckets of all gateways in Redis: one round trip, one atomic script.

    While Redis fails, each gateway limits by itself.

    Args:
        rate: How large they are and how fast they fill.
        url: Where Redis listens.
        timeout: Seconds that a request waits for Redis.
    """

    def __init__(self, rate: Rate, url: str, timeout: float) -> None:
        self.rate = rate
        self._timeout = timeout
        self._redis = connect(url)
        self._script = self._redis.register_script(SCRIPT)
        self._breaker = Breaker("Rate limiting by Redis")
        self._local = LocalLimiter(rate)

    async def take(self, caller: str, images: int, *, debt: bool = False) -> Bucket:
        """Take images out of the caller's bucket if it holds one, or in any case for `debt`."""
        if not self._breaker.allows():
            return await self._local.take(caller, images, debt=debt)
        room = math.inf if debt else self.rate.seconds - self.rate.each + 1e-6
        try:
            async with asyncio.timeout(self._timeout):
                allowed, filling = await self._script(
                    keys=[f"{PREFIX}{self.rate.images}/{self.rate.seconds}:{caller}"],
                    args=[images * self.rate.each, min(room, 1e9)],
                )
            bucket = Bucket(bool(allowed), float(filling))
        # Not only Redis's own errors: a broken server makes the client raise whatever it likes.
        except Exception as error:
            self._breaker.failed(error)
            return await self._local.take(caller, images, debt=debt)
        self._breaker.succeeded()
        return bucket

    async def close(self) -> None:
        """Hang up."""
        await self._redis.aclose()


def limiter_of(settings: Settings) -> Limiter | None:
    """The limiter that the settings ask for, if any."""
    if settings.rate_limit is None:
        return None
    rate = Rate.parse(settings.rate_limit)
    if settings.redis_url is None:
        return LocalLimiter(rate)
    return SharedLimiter(rate, settings.redis_url.get_secret_value(), settings.cache_redis_timeout)
