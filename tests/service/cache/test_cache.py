"""Memory and a real Redis together, while nothing fails."""

import asyncio
import tracemalloc
from typing import Any

import numpy as np
import pytest
from redis import Redis

from service.cache import Cache
from service.cache.redis import PREFIX
from service.settings import Settings
from tests.redis_servers import RedisServer
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("patient_writes")


def array(seed: int = 0, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def shared(server: RedisServer, **settings: Any) -> Cache:
    return Cache(Settings(redis_url=server.url, **{"cache_redis_timeout": 60, **settings}))


async def filled(server: RedisServer, *keys: str) -> None:
    """Another gateway puts an array under each key."""
    cache = shared(server)
    for seed, key in enumerate(keys):
        cache.put(key, array(seed))
    await cache.close()


async def test_a_hit_in_memory_equals_what_was_put_to_the_last_bit() -> None:
    cache = Cache(Settings())
    put = np.array([[0.1, -0.0], [np.nan, np.inf], [1e-45, -1e-45]], np.float32)
    cache.put("key", put)
    assert list(cache.recall(["other", "key"])) == ["key"]
    got = cache.recall(["key"])["key"]
    assert (got.dtype, got.shape, got.tobytes()) == (put.dtype, put.shape, put.tobytes())


async def test_a_hit_in_redis_equals_what_another_gateway_put_and_enters_memory(
    redis_server: RedisServer,
) -> None:
    put = np.array([[0.1, -0.0], [np.nan, np.inf], [1e-45, -1e-45]], np.float32)
    one, other = shared(redis_server), shared(redis_server)
    one.put("key", put)
    await one.close()
    assert other.recall(["key"]) == {}
    found = await other.fetch(["key", "missing"])
    assert list(found) == ["key"]
    for got in (found["key"], other.recall(["key"])["key"]):
        assert (got.dtype, got.shape, got.tobytes()) == (put.dtype, put.shape, put.tobytes())
        assert not got.flags.writeable
    assert other.redis is not None
    assert other.redis.reads == {"hit": 1, "miss": 1}
    await other.close()


async def test_nothing_done_to_an_array_changes_the_cache(redis_server: RedisServer) -> None:
    cache, put = shared(redis_server), array()
    before = put.tobytes()
    cache.put("key", put)
    put[:] = 0
    got = cache.recall(["key"])["key"]
    with pytest.raises(ValueError, match="read-only"):
        got[0] = 1
    assert got.tobytes() == before
    await cache.close()
    other = shared(redis_server)
    assert (await other.fetch(["key"]))["key"].tobytes() == before
    await other.close()


async def test_a_row_of_a_batch_does_not_keep_the_batch() -> None:
    cache = Cache(Settings(cache_bytes=10**9))
    tracemalloc.start()
    for n in range(8):
        cache.put(str(n), np.zeros((1000, 1000), np.float32)[0])
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 100_000


async def test_without_redis_there_is_nothing_to_fetch() -> None:
    cache = Cache(Settings())
    cache.put("key", array())
    assert not cache.shared
    assert await cache.fetch(["key"]) == {}
    await cache.close()


async def test_what_is_asked_in_one_turn_of_the_loop_goes_in_one_mget(
    redis_server: RedisServer,
) -> None:
    await filled(redis_server, "a", "b", "c")
    cache = shared(redis_server)
    answers = await asyncio.gather(
        cache.fetch(["a"]), cache.fetch(["b", "none"]), cache.fetch(["a", "c"])
    )
    assert [set(answer) for answer in answers] == [{"a"}, {"b"}, {"a", "c"}]
    assert answers[2]["c"].tobytes() == array(2).tobytes()
    assert asked(redis_server) == 1
    await cache.fetch(["a"])
    assert asked(redis_server) == 2
    await cache.close()


async def test_one_who_gives_up_leaves_the_others_their_answer(redis_server: RedisServer) -> None:
    await filled(redis_server, "a")
    cache = shared(redis_server)
    gone, stays = (asyncio.create_task(cache.fetch(["a"])) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    assert set(await stays) == {"a"}
    assert gone.cancelled()
    await cache.close()


async def test_an_entry_is_forgotten_after_its_time(redis_server: RedisServer) -> None:
    for key, seconds in (("later", 600), ("soon", 0.2)):
        cache = shared(redis_server, cache_ttl=seconds)
        cache.put(key, array())
        await cache.close()
        assert cache.redis is not None
        assert cache.redis.writes == {"stored": 1}
    assert 0 < redis_server("PTTL", f"{PREFIX}later") <= 600_000
    async with asyncio.timeout(30):
        await until(lambda: not redis_server("EXISTS", f"{PREFIX}soon"))


async def test_writes_over_the_bound_are_dropped_and_none_is_waited_for(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.cache.redis.QUEUE_BYTES", 10 * array().nbytes)
    cache = shared(redis_server)
    assert cache.redis is not None
    for n in range(25):
        cache.put(str(n), array(n))
    assert cache.redis.writes == {"dropped": 15}
    await cache.close()
    assert cache.redis.writes == {"dropped": 15, "stored": 10}
    assert redis_server("DBSIZE") == 10


async def test_foreign_and_damaged_values_are_missing_and_replaced(
    redis_server: RedisServer,
) -> None:
    await filled(redis_server, "good", "moved", "cut")
    whole = redis_server("GET", f"{PREFIX}cut")
    assert isinstance(whole, bytes)
    redis_server("SET", f"{PREFIX}cut", whole[:-1])
    redis_server("COPY", f"{PREFIX}good", f"{PREFIX}moved", "REPLACE")
    redis_server("SET", f"{PREFIX}text", "hello")
    redis_server("RPUSH", f"{PREFIX}list", "hello")
    cache = shared(redis_server)
    keys = ["good", "moved", "cut", "text", "list"]
    assert set(await cache.fetch(keys)) == {"good"}
    assert cache.redis is not None
    assert cache.redis.reads == {"hit": 1, "error": 3, "miss": 1}
    assert not cache.redis.reading.open
    for key in keys:
        cache.put(key, array(9))
    await cache.close()
    other = shared(redis_server)
    found = await other.fetch(keys)
    assert {value.tobytes() for value in found.values()} == {array(9).tobytes()}
    assert set(found) == set(keys)
    await other.close()


def asked(server: RedisServer) -> int:
    """How many MGETs the server has answered."""
    with Redis.from_url(server.url) as client:
        calls: int = client.info("commandstats").get("cmdstat_mget", {"calls": 0})["calls"]
        return calls
