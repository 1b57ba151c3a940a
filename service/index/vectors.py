"""The vectors of one collection in memory: exact search while they are few, HNSW beyond.

FAISS numbers its rows and an HNSW graph cannot forget one, so a removed or replaced vector stays
as a dead row, which every search skips, until the dead outnumber the living and the rows are laid
anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import faiss
import numpy as np
from numpy.typing import NDArray

from service.index.base import Vector

EXACT_BELOW = 20_000  # a scan of 20,000 x 384 takes about 3 ms and has no recall to lose
NEIGHBOURS = 32
BUILD_BREADTH = 80
SEARCH_BREADTH = 128


class Vectors:
    """Unit vectors by id; the inner product of two is their cosine.

    Args:
        dim: Length of each vector.
        exact_below: The most rows that are scanned one by one.
    """

    def __init__(self, dim: int, exact_below: int = EXACT_BELOW) -> None:
        self._dim = dim
        self._exact_below = exact_below
        self._clear()

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Add or replace unit vectors, float32 [n, dim]; of an id given twice the last stays."""
        for item in ids:
            self._bury(item)
            self._rows[item] = len(self._ids)
            self._ids.append(item)
            self._alive.append(1)
        self._faiss.add(vectors)
        self._settle()

    def remove(self, item: str) -> None:
        """Forget an id; one that is not here is none of our business."""
        self._bury(item)
        self._rows.pop(item, None)
        self._settle()

    def search(
        self, query: Vector, k: int, among: Iterable[str] | None = None
    ) -> list[tuple[str, float]]:
        """Give the `k` ids of largest inner product with `query`, best first.

        Args:
            query: float32 [dim], of unit length.
            k: How many; fewer come back only when fewer are here (or among `among`).
            among: Search only these ids, exactly.
        """
        alive = np.frombuffer(self._alive, np.uint8)
        if among is not None:
            alive = np.zeros_like(alive)
            alive[[self._rows[item] for item in among if item in self._rows]] = 1
        k = min(k, int(np.count_nonzero(alive)))
        if k == 0:
            return []
        selector = faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little"))
        if self._graph is not None and among is None:
            breadth = max(SEARCH_BREADTH, 2 * k)
            how = faiss.SearchParametersHNSW(efSearch=breadth, sel=selector)
            found = self._read(self._graph.search(query[np.newaxis], k, params=how))
            if len(found) == k:
                return found
        how = faiss.SearchParameters(sel=selector)
        return self._read(self._flat.search(query[np.newaxis], k, params=how))

    @property
    def _faiss(self) -> faiss.Index:
        return self._flat if self._graph is None else self._graph

    def _clear(self) -> None:
        self._ids: list[str] = []
        self._rows: dict[str, int] = {}
        self._alive = bytearray()
        self._graph: faiss.IndexHNSWFlat | None = None
        self._flat = faiss.IndexFlat(self._dim, faiss.METRIC_INNER_PRODUCT)

    def _bury(self, item: str) -> None:
        row = self._rows.get(item)
        if row is not None:
            self._alive[row] = 0

    def _read(
        self, found: tuple[NDArray[np.float32], NDArray[np.int64]]
    ) -> list[tuple[str, float]]:
        scores, rows = found[0][0].tolist(), found[1][0].tolist()
        return [
            (self._ids[row], min(max(score, -1.0), 1.0))
            for score, row in zip(scores, rows, strict=True)
            if row >= 0
        ]

    def _settle(self) -> None:
        """Lay the rows anew when most are dead, and grow a graph when they are many."""
        crowded = self._graph is None and len(self._ids) > self._exact_below
        if not crowded and len(self._ids) <= 2 * len(self) + 1_000:
            return
        ids = list(self._rows)
        vectors = self._flat.reconstruct_batch(np.fromiter(self._rows.values(), np.int64, len(ids)))
        self._clear()
        if len(ids) > self._exact_below:
            metric = faiss.METRIC_INNER_PRODUCT
            self._graph = faiss.IndexHNSWFlat(self._dim, NEIGHBOURS, metric)
            self._graph.hnsw.efConstruction = BUILD_BREADTH
            self._flat = faiss.downcast_index(self._graph.storage)
        self._ids = ids
        self._rows = {item: row for row, item in enumerate(ids)}
        self._alive = bytearray(b"\x01" * len(ids))
        self._faiss.add(vectors)
