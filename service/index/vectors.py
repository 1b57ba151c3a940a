"""The vectors of one collection in memory: exact search while they are few, HNSW beyond.

FAISS numbers its rows and an HNSW graph cannot forget one, so a removed or replaced vector stays
as a dead row, which every search skips. When the dead outnumber the living, or the living are many
and have no graph, the rows are laid anew. That takes seconds, so it goes in steps: between two of
them the collection is read and written as before, and the last one swaps the new rows in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import faiss
import numpy as np
from numpy.typing import NDArray

from service.index.base import Vector

EXACT_BELOW = 20_000  # a scan of 20,000 x 384 takes about 3 ms and has no recall to lose
NEIGHBOURS = 32
BUILD_BREADTH = 80
SEARCH_BREADTH = 128
SLACK = 1_000  # dead rows that are not worth the work
STEP = 256  # rows; to add them to a graph takes some 50 ms


class _Rows:
    """Vectors in FAISS with the id of each; a row that is not `alive` is never found."""

    def __init__(self, dim: int, has_graph: bool) -> None:
        self.ids: list[str] = []
        self.alive = bytearray()
        self.graph: faiss.IndexHNSWFlat | None = None
        if has_graph:
            self.graph = faiss.IndexHNSWFlat(dim, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
            self.graph.hnsw.efConstruction = BUILD_BREADTH
            self.flat = faiss.downcast_index(self.graph.storage)
        else:
            self.flat = faiss.IndexFlat(dim, faiss.METRIC_INNER_PRODUCT)

    def add(self, vectors: NDArray[np.float32]) -> None:
        (self.flat if self.graph is None else self.graph).add(vectors)


class Vectors:
    """Unit vectors by id; the inner product of two is their cosine.

    One thread owns them. Who adds many calls `begin` now and then; where that says so, `advance`
    again and again, and between two calls, in any thread, what it gives.

    Args:
        dim: Length of each vector.
        exact_below: The most that are scanned one by one once `advance` is done.
    """

    def __init__(self, dim: int, exact_below: int = EXACT_BELOW) -> None:
        self._dim = dim
        self._exact_below = exact_below
        self._laid = _Rows(dim, has_graph=False)
        self._row: dict[str, int] = {}
        self._coming: _Rows | None = None
        self._copied: list[int] = []  # of each row of `_coming`, which of `_laid` it was
        self._read = 0  # how many rows of `_laid` have been looked at for `_coming`

    def __len__(self) -> int:
        return len(self._row)

    def put(self, ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Add or replace unit vectors, float32 [n, dim]; of an id given twice the last stays."""
        for item in ids:
            self._bury(item)
            self._row[item] = len(self._laid.ids)
            self._laid.ids.append(item)
            self._laid.alive.append(1)
        self._laid.add(vectors)

    def remove(self, item: str) -> None:
        """Forget an id; one that is not here is none of our business."""
        self._bury(item)
        self._row.pop(item, None)

    def search(
        self, query: Vector, k: int, among: Iterable[str] | None = None
    ) -> list[tuple[str, float]]:
        """Give the `k` ids of largest inner product with `query`, best first.

        Args:
            query: float32 [dim], of unit length.
            k: How many; fewer come back only when fewer are here (or among `among`).
            among: Search only these ids, exactly.
        """
        alive = np.frombuffer(self._laid.alive, np.uint8)
        if among is not None:
            alive = np.zeros_like(alive)
            alive[[self._row[item] for item in among if item in self._row]] = 1
        k = min(k, int(np.count_nonzero(alive)))
        if k == 0:
            return []
        selector = faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little"))
        if self._laid.graph is not None and among is None:
            breadth = max(SEARCH_BREADTH, 2 * k)
            how = faiss.SearchParametersHNSW(efSearch=breadth, sel=selector)
            found = self._named(self._laid.graph.search(query[np.newaxis], k, params=how))
            if len(found) == k:
                return found
        how = faiss.SearchParameters(sel=selector)
        return self._named(self._laid.flat.search(query[np.newaxis], k, params=how))

    def begin(self) -> bool:
        """Begin to lay the rows anew, if that is due and not under way; whether it has begun."""
        crowded = self._laid.graph is None and len(self) > self._exact_below
        decayed = len(self._laid.ids) > 2 * len(self) + SLACK
        if self._coming is not None or not (crowded or decayed):
            return False
        self._coming = _Rows(self._dim, has_graph=len(self) > self._exact_below)
        self._copied, self._read = [], 0
        return True

    def advance(self) -> Callable[[], None] | None:
        """Give the next step of what `begin` began; None once the new rows are in use.

        What was put meanwhile lies behind what was there, and is copied like it; only the last
        few vectors are added here, in the thread that owns the collection.
        """
        laid, coming, start = self._laid, self._coming, self._read
        if coming is None:
            return None
        self._read += STEP
        alive = np.frombuffer(laid.alive, np.uint8)[start : self._read]
        rows = start + np.flatnonzero(alive)
        add = partial(coming.add, laid.flat.reconstruct_batch(rows))
        self._copied += rows.tolist()
        coming.ids += [laid.ids[row] for row in rows]
        if self._read < len(laid.ids):
            return add
        add()
        self._swap(coming)
        return None

    def abandon(self) -> None:
        """Give up what `begin` began."""
        self._coming = None

    def _swap(self, coming: _Rows) -> None:
        # What was removed or replaced since it was copied is dead in the new rows too.
        coming.alive = bytearray(np.frombuffer(self._laid.alive, np.uint8)[self._copied].tobytes())
        self._row = {item: row for row, item in enumerate(coming.ids) if coming.alive[row]}
        self._laid, self._coming, self._copied = coming, None, []

    def _bury(self, item: str) -> None:
        row = self._row.get(item)
        if row is not None:
            self._laid.alive[row] = 0

    def _named(
        self, found: tuple[NDArray[np.float32], NDArray[np.int64]]
    ) -> list[tuple[str, float]]:
        scores, rows = found[0][0].tolist(), found[1][0].tolist()
        return [
            (self._laid.ids[row], min(max(score, -1.0), 1.0))
            for score, row in zip(scores, rows, strict=True)
            if row >= 0
        ]
