import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.cache import OVERHEAD, MemoryCache
from service.engines.base import Outputs


def value(size: int, seed: int = 0) -> Outputs:
    return {"embedding": np.random.default_rng(seed).normal(size=size).astype(np.float32)}


def test_a_hit_equals_what_was_put_to_the_last_bit() -> None:
    cache = MemoryCache(10_000)
    put = {"embedding": np.array([0.1, -0.0, np.nan, np.inf, 1e-45], np.float32)}
    cache.put("key", put)
    got = cache.get("key")
    assert got is not None
    assert got["embedding"].tobytes() == put["embedding"].tobytes()
    assert got["embedding"].dtype == np.float32
    assert (cache.hits, cache.misses) == (1, 0)


def test_nothing_done_to_an_array_or_an_answer_changes_the_cache() -> None:
    cache = MemoryCache(10_000)
    put = value(8)
    before = put["embedding"].copy()
    cache.put("key", put)
    put["embedding"][:] = 0
    got = cache.get("key")
    assert got is not None
    with pytest.raises(ValueError, match="read-only"):
        got["embedding"][0] = 1
    got.clear()
    again = cache.get("key")
    assert again is not None
    np.testing.assert_array_equal(again["embedding"], before)


def test_a_row_of_a_batch_does_not_keep_the_batch() -> None:
    cache = MemoryCache(10**9)
    tracemalloc.start()
    for n in range(8):
        cache.put(str(n), {"embedding": np.zeros((1000, 1000), np.float32)[0]})
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 100_000


def test_an_entry_larger_than_the_cache_is_not_stored_and_drives_nothing_out() -> None:
    cache = MemoryCache(2000)
    cache.put("small", value(10))
    cache.put("large", value(1000))
    assert cache.get("large") is None
    assert cache.get("small") is not None


def test_a_cache_of_no_bytes_holds_nothing() -> None:
    cache = MemoryCache(0)
    cache.put("key", value(1))
    assert cache.get("key") is None
    assert (len(cache), cache.bytes) == (0, 0)


def test_the_bytes_counted_are_no_fewer_than_the_memory_taken() -> None:
    cache = MemoryCache(10**9)
    array = value(64)
    tracemalloc.start()
    for n in range(2000):
        cache.put(f"{n:0200d}", array)
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

    def cost(array: np.ndarray) -> int:
        return 1 + OVERHEAD + array.nbytes

    for seed, (operation, key, size) in enumerate(operations):
        if operation == "put":
            put = value(size, seed)
            cache.put(key, put)
            model.pop(key, None)
            if cost(put["embedding"]) <= capacity:
                model[key] = put["embedding"]
            while sum(map(cost, model.values())) > capacity:
                model.popitem(last=False)
        else:
            got = cache.get(key)
            assert (got is None) == (key not in model)
            if got is not None:
                model.move_to_end(key)
                np.testing.assert_array_equal(got["embedding"], model[key])
        assert cache.bytes == sum(map(cost, model.values())) <= capacity
        assert len(cache) == len(model)
    assert cache.hits + cache.misses == sum(kind == "get" for kind, _, _ in operations)
