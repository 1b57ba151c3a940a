"""The seam between the routes and whatever keeps the vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.errors import ModelMismatch, NotFound

Vector = NDArray[np.float32]
Scalar = str | int | float | bool | None
Filter = dict[str, Scalar]
NEVER = math.inf


class IndexUnavailable(Exception):
    """The index cannot be opened; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Item:
    """One vector, float32 [dim], with what its owner wrote beside it."""

    id: str
    vector: Vector
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Match:
    """One answer of a search; `score` is the cosine to the query."""

    id: str
    score: float
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection and the model whose vectors it holds."""

    name: str
    digest: str
    dim: int
    items: int

    def require(self, digest: str) -> None:
        """Refuse another model.

        Raises:
            ModelMismatch: The collection is bound to a bundle other than `digest`.
        """
        if digest != self.digest:
            raise ModelMismatch(
                f"Collection {self.name!r} holds vectors of the model {self.digest}; this server "
                f"serves {digest}. Use another collection, or delete this one and fill it again."
            )


def no_collection(name: str) -> NotFound:
    """What to raise where there is no collection `name`."""
    return NotFound(
        f"There is no collection {name!r}; putting its first item creates it. "
        "GET /collections lists those that exist."
    )


def no_item(collection: str, item: str) -> NotFound:
    """What to raise where `collection` has no `item`."""
    return NotFound(f"There is no item {item!r} in the collection {collection!r}.")


class Index(Protocol):
    """Collections of (id, vector, metadata), each bound to one bundle digest and dimension.

    Vectors are kept at unit length. An item is safe once `put` has returned, and no search that
    starts afterwards shows what it replaced.

    Each operation raises `DeadlineExceeded` at its `deadline`, in the event loop's time. One that
    has not started by then never does; a write that has may still be done.
    """

    async def put(
        self, collection: str, items: Sequence[Item], digest: str, deadline: float = NEVER
    ) -> None:
        """Add or replace items, all or none; the first creates the collection.

        Raises:
            ModelMismatch: The collection holds the vectors of another model.
        """
        ...

    async def get(self, collection: str, item: str, deadline: float = NEVER) -> Item:
        """Give an item with its unit vector.

        Raises:
            NotFound: No such collection or item.
        """
        ...

    async def delete(self, collection: str, item: str, deadline: float = NEVER) -> None:
        """Remove an item.

        Raises:
            NotFound: No such collection or item.
        """
        ...

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
        """Give the `k` items of largest cosine to `vector`, best first.

        Args:
            collection: Where to look.
            vector: float32 [dim], of any length but zero.
            digest: The bundle that made `vector`.
            k: How many; fewer come back only when fewer exist.
            where: Metadata keys and the value that each must equal.
            min_score: Leave out what is less similar than this.
            deadline: When the answer is of no more use.

        Raises:
            NotFound: No such collection.
            ModelMismatch: The collection holds the vectors of another model.
        """
        ...

    async def collections(self, deadline: float = NEVER) -> list[Collection]:
        """List the collections by name."""
        ...

    async def drop(self, collection: str, deadline: float = NEVER) -> None:
        """Remove a collection and all its items.

        Raises:
            NotFound: No such collection.
        """
        ...

    async def close(self) -> None:
        """Finish what is in flight and release the storage."""
        ...
