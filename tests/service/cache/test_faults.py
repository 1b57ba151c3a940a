"""Redis killed, frozen, full and talking nonsense while requests go on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from service.breaker import FAILURES, LONGEST_PAUSE, Breaker
from service.cache import Cache
from service.cache.redis import RedisCache
from service.settings import Settings
from tests.clock import Clock
from tests.ports import free_port
from tests.redis_servers import RedisServer
from tests.waiting import until

TURNS = 30


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """By which the breakers pause."""
    clock = Clock()
    monkeypatch.setattr("service.cache.redis.Breaker", lambda name: Breaker(name, clock))
    monkeypatch.setattr("service.cache.redis.WRITE_TIMEOUT", 0.3)
    return clock


def array(key: str) -> np.ndarray:
    return np.frombuffer(key.encode() * 100, np.uint8).astype(np.float32)


@asynccontextmanager
async def opened(url: str, patience: float = 60) -> AsyncIterator[tuple[Cache, RedisCache]]:
    """A cache that remembers nothing itself."""
    cache = Cache(Settings(redis_url=url, cache_bytes=0, cache_redis_timeout=patience))
    assert cache.redis is not None
    yield cache, cache.redis
    async with asyncio.timeout(30):
        await cache.close()


async def load(cache: Cache, turns: int = TURNS) -> int:
    """Ask as the pipeline does, eight at a time, and compute what is not there; how many hits."""
    hits = 0
    for turn in range(turns):
        keys = [f"{turn % 3}-{n}" for n in range(8)]
        answers = await asyncio.gather(*(cache.fetch([key]) for key in keys))
        for key, found in zip(keys, answers, strict=True):
            if found:
                assert found[key].tobytes() == array(key).tobytes()
                hits += 1
            else:
                cache.put(key, array(key))
        await asyncio.sleep(0)
    return hits


async def recovered(cache: Cache, redis: RedisCache, clock: Clock) -> None:
    """Go on until both what is put and what is asked reach Redis again."""
    async with asyncio.timeout(30):
        while await load(cache, turns=6) < 6 * 8 or redis.writing.open:
            clock.now += LONGEST_PAUSE
            cache.put("again", array("again"))
            await asyncio.sleep(0.05)
    assert not redis.reading.open


async def test_killed_and_restarted_redis_fails_no_request_and_is_used_again(
    redis_server: RedisServer, clock: Clock
) -> None:
    async with opened(redis_server.url) as (cache, redis):
        await recovered(cache, redis, clock)
        redis_server.kill()
        redis.reads.clear()
        assert await load(cache) == 0
        assert redis.reading.open
        assert redis.reads["error"] == FAILURES * 8
        assert redis.reads["skipped"] == (TURNS - FAILURES) * 8
        redis_server.start()
        await recovered(cache, redis, clock)
        assert redis.reading.opened == 1


async def test_killed_during_load_and_back_at_once(redis_server: RedisServer, clock: Clock) -> None:
    async def restart() -> None:
        for _ in range(3):
            await asyncio.sleep(0.05)
            await asyncio.to_thread(redis_server.kill)
            await asyncio.to_thread(redis_server.start)
            clock.now += LONGEST_PAUSE

    async with opened(redis_server.url) as (cache, redis):
        restarting = asyncio.create_task(restart())
        while not restarting.done():
            await load(cache, turns=6)
        await restarting
        await recovered(cache, redis, clock)


async def test_frozen_redis_is_waited_for_three_times_and_then_left_alone(
    redis_server: RedisServer, clock: Clock
) -> None:
    async with opened(redis_server.url, patience=1) as (cache, redis):
        await recovered(cache, redis, clock)
        redis_server.freeze()
        redis.reads.clear()
        assert await load(cache) == 0
        # A time-out is paid by those who waited in one of the first turns, and once by each.
        assert redis.reads == {"error": FAILURES * 8, "skipped": (TURNS - FAILURES) * 8}
        redis_server.thaw()
        await recovered(cache, redis, clock)
        assert redis.reading.opened == 1


async def test_an_answer_that_comes_too_late_is_no_ones(
    redis_server: RedisServer, clock: Clock
) -> None:
    async with opened(redis_server.url, patience=1) as (cache, redis):
        await recovered(cache, redis, clock)
        for _ in range(FAILURES - 1):
            redis_server.freeze()
            assert await cache.fetch(["0-0"]) == {}
            redis_server.thaw()
        found = await cache.fetch(["0-1"])
        assert found["0-1"].tobytes() == array("0-1").tobytes()
        assert not redis.reading.open


async def test_frozen_redis_does_not_hold_up_closing(
    redis_server: RedisServer, clock: Clock
) -> None:
    async with opened(redis_server.url) as (cache, redis):
        await recovered(cache, redis, clock)
        redis_server.freeze()
        for n in range(3000):
            cache.put(str(n), np.zeros(1000, np.float32))
    assert redis.writes["error"] + redis.writes["dropped"] == 3000


async def test_full_redis_still_answers_reads_and_is_written_to_when_it_has_room(
    redis_server: RedisServer, clock: Clock
) -> None:
    async with opened(redis_server.url) as (cache, redis):
        await recovered(cache, redis, clock)
        redis_server("CONFIG", "SET", "maxmemory-policy", "noeviction", "maxmemory", "1")
        async with asyncio.timeout(30):
            while not redis.writing.open:
                cache.put("early", array("early"))
                await asyncio.sleep(0.002)
        assert redis.writes["error"] >= FAILURES
        dropped = redis.writes["dropped"]
        cache.put("early", array("early"))
        await until(lambda: redis.writes["dropped"] > dropped)
        assert await load(cache) == TURNS * 8
        assert not redis.reading.open
        redis_server("CONFIG", "SET", "maxmemory", "0")
        async with asyncio.timeout(30):
            while redis.writing.open:
                clock.now += LONGEST_PAUSE
                cache.put("later", array("later"))
                await asyncio.sleep(0.01)
        assert set(await cache.fetch(["later"])) == {"later"}


NONSENSE = {
    "noise": bytes(range(256)) * 8,
    "ok to everything": b"+OK\r\n",
    "an array of other things": b"*8\r\n" + b":7\r\n" * 8,
    "too short an array": b"*1\r\n$5\r\nhello\r\n",
    "a map": b"%1\r\n$1\r\na\r\n$1\r\nb\r\n",
    "a web page": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "an error": b"-ERR broken\r\n",
    "a promise of a terabyte": b"$1099511627776\r\nabc",
    "many answers to one question": b"*1\r\n$1\r\na\r\n" * 1000,
    "nothing": b"",
}


@pytest.mark.parametrize("greets", [True, False], ids=["after a greeting", "at once"])
@pytest.mark.parametrize("kind", NONSENSE)
async def test_a_server_that_talks_nonsense_fails_no_request(kind: str, greets: bool) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if greets and b"HELLO" in data:
                writer.write(b"%1\r\n$5\r\nproto\r\n:3\r\n")
            elif greets and b"CLIENT" in data:
                writer.write(b"+OK\r\n" * data.count(b"CLIENT"))
            else:
                writer.write(NONSENSE[kind])
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    # Values that come in time and are not ours are missing; all else leaves the server alone.
    values = greets and kind == "an array of other things"
    async with opened(f"redis://127.0.0.1:{port}", 60 if values else 0.1) as (cache, redis):
        assert await load(cache) == 0
        assert redis.reads["error"] + redis.reads["skipped"] == TURNS * 8
        assert redis.reading.open == (not values)
    server.close()
    await server.wait_closed()


async def test_without_a_server_it_starts_and_uses_the_one_that_comes(
    redis_server: RedisServer, clock: Clock
) -> None:
    redis_server.kill()
    async with opened(redis_server.url) as (cache, redis):
        assert await load(cache) == 0
        assert redis.reading.open
        redis_server.start()
        await recovered(cache, redis, clock)


async def test_no_server_at_all_and_a_wrong_password_are_told_without_the_password(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    redis_server("CONFIG", "SET", "requirepass", "right")
    for url in (
        f"redis://user:wr0ng-secret@127.0.0.1:{redis_server.port}",
        f"redis://:wr0ng-secret@127.0.0.1:{free_port()}",
    ):
        caplog.clear()
        async with opened(url) as (cache, _):
            await load(cache)
        (record,) = caplog.records
        assert "left alone" in record.getMessage()
        assert "wr0ng-secret" not in caplog.text
