"""How Foveal talks to Redis: a bounded pool, and no retries behind the caller's back."""

from __future__ import annotations

from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

CONNECTIONS = 16


def connect(url: str) -> Any:
    """Make a `Redis` client of the server at `url`; nothing is sent before it is used.

    The client has no time-outs of its own: whoever calls it knows how long it may take. It
    gives bytes, which its annotations do not know: hence `Any`.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        protocol=3,
        max_connections=CONNECTIONS,
        timeout=None,
        socket_timeout=None,
        socket_connect_timeout=None,
        retry=Retry(NoBackoff(), 0),
    )
    return Redis.from_pool(pool)
