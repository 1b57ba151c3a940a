"""What the shared index adds: many gateways at once, servers that do not fit, and faults."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from service.breaker import FAILURES, FIRST_PAUSE, Breaker
from service.errors import DeadlineExceeded, ModelMismatch, NotFound, Overloaded
from service.index.base import IndexUnavailable
from service.index.redis import RedisIndex
from tests.clock import Clock
from tests.ports import HeldPort
from tests.redis_servers import RedisServer
from tests.service.index.vectors import DIGEST, OTHER, items, query


@asynccontextmanager
async def gateways(server: RedisServer, count: int) -> AsyncIterator[list[RedisIndex]]:
    opened = [RedisIndex(server.url, timeout=60) for _ in range(count)]
    yield opened
    for index in opened:
        await index.close()


def kept(server: RedisServer, pattern: str) -> int:
    found = server("KEYS", pattern)
    assert isinstance(found, list)
    return len(found)


async def test_many_gateways_fill_one_collection_at_once(redis8: RedisServer) -> None:
    async with gateways(redis8, 6) as indices:
        parts = [items(20, seed=n, prefix=f"{n}-") for n in range(6)]
        await asyncio.gather(
            *(
                index.put("photos", part[half : half + 10], DIGEST)
                for index, part in zip(indices, parts, strict=True)
                for half in (0, 10)
            )
        )
        for index in indices:
            assert [c.items for c in await index.collections()] == [120]
            found = await index.search("photos", query(), DIGEST, k=120)
            assert {match.id for match in found} == {i.id for part in parts for i in part}
    assert len(redis8("FT._LIST")) == 1


async def test_a_drop_that_was_not_heard_to_the_end_is_made_good(
    redis8: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gateways(redis8, 2) as (one, other):
        await one.put("photos", items(20), DIGEST)
        execute = one._redis.execute_command

        async def unheard(*command: object, **options: object) -> object:
            if command[0] == "FT.DROPINDEX":
                raise ConnectionError
            return await execute(*command, **options)

        monkeypatch.setattr(one._redis, "execute_command", unheard)
        with pytest.raises(Overloaded):
            await one.drop("photos")
        assert kept(redis8, "foveal:item:*") == 20
        with pytest.raises(NotFound):
            await other.drop("photos")
        assert kept(redis8, "foveal:*") == 0
        assert redis8("FT._LIST") == []


async def test_of_two_models_that_make_a_collection_at_once_one_wins(redis8: RedisServer) -> None:
    async with gateways(redis8, 8) as indices:
        ends = await asyncio.gather(
            *(
                index.put("photos", items(3, prefix=f"{n}-"), DIGEST if n % 2 else OTHER)
                for n, index in enumerate(indices)
            ),
            return_exceptions=True,
        )
        refused = [n for n, end in enumerate(ends) if isinstance(end, ModelMismatch)]
        assert refused in ([0, 2, 4, 6], [1, 3, 5, 7])
        assert all(end is None for n, end in enumerate(ends) if n not in refused)
        (collection,) = await indices[0].collections()
        assert collection.digest == (OTHER if refused[0] else DIGEST)
        assert collection.items == 4 * 3


async def test_puts_searches_and_drops_at_once_leave_nothing_behind(redis8: RedisServer) -> None:
    async def write(index: RedisIndex, prefix: str) -> None:
        for n in range(25):
            await index.put("photos", items(2, seed=n, prefix=prefix), DIGEST)

    async def drop(index: RedisIndex) -> None:
        for _ in range(25):
            try:
                await index.drop("photos")
            except NotFound:
                await asyncio.sleep(0.002)

    async def search(index: RedisIndex) -> None:
        for n in range(25):
            try:
                for match in await index.search("photos", query(n), DIGEST, k=3):
                    assert match.metadata.keys() == {"parity", "number"}
                await index.collections()
            except NotFound:
                await asyncio.sleep(0.002)

    async with gateways(redis8, 5) as (a, b, c, d, e):
        await asyncio.gather(write(a, "a"), write(b, "b"), drop(c), search(d), drop(e))
        await a.put("photos", items(1), DIGEST)
        await a.drop("photos")
    assert redis8("FT._LIST") == []
    assert kept(redis8, "*") == 0


async def test_a_put_of_many_is_whole_or_not_at_all_to_others(redis8: RedisServer) -> None:
    async with gateways(redis8, 2) as (writer, reader):
        await writer.put("photos", items(64), DIGEST)
        writing = asyncio.create_task(writer.put("photos", items(64, prefix="new"), DIGEST))
        seen = set()
        while not writing.done():
            (collection,) = await reader.collections()
            seen.add(collection.items)
        assert seen <= {64, 128}


@pytest.fixture
def fitting(redis8: RedisServer) -> Iterator[RedisServer]:
    yield redis8
    redis8("CONFIG", "SET", "maxmemory-policy", "noeviction", "maxmemory", "0")


def test_a_server_without_the_query_engine_is_refused(redis_server: RedisServer) -> None:
    with pytest.raises(IndexUnavailable, match="no query engine; use Redis 8"):
        RedisIndex(redis_server.url, timeout=60)


def test_a_server_that_is_not_there_is_refused() -> None:
    with HeldPort() as port:
        nobody = f"redis://127.0.0.1:{port.number}"
        with pytest.raises(IndexUnavailable, match="cannot be reached"):
            RedisIndex(nobody, timeout=60)


def test_a_wrong_password_is_refused_and_not_repeated(redis8: RedisServer) -> None:
    redis8("ACL", "SETUSER", "someone", "on", ">right")
    with pytest.raises(IndexUnavailable, match="refuses the user or the password") as error:
        RedisIndex(f"redis://someone:wr0ng@127.0.0.1:{redis8.port}", timeout=60)
    assert "wr0ng" not in str(error.value)


def test_a_user_without_the_right_is_refused(redis8: RedisServer) -> None:
    redis8("ACL", "SETUSER", "reader", "on", ">right", "+info", "+client", "+hello")
    with pytest.raises(IndexUnavailable, match=r"refuses what an index needs .*FT"):
        RedisIndex(f"redis://reader:right@127.0.0.1:{redis8.port}", timeout=60)


def test_a_database_that_cannot_be_searched_is_refused(redis8: RedisServer) -> None:
    with pytest.raises(IndexUnavailable, match="database 0 only"):
        RedisIndex(f"redis://127.0.0.1:{redis8.port}/1", timeout=60)


def test_a_server_that_would_drop_items_is_refused(fitting: RedisServer) -> None:
    fitting("CONFIG", "SET", "maxmemory-policy", "allkeys-lru", "maxmemory", "1gb")
    with pytest.raises(IndexUnavailable, match=r"allkeys-lru.*volatile-lru"):
        RedisIndex(fitting.url, timeout=60)


async def test_a_full_server_refuses_writes_and_still_answers(fitting: RedisServer) -> None:
    async with gateways(fitting, 1) as (index,):
        await index.put("photos", items(5), DIGEST)
        fitting("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(Overloaded, match="maxmemory") as error:
            await index.put("photos", items(5, prefix="new"), DIGEST)
        assert error.value.retry_after
        assert len(await index.search("photos", query(), DIGEST, k=10)) == 5
        fitting("CONFIG", "SET", "maxmemory", "0")
        await index.put("photos", items(5, prefix="new"), DIGEST)
        assert len(await index.search("photos", query(), DIGEST, k=20)) == 10


async def test_a_search_that_takes_too_long_is_not_answered_in_part(redis8: RedisServer) -> None:
    async with gateways(redis8, 1) as (index,):
        await index.put("photos", items(4000), DIGEST)
        held = await index._require("photos")
        index._timeout = 0.001
        with pytest.raises(Overloaded, match=r"0\.001 s"):
            await index._nearest(held, query(), 1000, "*", "EF_RUNTIME 4000")


async def test_a_killed_server_is_503_and_after_its_restart_all_is_there(
    own_redis8: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("service.index.redis.Breaker", lambda name: Breaker(name, clock))
    async with gateways(own_redis8, 1) as (index,):
        await index.put("photos", items(300), DIGEST)
        before = await index.search("photos", query(), DIGEST, k=20, where={"parity": 1})
        own_redis8.kill()
        for operation in (
            index.search("photos", query(), DIGEST, k=1),
            index.put("photos", items(1), DIGEST),
            index.get("photos", "0"),
            index.collections(),
            index.drop("photos"),
        ):
            with pytest.raises(Overloaded, match="cannot be reached") as error:
                await operation
            assert error.value.retry_after
        own_redis8.start()
        clock.now += FIRST_PAUSE
        assert await index.search("photos", query(), DIGEST, k=20, where={"parity": 1}) == before
        assert (await index.get("photos", "299")).metadata["number"] == 299
        await index.put("photos", items(1, prefix="new"), DIGEST)
        assert [c.items for c in await index.collections()] == [301]


async def test_a_frozen_server_is_503_in_time_and_then_at_once(
    own_redis8: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("service.index.redis.Breaker", lambda name: Breaker(name, clock))
    index = RedisIndex(own_redis8.url, timeout=60)
    await index.put("photos", items(5), DIGEST)
    own_redis8.freeze()
    index._timeout = 0.5
    for _ in range(FAILURES):
        with pytest.raises(Overloaded, match="cannot be reached"):
            await index.get("photos", "0")
    assert index._breaker.open
    index._timeout = 1e6
    async with asyncio.timeout(60):
        for _ in range(10):
            with pytest.raises(Overloaded, match="cannot be reached"):
                await index.get("photos", "0")
    own_redis8.thaw()
    clock.now += FIRST_PAUSE
    item = await index.get("photos", "0")
    np.testing.assert_allclose(np.linalg.norm(item.vector), 1, rtol=1e-6)
    await index.close()


async def test_a_frozen_server_is_waited_for_no_longer_than_the_deadline(
    own_redis8: RedisServer,
) -> None:
    async with gateways(own_redis8, 1) as (index,):
        await index.put("photos", items(5), DIGEST)
        own_redis8.freeze()
        soon = asyncio.get_running_loop().time() + 0.05
        ends = await asyncio.gather(
            index.put("photos", items(1), DIGEST, deadline=soon),
            index.get("photos", "0", deadline=soon),
            index.delete("photos", "0", deadline=soon),
            index.search("photos", query(), DIGEST, 1, deadline=soon),
            index.collections(deadline=soon),
            index.drop("photos", deadline=soon),
            return_exceptions=True,
        )
        assert [type(end) for end in ends] == [DeadlineExceeded] * 6
        own_redis8.thaw()


async def test_a_write_past_its_deadline_is_done_whole_or_not_at_all(redis8: RedisServer) -> None:
    clock = asyncio.get_running_loop().time
    async with gateways(redis8, 1) as (index,):
        late = 0
        for n in range(60):
            for write in (
                index.put("photos", items(20), DIGEST, deadline=clock() + n / 20_000),
                index.drop("photos", deadline=clock() + n / 20_000),
            ):
                try:
                    await write
                except DeadlineExceeded:
                    late += 1
                except NotFound:
                    pass
        assert late
        # Of two drops that go on one finds nothing.
        left = asyncio.all_tasks() - {asyncio.current_task()}
        ends = await asyncio.gather(*left, return_exceptions=True)
        assert {type(end) for end in ends} <= {type(None), NotFound}
        await index.put("photos", items(1), DIGEST)
        await index.drop("photos")
    assert redis8("FT._LIST") == []
    assert kept(redis8, "*") == 0
