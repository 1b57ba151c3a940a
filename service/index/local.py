"""The index of one machine: SQLite holds the truth, FAISS in memory answers.

One thread owns both, so operations follow one another and no search sees half a write; a large
collection's vectors are laid anew beside it. SQLite runs in WAL mode with `synchronous=FULL`: a
commit is on the disk before it is acknowledged. At start the vectors are read back into memory.
"""

from __future__ import annotations

import asyncio
import fcntl
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import orjson

from service.deadline import Deadline
from service.index.base import (
    NEVER,
    Collection,
    Filter,
    IndexUnavailable,
    Item,
    Match,
    Vector,
    no_collection,
    no_item,
)
from service.index.builder import Builder
from service.index.vectors import EXACT_BELOW, Vectors
from service.pooling import unit

T = TypeVar("T")

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE collections (
    name TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    dim INTEGER NOT NULL
) STRICT;
CREATE TABLE items (
    collection TEXT NOT NULL REFERENCES collections (name) ON DELETE CASCADE,
    id TEXT NOT NULL,
    vector BLOB NOT NULL,
    metadata TEXT NOT NULL,
    PRIMARY KEY (collection, id)
) STRICT;
"""
# `type` tells true from 1 and "1" from 1; an integer and a real are both JSON numbers.
MATCHING = """
SELECT id FROM items WHERE collection = :collection AND NOT EXISTS (
    SELECT 1 FROM json_each(:where) AS wanted WHERE NOT EXISTS (
        SELECT 1 FROM json_each(items.metadata) AS held
        WHERE held.key = wanted.key AND held.value IS wanted.value
        AND replace(held.type, 'integer', 'real') = replace(wanted.type, 'integer', 'real')
    )
)
"""
PUT = """
INSERT INTO items (collection, id, vector, metadata) VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET vector = excluded.vector, metadata = excluded.metadata
"""
LOAD_ROWS = 10_000


class LocalIndex:
    """The `Index` in a folder of its own, which one process at a time may open.

    Args:
        folder: Where `index.sqlite` and `index.lock` lie; made if it is not there.
        exact_below: The most items of a collection that are scanned one by one.

    Raises:
        IndexUnavailable: Another process has the folder, or it cannot be read or written.
    """

    def __init__(self, folder: Path, exact_below: int = EXACT_BELOW) -> None:
        self._exact_below = exact_below
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "index.lock").open("a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise IndexUnavailable(
                f"The index in {folder} is open in another process; stop that one, or choose "
                "another folder with --data"
            ) from None
        except OSError as error:
            raise IndexUnavailable(f"The index cannot be kept in {folder}: {error}") from None
        try:
            self._sql = _open(folder / "index.sqlite")
            self._vectors = self._load()
        except sqlite3.Error as error:
            self._lock.close()
            raise IndexUnavailable(f"{folder / 'index.sqlite'} cannot be read: {error}") from None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="index")
        self._builder = Builder(self._thread)
        for vectors in self._vectors.values():
            self._builder.tend(vectors)

    async def put(
        self, collection: str, items: Sequence[Item], digest: str, deadline: float = NEVER
    ) -> None:
        """Add or replace items; see `Index.put`."""
        await self._run(lambda: self._put(collection, items, digest), deadline)

    async def get(self, collection: str, item: str, deadline: float = NEVER) -> Item:
        """Give an item; see `Index.get`."""
        return await self._run(lambda: self._get(collection, item), deadline)

    async def delete(self, collection: str, item: str, deadline: float = NEVER) -> None:
        """Remove an item; see `Index.delete`."""
        await self._run(lambda: self._delete(collection, item), deadline)

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
        return await self._run(
            lambda: self._search(collection, vector, digest, k, where, min_score), deadline
        )

    async def collections(self, deadline: float = NEVER) -> list[Collection]:
        """List the collections by name."""
        return await self._run(self._collections, deadline)

    async def drop(self, collection: str, deadline: float = NEVER) -> None:
        """Remove a collection; see `Index.drop`."""
        await self._run(lambda: self._drop(collection), deadline)

    async def close(self) -> None:
        """Finish what is in flight, close the file and give the folder back."""
        await self._run(self._close)
        await asyncio.to_thread(self._builder.close)
        self._thread.shutdown()
        self._lock.close()

    async def _run(self, operation: Callable[[], T], deadline: float = NEVER) -> T:
        async with Deadline(deadline):
            return await asyncio.get_running_loop().run_in_executor(self._thread, operation)

    def _put(self, name: str, items: Sequence[Item], digest: str) -> None:
        if not items:
            return
        vectors = np.stack([unit(item.vector) for item in items])
        dim = vectors.shape[1]
        if name in self._vectors:
            self._collection(name).require(digest)
        with self._sql:
            self._sql.execute(
                "INSERT INTO collections VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (name, digest, dim),
            )
            self._sql.executemany(
                PUT,
                [
                    (name, item.id, vector.tobytes(), orjson.dumps(item.metadata).decode())
                    for item, vector in zip(items, vectors, strict=True)
                ],
            )
        held = self._vectors.setdefault(name, Vectors(dim, self._exact_below))
        held.put([item.id for item in items], vectors)
        self._builder.tend(held)

    def _get(self, name: str, item: str) -> Item:
        self._collection(name)
        row = self._sql.execute(
            "SELECT vector, metadata FROM items WHERE collection = ? AND id = ?", (name, item)
        ).fetchone()
        if row is None:
            raise no_item(name, item)
        return Item(item, np.frombuffer(row[0], np.float32), orjson.loads(row[1]))

    def _delete(self, name: str, item: str) -> None:
        self._collection(name)
        with self._sql:
            gone = self._sql.execute(
                "DELETE FROM items WHERE collection = ? AND id = ?", (name, item)
            )
        if gone.rowcount == 0:
            raise no_item(name, item)
        self._vectors[name].remove(item)
        self._builder.tend(self._vectors[name])

    def _search(
        self,
        name: str,
        vector: Vector,
        digest: str,
        k: int,
        where: Filter | None,
        min_score: float | None,
    ) -> list[Match]:
        self._collection(name).require(digest)
        among = self._matching(name, where) if where else None
        found = self._vectors[name].search(unit(vector), k, among)
        metadata = dict(
            self._sql.execute(
                "SELECT id, metadata FROM items "
                "WHERE collection = ? AND id IN (SELECT value FROM json_each(?))",
                (name, orjson.dumps([item for item, _ in found]).decode()),
            )
        )
        return [
            Match(item, score, orjson.loads(metadata[item]))
            for item, score in found
            if min_score is None or score >= min_score
        ]

    def _matching(self, name: str, where: Filter) -> list[str]:
        wanted = {"collection": name, "where": orjson.dumps(where).decode()}
        return [row[0] for row in self._sql.execute(MATCHING, wanted)]

    def _collection(self, name: str) -> Collection:
        row = self._sql.execute(
            "SELECT digest, dim FROM collections WHERE name = ?", (name,)
        ).fetchone()
        if row is None:
            raise no_collection(name)
        digest, dim = row
        return Collection(name, digest, dim, len(self._vectors[name]))

    def _collections(self) -> list[Collection]:
        rows = self._sql.execute("SELECT name, digest, dim FROM collections ORDER BY name")
        return [
            Collection(name, digest, dim, len(self._vectors[name])) for name, digest, dim in rows
        ]

    def _drop(self, name: str) -> None:
        self._collection(name)
        with self._sql:
            self._sql.execute("DELETE FROM collections WHERE name = ?", (name,))
        self._vectors.pop(name).abandon()

    def _close(self) -> None:
        self._sql.close()
        for vectors in self._vectors.values():
            vectors.abandon()

    def _load(self) -> dict[str, Vectors]:
        held = {}
        for name, dim in self._sql.execute("SELECT name, dim FROM collections").fetchall():
            held[name] = Vectors(dim, self._exact_below)
            rows = self._sql.execute("SELECT id, vector FROM items WHERE collection = ?", (name,))
            while chunk := rows.fetchmany(LOAD_ROWS):
                flat = np.frombuffer(b"".join(vector for _, vector in chunk), np.float32)
                held[name].put([item for item, _ in chunk], flat.reshape(len(chunk), dim))
        return held


def _open(path: Path) -> sqlite3.Connection:
    # The thread that opens the file is not the one that uses it afterwards; they never overlap.
    connection = sqlite3.connect(path, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    elif version != SCHEMA_VERSION:
        raise sqlite3.DatabaseError(
            f"its layout is version {version}; this release reads version {SCHEMA_VERSION}"
        )
    return connection
