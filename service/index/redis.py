"""The index that many gateways share: the query engine of Redis 8.

A hash lists the collections; each has a random name of its own, under which its search index
and its items live. So a collection that is dropped and made anew shares nothing with the old one,
and whoever still holds the old name can write to it no more: a script compares before it writes.
An item is indexed before its write returns. It is as safe as that Redis keeps what it is given;
`appendonly yes` lets it survive a restart.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from redis.exceptions import RedisError, ResponseError

from service.breaker import Breaker
from service.deadline import Deadline
from service.errors import Overloaded
from service.index.base import (
    NEVER,
    Collection,
    Filter,
    Item,
    Match,
    Vector,
    no_collection,
    no_item,
)
from service.index.facts import tags
from service.index.fitness import require_fitness
from service.pooling import unit
from service.redis import connect

logger = logging.getLogger(__name__)

COLLECTIONS = "foveal:collections"
DROPPED = "foveal:dropped"  # indices that are listed no more, and may still be there
EVERY = "every"  # a tag that each item has
NEIGHBOURS = 32
BUILD_BREADTH = 128
SEARCH_BREADTH = 128

# All items or none, and none when the collection is not, or no longer, the one that was looked up.
PUT = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
for at = 2, #KEYS do
    redis.call('HSET', KEYS[at],
        'vector', ARGV[3 * at - 3], 'metadata', ARGV[3 * at - 2], 'tags', ARGV[3 * at - 1])
end
return 1
"""
DROP = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('SADD', KEYS[2], ARGV[3])
return redis.call('HDEL', KEYS[1], ARGV[1])
"""


@dataclass(frozen=True, slots=True)
class _Held:
    """A collection as Redis lists it."""

    name: str
    key: str
    digest: str
    dim: int

    @classmethod
    def read(cls, name: str, entry: bytes) -> _Held:
        return cls(name, *orjson.loads(entry))

    @property
    def entry(self) -> bytes:
        return orjson.dumps([self.key, self.digest, self.dim])

    @property
    def index(self) -> str:
        return f"foveal:index:{self.key}"

    @property
    def prefix(self) -> str:
        return f"foveal:item:{self.key}:"

    def having(self, items: int) -> Collection:
        return Collection(self.name, self.digest, self.dim, items)


class RedisIndex:
    """The `Index` in a Redis 8 that any number of gateways may use at once.

    Args:
        url: Where Redis listens.
        timeout: Seconds that an operation may take.

    Raises:
        IndexUnavailable: Redis cannot be reached, has no query engine, or would drop items.
    """

    def __init__(self, url: str, timeout: float) -> None:
        require_fitness(url, timeout)
        self._redis = connect(url)
        self._timeout = timeout
        self._breaker = Breaker("The index in Redis")
        self._put_script = self._redis.register_script(PUT)
        self._drop_script = self._redis.register_script(DROP)

    async def put(
        self, collection: str, items: Sequence[Item], digest: str, deadline: float = NEVER
    ) -> None:
        """Add or replace items; see `Index.put`."""
        if items:
            await _whole(self._put(collection, items, digest), deadline)

    async def get(self, collection: str, item: str, deadline: float = NEVER) -> Item:
        """Give an item; see `Index.get`."""
        async with Deadline(deadline), self._answering():
            held = await self._require(collection)
            vector, metadata = await self._redis.hmget(held.prefix + item, "vector", "metadata")
        if vector is None:
            raise no_item(collection, item)
        return Item(item, np.frombuffer(vector, np.float32), orjson.loads(metadata))

    async def delete(self, collection: str, item: str, deadline: float = NEVER) -> None:
        """Remove an item; see `Index.delete`."""
        async with Deadline(deadline), self._answering():
            held = await self._require(collection)
            if not await self._redis.delete(held.prefix + item):
                raise no_item(collection, item)

    async def search(
        self,
        collection: str,
        vector: Vector,
        digest: str,
        k: int,
        where: Filter | None = None,
        min_score: float | None = None,
        deadline: float = NEVER,
    ) -> list[Match]:
        """Give the nearest items; see `Index.search`."""
        filters = " ".join(f"@tags:{{{tag}}}" for tag in tags(where or {}))
        graph = f"EF_RUNTIME {max(SEARCH_BREADTH, 2 * k)}"
        async with Deadline(deadline), self._answering():
            held = await self._require(collection)
            held.having(0).require(digest)
            found = await self._nearest(held, vector, k, filters or "*", graph)
            if len(found) < k:
                # Few are there, or the graph did not lead to all: look at each.
                each = filters or f"@tags:{{{EVERY}}}"
                found = await self._nearest(held, vector, k, each, "HYBRID_POLICY ADHOC_BF")
        return [match for match in found if min_score is None or match.score >= min_score]

    async def collections(self, deadline: float = NEVER) -> list[Collection]:
        """List the collections by name."""
        async with Deadline(deadline), self._answering():
            listed = await self._redis.hgetall(COLLECTIONS)
            held = [_Held.read(name.decode(), entry) for name, entry in sorted(listed.items())]
            commands = self._redis.pipeline(transaction=False)
            for one in held:
                commands.execute_command("FT.INFO", one.index)
            answers = await commands.execute(raise_on_error=False)
        # One that was dropped meanwhile answers with an error.
        return [
            one.having(answer[b"num_docs"])
            for one, answer in zip(held, answers, strict=True)
            if not isinstance(answer, ResponseError)
        ]

    async def drop(self, collection: str, deadline: float = NEVER) -> None:
        """Remove a collection; see `Index.drop`."""
        await _whole(self._drop(collection), deadline)

    async def close(self) -> None:
        """Hang up."""
        await self._redis.aclose()

    async def _put(self, collection: str, items: Sequence[Item], digest: str) -> None:
        fields: list[Any] = []
        for item in items:
            fields += [
                unit(item.vector).tobytes(),
                orjson.dumps(item.metadata),
                ",".join([EVERY, *tags(item.metadata)]),
            ]
        async with self._answering():
            while True:
                held = await self._find(collection)
                if held is None:
                    await self._create(collection, digest, len(items[0].vector))
                    continue
                held.having(0).require(digest)
                keys = [held.prefix + item.id for item in items]
                if await self._put_script([COLLECTIONS, *keys], [collection, held.entry, *fields]):
                    return

    async def _drop(self, collection: str) -> None:
        async with self._answering():
            await self._sweep()
            held = await self._require(collection)
            arguments = [collection, held.entry, held.index]
            if not await self._drop_script([COLLECTIONS, DROPPED], arguments):
                raise no_collection(collection)
            await self._sweep()

    async def _sweep(self) -> None:
        """Remove what was dropped, here or by a gateway that was not heard to the end."""
        for index in await self._redis.smembers(DROPPED):
            try:
                await self._redis.execute_command("FT.DROPINDEX", index, "DD")
            except ResponseError:
                # Another gateway may have been quicker.
                if index in await self._redis.execute_command("FT._LIST"):
                    raise
            await self._redis.srem(DROPPED, index)

    async def _find(self, name: str) -> _Held | None:
        entry = await self._redis.hget(COLLECTIONS, name)
        return None if entry is None else _Held.read(name, entry)

    async def _require(self, name: str) -> _Held:
        held = await self._find(name)
        if held is None:
            raise no_collection(name)
        return held

    async def _create(self, name: str, digest: str, dim: int) -> None:
        """Make and list a collection, unless another gateway lists one first."""
        await self._sweep()
        held = _Held(name, secrets.token_hex(8), digest, dim)
        graph: list[str | int] = ["TYPE", "FLOAT32", "DIM", dim, "DISTANCE_METRIC", "COSINE"]
        graph += ["M", NEIGHBOURS, "EF_CONSTRUCTION", BUILD_BREADTH]
        # The index comes first, so that no item can be written before there is one.
        await self._redis.execute_command(
            *("FT.CREATE", held.index, "ON", "HASH", "PREFIX", 1, held.prefix, "SKIPINITIALSCAN"),
            *("SCHEMA", "tags", "TAG", "vector", "VECTOR", "HNSW", len(graph), *graph),
        )
        if not await self._redis.hsetnx(COLLECTIONS, name, held.entry):
            await self._redis.execute_command("FT.DROPINDEX", held.index)

    async def _nearest(
        self, held: _Held, vector: Vector, k: int, among: str, how: str
    ) -> list[Match]:
        query = f"({among})=>[KNN $k @vector $vector {how} AS distance]"
        try:
            answer = await self._redis.execute_command(
                *("FT.SEARCH", held.index, query, "SORTBY", "distance", "LIMIT", 0, k),
                *("PARAMS", 4, "k", k, "vector", unit(vector).tobytes()),
                *("RETURN", 2, "distance", "metadata"),
                *("TIMEOUT", round(1000 * self._timeout), "DIALECT", 2),
            )
        except ResponseError:
            if await self._find(held.name) == held:
                raise
            raise no_collection(held.name) from None
        if answer[b"warning"]:
            raise Overloaded(
                f"The search was not done within {self._timeout} s; try again.", retry_after=1
            )
        return [_match(held, found) for found in answer[b"results"]]

    @asynccontextmanager
    async def _answering(self) -> AsyncIterator[None]:
        """Limit the time of what is asked of Redis, and say what its failure means.

        Raises:
            Overloaded: Redis is gone, late, or refuses, being full for instance.
        """
        if not self._breaker.allows():
            raise _unreachable()
        try:
            async with asyncio.timeout(self._timeout):
                yield
        except ResponseError as error:
            self._breaker.succeeded()
            logger.warning("The index in Redis refuses: %s", error)
            raise Overloaded(f"The index refuses: {error}; try again.", retry_after=1) from error
        except (RedisError, OSError, TimeoutError) as error:
            self._breaker.failed(error)
            raise _unreachable() from error
        except Exception:
            self._breaker.succeeded()
            raise
        self._breaker.succeeded()


async def _whole(write: Coroutine[Any, Any, None], deadline: float) -> None:
    """Await a write until the deadline; half of it is never left, since it goes on without us."""
    async with Deadline(deadline):
        await asyncio.shield(write)


def _match(held: _Held, found: dict[bytes, Any]) -> Match:
    fields = found[b"extra_attributes"]
    score = 1 - float(fields[b"distance"])
    item = found[b"id"].decode().removeprefix(held.prefix)
    return Match(item, min(max(score, -1.0), 1.0), orjson.loads(fields[b"metadata"]))


def _unreachable() -> Overloaded:
    return Overloaded("The index cannot be reached at the moment; try again.", retry_after=1)
