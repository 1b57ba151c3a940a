"""The cache of raw outputs in memory: least recently used, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]

# What Python adds to an entry: the entry itself, its key and the array object.
OVERHEAD = 512


class MemoryCache:
    """Maps keys to arrays; forgets what was not used for longest.

    Args:
        capacity: Bytes of arrays, keys and overhead to hold at most; 0 holds nothing.

    Attributes:
        bytes: What is held now.
        hits: How many look-ups found their key.
        misses: How many did not.
    """

    def __init__(self, capacity: int) -> None:
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._capacity = capacity
        self._entries: OrderedDict[str, Array] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Array | None:
        """The array put under `key`, or None."""
        array = self._entries.get(key)
        if array is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return array

    def put(self, key: str, array: Array) -> None:
        """Keep `array`, which nobody may change any more, unless it alone is over the capacity."""
        if (old := self._entries.pop(key, None)) is not None:
            self.bytes -= _cost(key, old)
        cost = _cost(key, array)
        if cost > self._capacity:
            return
        while self.bytes + cost > self._capacity:
            self.bytes -= _cost(*self._entries.popitem(last=False))
        self._entries[key] = array
        self.bytes += cost


def _cost(key: str, array: Array) -> int:
    return len(key) + array.nbytes + OVERHEAD
