import tracemalloc
from collections import OrderedDict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.cache.memory import OVERHEAD, MemoryCache


def array(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def test_an_entry_larger_than_the_cache_is_not_stored_and_drives_nothing_out() -> None:
    cache = MemoryCache(2000)
    cache.put("small", array(10))
    cache.put("large", array(1000))
    assert cache.get("large") is None
    assert cache.get("small") is not None
    assert (cache.hits, cache.misses) == (1, 1)


def test_a_cache_of_no_bytes_holds_nothing() -> None:
    cache = MemoryCache(0)
    cache.put("key", array(1))
    assert cache.get("key") is None
    assert (len(cache), cache.bytes) == (0, 0)


def test_the_bytes_counted_are_no_fewer_than_the_memory_taken() -> None:
    cache = MemoryCache(10**9)
    tracemalloc.start()
    for n in range(2000):
        cache.put(f"{n:0200d}", array(64))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.7 * cache.bytes < taken <= cache.bytes


operations = st.lists(
    st.tuples(st.sampled_from(["get", "put"]), st.sampled_from("abcdef"), st.integers(0, 300))
)


@settings(deadline=None)
@given(operations=operations, capacity=st.integers(0, 5000))
def test_it_behaves_as_a_plain_list_of_recent_use(
    operations: list[tuple[str, str, int]], capacity: int
) -> None:
    cache = MemoryCache(capacity)
    model: OrderedDict[str, np.ndarray] = OrderedDict()

    def cost(value: np.ndarray) -> int:
        return 1 + OVERHEAD + value.nbytes

    for seed, (operation, key, size) in enumerate(operations):
        if operation == "put":
            put = array(size, seed)
            cache.put(key, put)
            model.pop(key, None)
            if cost(put) <= capacity:
                model[key] = put
            while sum(map(cost, model.values())) > capacity:
                model.popitem(last=False)
        else:
            got = cache.get(key)
            assert (got is None) == (key not in model)
            if got is not None:
                model.move_to_end(key)
                np.testing.assert_array_equal(got, model[key])
        assert cache.bytes == sum(map(cost, model.values())) <= capacity
        assert len(cache) == len(model)
    assert cache.hits + cache.misses == sum(kind == "get" for kind, _, _ in operations)
