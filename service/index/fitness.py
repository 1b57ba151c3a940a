"""Whether a Redis can keep an index: looked at once, before anything is served."""

from __future__ import annotations

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.retry import Retry

from service.index.base import IndexUnavailable


def require_fitness(url: str, timeout: float) -> None:
    """Ask the Redis at `url` for what an index needs.

    Raises:
        IndexUnavailable: It cannot; the message says why and what to do.
    """
    limits = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **limits) as client:
        try:
            memory: Any = client.info("memory")
            client.execute_command("FT._LIST")
        except (RedisError, OSError) as error:
            raise IndexUnavailable(f"The Redis of redis_url {_fault(error)}") from None
        if client.get_connection_kwargs().get("db", 0):
            raise IndexUnavailable(
                "The query engine works in database 0 only; let redis_url end in /0, or in nothing"
            )
        if memory["maxmemory"] and memory["maxmemory_policy"].startswith("allkeys"):
            raise IndexUnavailable(
                f"Redis would drop items when it is full (maxmemory-policy is "
                f"{memory['maxmemory_policy']}); set it to volatile-lru, which drops only cached "
                "outputs, or to noeviction"
            )


def _fault(error: Exception) -> str:
    if isinstance(error, AuthenticationError):
        return f"refuses the user or the password ({error})"
    if isinstance(error, ResponseError) and "unknown command" in str(error):
        return "has no query engine; use Redis 8, or leave index at local"
    if isinstance(error, ResponseError):
        return f"refuses what an index needs ({error}); give its user the right"
    return f"cannot be reached ({error}); mend it, or leave index at local"
