"""The cache of raw outputs in memory: least recently used, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from service.engines.base import Outputs

# What Python adds to an entry of one array: the entry itself, its dictionary and the array object.
OVERHEAD = 512


class MemoryCache:
    """Maps keys to output arrays; forgets what was not used for longest.

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
        self._entries: OrderedDict[str, Outputs] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Outputs | None:
        """The arrays put under `key`, read-only and equal to the last bit, or None."""
        value = self._entries.get(key)
        if value is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return dict(value)

    def put(self, key: str, value: Outputs) -> None:
        """Keep a copy of `value`, unless it alone is larger than the cache."""
        if (old := self._entries.pop(key, None)) is not None:
            self.bytes -= _cost(key, old)
        cost = _cost(key, value)
        if cost > self._capacity:
            return
        while self.bytes + cost > self._capacity:
            self.bytes -= _cost(*self._entries.popitem(last=False))
        # Copied, because one image's row would keep its whole batch in memory.
        entry = {name: np.array(array) for name, array in value.items()}
        for array in entry.values():
            array.setflags(write=False)
        self._entries[key] = entry
        self.bytes += cost


def _cost(key: str, value: Outputs) -> int:
    return len(key) + sum(array.nbytes + OVERHEAD for array in value.values())
